"""Agreement of finished runs: on what they held out, on a test set of the same teacher, and every mistake with what to do."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eupe_pipeline.jobs.evaluation.agreement import AgreementOptions, evaluate_agreement
from eupe_pipeline.jobs.evaluation.split_checks import distilled_on
from eupe_pipeline.jobs.extraction.extract import extract_features
from eupe_pipeline.jobs.extraction.options import ExtractOptions, TeacherRequest
from eupe_pipeline.jobs.training.options import Watch
from eupe_pipeline.pipeline.commands.main import main
from eupe_pipeline.pipeline.reports.evaluation_table import headline, read_evaluations
from eupe_pipeline.storage.core.errors import BadInput, CacheMismatch
from eupe_pipeline.storage.images.hold_out import held_out_images
from eupe_pipeline.storage.images.indexing import build_index
from eupe_pipeline.storage.images.subsets import ImageSubset
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.views.view_spec import ViewSpec
from eupe_pipeline.student.model.recipe import DataConfig, TeacherConfig
from eupe_pipeline.student.training.run_folder import read_metrics

from ...conftest import make_teacher, write_images
from ..training.test_train import RECIPE
from ..training.test_train_mixture import SHARES, mixed  # noqa: F401  # a fixture
from ..training_request import train

SHARE = 0.25
HELD = replace(RECIPE, data=DataConfig(hold_out=SHARE), run=replace(RECIPE.run, steps=4))
CAPTURE = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def made(tiny_store: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[FeatureStore, Path]:
    """A store with `photos` and, by the same teacher with statistics of its own and with those of `photos`, `test`; two runs on photos."""
    root = tmp_path_factory.mktemp("agreement")
    shutil.copytree(tiny_store.store.url, root / "store")
    store = FeatureStore.open(root / "store")
    write_images(root / "test", 40)
    for path in sorted((root / "test").rglob("*.png"))[:24]:
        path.unlink()
    build_index(store.objects, str(root / "test"), "test")
    teacher, spec = (TeacherRequest(str(tiny_store.teacher_run)),), ViewSpec(views_per_image=1, seed=8)
    for borrowed in ((), (store.features("tiny-teacher").key,)):
        extract_features(
            ExtractOptions(
                store.url, "test", teacher, spec, images_per_shard=8, codec="fp32", statistics_batches=2, workers=0,
                statistics_from=borrowed,
            )
        )  # fmt: skip
    watch = Watch("agreement", 4, images=20)
    train(HELD, store, ["tiny-teacher"], data="photos", out=root / "held", watch=watch)
    train(replace(HELD, data=DataConfig()), store, ["tiny-teacher"], data="photos", out=root / "plain")
    return store, root


def measured(made: tuple[FeatureStore, Path], run: str = "held", **more: Any) -> dict[str, Any]:
    store, root = made
    return evaluate_agreement(AgreementOptions(model=str(root / run), store=store.url, device="cpu", **more))


def sets_of_test(store: FeatureStore) -> tuple[str, str]:
    """The keys of the test set's features: with statistics of its own, and with those that the run was trained with."""
    wanted = store.features("tiny-teacher").statistics.digest
    keys = [key for key in store.list_features() if key.startswith("teacher@")]
    (alike,) = [key for key in keys if store.features(key).statistics.digest == wanted]
    (own,) = set(keys) - {alike}
    return own, alike


def test_held_out_images_are_measured_as_in_training_and_kept_beside_the_run(made: tuple[FeatureStore, Path]) -> None:
    found = measured(made)
    online = read_metrics(made[1] / "held")[-1]
    line = next(one["agreement"] for one in read_metrics(made[1] / "held") if one["step"] == 4 and "agreement" in one)
    assert online["step"] == 4
    for name in ("agreement", "cls_cosine", "patch_cosine", "cls_cka", "patch_cka"):
        assert found[name] == pytest.approx(line["held_out"][name], abs=1e-6)
        assert found["trained"][name] == pytest.approx(line["trained"][name], abs=1e-6)
        assert found["gap"][name] == pytest.approx(found["trained"][name] - found[name])
    assert found["images"] == len(held_out_images(made[0].dataset("photos"), SHARE))
    assert Path(found["record"]).parent == made[1] / "held" / "evaluations"
    assert measured(made)["already"]
    assert measured(made, held_out=True)["record"] == found["record"]
    (record,) = [one for one in read_evaluations(made[1] / "held") if one["protocol"]["test"]["sample"] is None]
    assert record["protocol"]["test"]["held_out"] == SHARE
    shown = headline(record)
    assert (shown.value, shown.data) == (f"{found['agreement']:.3f}", "photos, held out")


def test_a_smaller_number_is_a_sample_of_the_same_images(made: tuple[FeatureStore, Path]) -> None:
    found = measured(made, images=3)
    assert found["images"] == 3
    record = json.loads(Path(found["record"]).read_text())
    assert headline(record).data == "photos, sample of 3 images, held out"
    assert found["record"] != measured(made)["record"]


def test_a_test_set_is_measured_whole_whatever_statistics_normalised_it(made: tuple[FeatureStore, Path]) -> None:
    own, alike = sets_of_test(made[0])
    one, other = (measured(made, features=(key,)) for key in (own, alike))
    assert one["images"] == other["images"] == 16
    assert "gap" not in one
    for name in ("agreement", "cls_cosine", "patch_cosine", "cls_cka", "patch_cka"):
        assert one[name] == pytest.approx(other[name], abs=1e-5)
    assert headline(
        {"evaluation": "agreement", "protocol": json.loads(Path(one["record"]).read_text())["protocol"], "results": one}
    ).data == ("test")


def test_a_test_sets_own_hold_out_can_be_asked_for(made: tuple[FeatureStore, Path]) -> None:
    held = held_out_images(made[0].dataset("test"), SHARE)
    assert measured(made, features=(sets_of_test(made[0])[1],), held_out=True)["images"] == len(held)


def test_another_codec_of_the_trained_images_is_measured_on_what_was_held_out(made: tuple[FeatureStore, Path]) -> None:
    found = measured(made, features=("tiny-int8",))
    assert found["images"] == measured(made)["images"]
    assert found["agreement"] == pytest.approx(measured(made)["agreement"], abs=2e-3)
    assert found["gap"]


def test_images_that_were_trained_on_need_a_number_and_say_so(made: tuple[FeatureStore, Path]) -> None:
    found = measured(made, "plain", images=24)
    assert found["images"] == 24
    record = json.loads(Path(found["record"]).read_text())
    assert record["protocol"]["test"]["trained_on"] is True
    assert headline(record).data == "photos, sample of 24 images, trained on"


def test_parts_of_a_run_are_measured_with_their_own_adapters(made: tuple[FeatureStore, Path]) -> None:
    fresh = evaluate_agreement(AgreementOptions(model=str(made[1] / "held" / "initial"), store=made[0].url))
    assert fresh["agreement"] < measured(made)["agreement"]
    assert Path(fresh["record"]).parent == made[1] / "held" / "initial" / "evaluations"


def test_live_targets_are_found_in_the_store(made: tuple[FeatureStore, Path], tiny_store: Any, tmp_path: Path) -> None:
    live = replace(HELD, stage=3, teacher=TeacherConfig("live"), run=replace(HELD.run, steps=1))
    train(live, made[0], ["tiny-teacher"], data="photos", out=tmp_path / "live", proxy=tiny_store.teacher_run)
    options = AgreementOptions(model=str(tmp_path / "live"), store=made[0].url)
    with pytest.raises(BadInput, match=r"are both of tiny-teacher over .*; give one with --features"):
        evaluate_agreement(options)  # an fp32 and an int8 set
    found = evaluate_agreement(replace(options, features=("tiny-teacher",)))
    assert found["images"] == len(held_out_images(made[0].dataset("photos"), SHARE))


def test_a_mixture_and_a_subset_are_measured_as_they_were_trained(mixed: FeatureStore, tmp_path: Path) -> None:  # noqa: F811
    recipe = replace(RECIPE, data=DataConfig(SHARES, hold_out=SHARE), run=replace(RECIPE.run, steps=1))
    mask = np.arange(20) % 2 == 0
    ImageSubset.create(mixed.objects, "even", mixed.dataset("many"), mask, {})
    train(recipe, mixed, ["teacher"], out=tmp_path / "run", subsets=("even",))
    found = evaluate_agreement(AgreementOptions(model=str(tmp_path / "run"), store=mixed.url))
    few, many = (held_out_images(mixed.dataset(name), SHARE) for name in ("few", "many"))
    assert found["images"] == len(few) + sum(mask[many])
    assert json.loads(Path(found["record"]).read_text())["protocol"]["test"]["dataset"].startswith("few + many@")


def test_what_cannot_be_measured_is_refused_with_what_to_do(made: tuple[FeatureStore, Path], tmp_path: Path) -> None:
    store, root = made
    for more, says in (
        ({}, r"was trained on all images of photos@\w+; give --features KEY"),
        ({"held_out": True}, "held no image out; give --features KEY"),
    ):
        with pytest.raises(BadInput, match=says):
            measured(made, "plain", **more)
    with pytest.raises(BadInput, match="has no adapters to teachers"):
        evaluate_agreement(AgreementOptions(model="dinov3-h+", store=store.url))
    with pytest.raises(BadInput, match="holds no trained model"):
        evaluate_agreement(AgreementOptions(model=str(tmp_path), store=store.url))
    with pytest.raises(BadInput, match="two feature sets of teacher tiny-teacher"):
        measured(made, features=("tiny-teacher", "tiny-int8"))
    with pytest.raises(BadInput, match="features is a list of names"):
        AgreementOptions(model="m", store="s", features="tiny")  # type: ignore[arg-type]
    empty = FeatureStore.create(str(tmp_path / "empty"))
    with pytest.raises(BadInput, match="lacks tiny-teacher@"):
        evaluate_agreement(AgreementOptions(model=str(root / "held"), store=empty.url))
    make_teacher(tmp_path / "stranger", seed=9)
    other = (TeacherRequest(str(tmp_path / "stranger")),)
    key = extract_features(ExtractOptions(store.url, "test", other, ViewSpec(), images_per_shard=8, statistics_batches=1, workers=0))
    with pytest.raises(CacheMismatch, match=r"was made by none of the teachers of .*weights_sha256"):
        measured(made, features=(key["features"]["stranger"],))


def test_copies_of_trained_images_are_warned_of(made: tuple[FeatureStore, Path], tiny_store: Any, tmp_path: Path, events: Any) -> None:
    seen, on_event = events
    store, root = made
    shutil.copytree(tiny_store.teacher_run.parent / "images" / "class0", tmp_path / "copies")
    build_index(store.objects, str(tmp_path / "copies"), "copies")
    options = ExtractOptions(
        store.url, "copies", (TeacherRequest(str(tiny_store.teacher_run)),), ViewSpec(), images_per_shard=8, statistics_batches=1, workers=0
    )
    key = extract_features(options)["features"]["teacher"]
    found = evaluate_agreement(AgreementOptions(model=str(root / "held"), store=store.url, features=(key,)), on_event)
    held = held_out_images(store.dataset("photos"), SHARE)
    trained = 8 - sum(store.dataset("photos").row(int(image)).id.startswith("class0") for image in held)
    assert found["images"] == 8
    assert any(f"{trained} of 8 measured images were trained on, by their bytes" in str(event.get("text")) for event in seen)


def test_the_command_says_what_it_would_do_and_does_it(made: tuple[FeatureStore, Path], capsys: CAPTURE) -> None:
    words = ["evaluate", "agreement", str(made[1] / "held"), "--store", made[0].url, "--json"]
    assert main([*words, "--dry-run"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["protocol"]["test"]["held_out"] == SHARE
    assert main([*words, "--held-out", "--images", "3"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["images"] == 3
    assert main([*words, "--images", "1"]) == 2
    assert main([*words[:3], "--json"]) == 2


def test_held_out_images_are_not_among_those_that_a_run_was_distilled_on(made: tuple[FeatureStore, Path]) -> None:
    """What kNN and zero-shot say of their test images, too."""
    store, root = made
    (images,) = distilled_on(store, root / "held").values()
    assert images is not None
    assert images.tolist() == sorted(set(range(24)) - set(held_out_images(store.dataset("photos"), SHARE).tolist()))
    assert list(distilled_on(store, root / "plain").values()) == [None]
