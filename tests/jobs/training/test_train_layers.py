"""Training from intermediate layers: cached as live, nothing without a weight, resumed, sampled; measured and exported by final tokens."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from eupe_pipeline.jobs.estimates.training import plan_training
from eupe_pipeline.jobs.evaluation.agreement import AgreementOptions, evaluate_agreement
from eupe_pipeline.jobs.extraction.extract import extract_features
from eupe_pipeline.jobs.extraction.options import ExtractOptions, TeacherRequest
from eupe_pipeline.jobs.training import launch
from eupe_pipeline.jobs.training.options import TrainOptions, Watch
from eupe_pipeline.pipeline.commands.main import main
from eupe_pipeline.storage.core.errors import BadInput, CacheMismatch, Interrupted
from eupe_pipeline.storage.images.indexing import build_index
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.upkeep.copying import copy_features
from eupe_pipeline.storage.views.view_spec import ViewSpec
from eupe_pipeline.student.data.targets import CachedTargets
from eupe_pipeline.student.export.adapter_chain import AdapterChain, write_chain
from eupe_pipeline.student.model.losses import patch_loss
from eupe_pipeline.student.model.recipe import DataConfig, LossConfig, RunConfig, TeacherConfig, TeacherWeights
from eupe_pipeline.student.model.student import Student, TargetSpec
from eupe_pipeline.student.training.run_folder import load_student, read_metrics, save_model
from eupe_pipeline.teachers.encoders.build import build_encoder
from eupe_pipeline.teachers.encoders.tokens import SampledTokens, Tokens

from ...conftest import write_images
from ..training_request import train
from .test_train import RECIPE, interrupt_after, losses

SHORT = replace(RECIPE, student=replace(RECIPE.student, sizes_px=(32,)), run=RunConfig(4, 6, checkpoint_every=2, log_every=1))
SETS: dict[str, dict[str, Any]] = {"plain": {}, "layered": {"layers": (1, 3)}, "sampled": {"layers": (1, 3), "tokens_per_view": 6}}


def weighted(**layers: float) -> Any:
    """The recipe with weights of layers: `b1` is block 1."""
    return replace(SHORT, teacher=TeacherConfig(layers={name.removeprefix("b"): weight for name, weight in layers.items()}))


@pytest.fixture(scope="module")
def kept(tiny_store: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[FeatureStore, dict[str, str], Path]:
    """A store with the tokens of a teacher of four blocks in several sets, their keys, and the teacher's run."""
    root = tmp_path_factory.mktemp("layers")
    torch.manual_seed(4)
    student = Student(build_encoder({"name": "vit-mini", "depth": 4, "layer_scale": 1.0}), 8, {"none": TargetSpec(None, 4, (1, 1))})
    save_model(student, root / "teacher" / "model", size_px=32, targets={})
    store = FeatureStore.create(str(root / "store"))
    build_index(store.objects, str(tiny_store.teacher_run.parent / "images"), "photos")
    request = (TeacherRequest(str(root / "teacher")),)
    options = ExtractOptions(store.url, "photos", request, ViewSpec(views_per_image=2, seed=3), 8, "fp32", batch_size=1, workers=0)
    keys = {name: extract_features(replace(options, **values))["features"]["teacher"] for name, values in SETS.items()}
    return store, keys, root / "teacher"


def run(kept: Any, name: str, out: Path, recipe: Any = SHORT, **more: Any) -> dict[str, Any]:
    store, keys, _ = kept
    return train(recipe, store, [keys[name]], data="photos", out=out, **more)


def terms(out: Path) -> list[dict[str, Any]]:
    return [line["losses"] for line in read_metrics(out)]


@pytest.mark.parametrize("weights", [{}, {"b1": 0.0, "b3": 0.0}])
def test_layers_without_a_weight_change_no_loss(kept: Any, tmp_path: Path, weights: dict[str, float], events: Any) -> None:
    seen, on_event = events
    run(kept, "plain", tmp_path / "plain")
    run(kept, "layered", tmp_path / "layered", weighted(**weights), on_event=on_event)
    assert losses(tmp_path / "layered") == losses(tmp_path / "plain")
    assert list(terms(tmp_path / "layered")[0]) == ["teacher"]
    weights_of = [(tmp_path / name / "model" / "adapters.safetensors").read_bytes() for name in ("plain", "layered")]
    assert weights_of[0] == weights_of[1]
    notes = [str(event["text"]) for event in seen if event["event"] == "note"]
    assert any("also stores layer 1, 3, which no weight asks for" in text for text in notes)


def test_cached_fp32_layers_train_bit_equal_to_the_live_teacher(kept: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache was made one view at a time, so the live teacher must also be, or matrix products round by batch size."""
    from eupe_pipeline.student.data.targets import LiveTargets

    made = LiveTargets.__init__
    monkeypatch.setattr(LiveTargets, "__init__", lambda self, *values, **named: made(self, *values, **named, forward_batch=1))
    recipe = weighted(b1=0.25, b3=2.0)
    run(kept, "layered", tmp_path / "cached", recipe)
    run(kept, "layered", tmp_path / "live", replace(recipe, teacher=replace(recipe.teacher, source="live")), proxy=kept[2])
    assert terms(tmp_path / "cached") == terms(tmp_path / "live")
    assert losses(tmp_path / "cached") == losses(tmp_path / "live")
    assert set(terms(tmp_path / "cached")[0]) == {"teacher", "teacher/1", "teacher/3"}


def test_the_loss_is_the_weighted_sum_of_the_terms_and_only_weighted_layers_are_read(kept: Any, tmp_path: Path) -> None:
    store, keys, _ = kept
    recipe = weighted(b1=0.25, b3=0.0)
    recipe = replace(recipe, teacher=replace(recipe.teacher, weights={"teacher": TeacherWeights(0.5, 2.0)}))
    run(kept, "layered", tmp_path / "run", recipe)
    for line in read_metrics(tmp_path / "run"):
        found = line["losses"]
        assert set(found) == {"teacher", "teacher/1"}
        total = 0.5 * found["teacher"]["cls"] + 2 * found["teacher"]["patch"] + 0.25 * found["teacher/1"]["patch"]
        assert line["loss"] == pytest.approx(total, rel=1e-6)
    reader = store.features(keys["layered"])
    source = CachedTargets({"teacher": reader}, {"teacher": (1,)})
    memory, rows = source.allocate(3), np.array([5, 40, 2])
    assert sorted(memory) == ["teacher/1/patch", "teacher/cls", "teacher/patch"]
    source.fill(rows[:2], memory, 0)
    source.fill(rows[2:], memory, 2)
    tokens = source.resolve(memory)["teacher/1"]
    assert isinstance(tokens, Tokens)
    assert tokens.cls_BD is None
    np.testing.assert_array_equal(tokens.patch_BHWD.numpy(), reader.decode_layer(reader.read_layers(rows, (1,))[1]))
    assert source.specs["teacher/1"] == TargetSpec(None, 48, (4, 4))


def test_losses_by_name_are_of_layers_as_well_and_their_class_term_is_the_teacher_s_alone(
    kept: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from eupe_pipeline.student.data.targets import LiveTargets

    made = LiveTargets.__init__
    monkeypatch.setattr(LiveTargets, "__init__", lambda self, *values, **named: made(self, *values, **named, forward_batch=1))
    recipe = replace(weighted(b1=0.25), loss=LossConfig(cls="angle", relation=0.5, shift=1.0))
    run(kept, "layered", tmp_path / "cached", recipe)
    run(kept, "layered", tmp_path / "live", replace(recipe, teacher=replace(recipe.teacher, source="live")), proxy=kept[2])
    assert terms(tmp_path / "cached") == terms(tmp_path / "live")
    for line in read_metrics(tmp_path / "cached"):
        of_teacher, of_layer = line["losses"]["teacher"], line["losses"]["teacher/1"]
        assert (set(of_teacher), set(of_layer)) == ({"cls", "patch", "relation"}, {"patch", "relation"})
        total = of_teacher["cls"] + of_teacher["patch"] + 0.5 * of_teacher["relation"]
        total += 0.25 * (of_layer["patch"] + 0.5 * of_layer["relation"])
        assert line["loss"] == pytest.approx(total, rel=1e-6)


def test_each_layer_has_an_adapter_of_its_own_on_the_student_s_final_tokens(kept: Any, tmp_path: Path) -> None:
    store, keys, _ = kept
    run(kept, "layered", tmp_path / "run", weighted(b1=1.0, b3=1.0))
    student = load_student(tmp_path / "run")
    assert student.teacher_names == ["teacher", "teacher/1", "teacher/3"]
    record = json.loads((tmp_path / "run" / "model" / "adapters.json").read_text())
    reader = store.features(keys["layered"])
    assert record["teachers"]["teacher/3"]["statistics"] == reader.statistics.layers[3].digest
    assert record["teachers"]["teacher"]["statistics"] == reader.statistics.digest
    pixels = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    tokens, predicted = student.encoder(student.encoder.preprocessing.apply(pixels)), student(pixels)
    heads: Any = student.adapters[2]
    assert torch.equal(predicted["teacher/3"].patch_BHWD, heads.patch(tokens.patch_BHWD))
    assert predicted["teacher/3"].cls_BD is None


def test_a_run_with_layers_resumes_bit_equal_and_refuses_other_weights(kept: Any, tmp_path: Path) -> None:
    recipe = weighted(b1=0.25, b3=2.0)
    run(kept, "layered", tmp_path / "whole", recipe)
    with pytest.raises(Interrupted):
        run(kept, "layered", tmp_path / "cut", recipe, on_event=interrupt_after(3))
    for other in (weighted(b1=0.25, b3=1.0), weighted(b1=0.25), SHORT):
        with pytest.raises(CacheMismatch, match=r"teacher\.layers|other teachers"):
            run(kept, "layered", tmp_path / "cut", other)
    run(kept, "layered", tmp_path / "cut", recipe)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_a_record_without_layers_is_as_before_there_were_any() -> None:
    assert "layers" not in SHORT.decisive()["teacher"]
    assert weighted(b1=1.0).decisive()["teacher"]["layers"] == {"1": 1.0}


def test_sampled_layers_are_compared_at_the_recorded_positions(kept: Any, tmp_path: Path) -> None:
    store, keys, _ = kept
    source = CachedTargets({"teacher": store.features(keys["sampled"])}, {"teacher": (3,)})
    memory, rows = source.allocate(2), np.array([7, 30])
    source.fill(rows, memory, 0)
    found = source.resolve(memory)
    final, layer = found["teacher"], found["teacher/3"]
    assert isinstance(final, SampledTokens)
    assert isinstance(layer, SampledTokens)
    assert torch.equal(layer.position_BT, final.position_BT)
    whole = store.features(keys["layered"])
    dense = torch.from_numpy(whole.decode_layer(whole.read_layers(rows, (3,))[3])).flatten(1, 2)
    assert torch.equal(layer.patch_BTD, torch.take_along_dim(dense, layer.position_BT.long()[..., None], dim=1))
    recipe = weighted(b3=1.0)
    run(kept, "sampled", tmp_path / "sampled", recipe)
    run(kept, "layered", tmp_path / "whole", recipe)
    some, all_of_them = (terms(tmp_path / name)[0]["teacher/3"]["patch"] for name in ("sampled", "whole"))
    assert some == pytest.approx(all_of_them, rel=0.1)
    assert patch_loss(layer.patch_BTD, layer.patch_BTD, LossConfig()).item() == pytest.approx(0, abs=1e-6)


def test_a_dropped_teacher_takes_its_layers_along(kept: Any, tmp_path: Path) -> None:
    recipe = weighted(b1=1.0)
    dropping = replace(recipe, teacher=replace(recipe.teacher, drop_probability=0.9))
    run(kept, "layered", tmp_path / "run", dropping)  # the only teacher always stays, and so do its layers
    run(kept, "layered", tmp_path / "never", recipe)
    assert losses(tmp_path / "run") == losses(tmp_path / "never")


def test_agreement_is_of_the_final_tokens_while_training_and_after(kept: Any, tmp_path: Path) -> None:
    store, _, _ = kept
    recipe = replace(weighted(b1=1.0), data=DataConfig(hold_out=0.25))
    run(kept, "layered", tmp_path / "run", recipe, watch=Watch("agreement", 2, images=20))
    watched = [line["agreement"]["held_out"] for line in read_metrics(tmp_path / "run") if "agreement" in line]
    assert len(watched) == 2
    assert list(watched[-1]["teachers"]) == ["teacher"]
    found = evaluate_agreement(AgreementOptions(model=str(tmp_path / "run"), store=store.url))
    assert list(found["teachers"]) == ["teacher"]
    assert found["agreement"] == pytest.approx(watched[-1]["agreement"], abs=1e-5)


def test_a_later_run_starts_from_one_with_layers_and_exported_adapters_leave_them_out(kept: Any, tmp_path: Path) -> None:
    store, _, _ = kept
    run(kept, "layered", tmp_path / "first", weighted(b1=1.0))
    start = replace(SHORT, student=replace(SHORT.student, init_from=str(tmp_path / "first")))
    for name in ("plain", "layered"):
        run(kept, name, tmp_path / name, start)
        assert losses(tmp_path / name)[0] < losses(tmp_path / "first")[0]
    with pytest.raises(CacheMismatch, match=r"adapters\.teachers\.teacher/3"):
        run(kept, "layered", tmp_path / "other", replace(start, teacher=TeacherConfig(layers={"3": 1.0})))
    (tmp_path / "chain").mkdir()
    write_chain(tmp_path / "first", None, store, tmp_path / "chain")
    assert AdapterChain(tmp_path / "chain").teachers() == ["teacher"]


def test_a_missing_shard_is_computed_with_its_layers_and_other_photos_get_the_same_layers(kept: Any, tmp_path: Path) -> None:
    store, keys, teacher = kept
    copied = FeatureStore.create(str(tmp_path / "store"))
    reader = copy_features(store, keys["layered"], copied)
    whole = {layer: reader.decode_layer(one) for layer, one in reader.read_layers(range(reader.rows), (1, 3)).items()}
    reader.group.discard(1)
    values: dict[str, Any] = {"on_miss": "compute", "teachers": (str(teacher),)}
    launch.train(TrainOptions(weighted(b1=1.0), copied.url, (reader.key,), tmp_path / "run", "photos", **values))
    again = FeatureStore.open(copied.url).features(reader.key)
    for layer, one in again.read_layers(range(again.rows), (1, 3)).items():
        np.testing.assert_allclose(again.decode_layer(one), whole[layer], rtol=1e-4, atol=1e-4)
    write_images(tmp_path / "more", 7)
    build_index(copied.objects, str(tmp_path / "more"), "more")
    mixed = replace(weighted(b3=1.0), data=DataConfig(shares={"photos": 0.5, "more": 0.5}))
    launch.train(TrainOptions(mixed, copied.url, ("teacher",), tmp_path / "mixed", **values))
    (other,) = [found for key in copied.list_features() if (found := copied.features(key)).views.dataset.name == "more"]
    assert other.layout == reader.layout
    assert other.statistics.described() == reader.statistics.described()
    assert all(set(line) == {"teacher", "teacher/3"} for line in terms(tmp_path / "mixed"))


def test_a_dry_run_counts_the_bytes_and_the_adapters_of_weighted_layers(kept: Any, tmp_path: Path) -> None:
    store, keys, _ = kept
    recipes = {"none": SHORT, "one": weighted(b1=1.0), "both": weighted(b1=1.0, b3=1.0)}
    plans = {
        name: plan_training(TrainOptions(recipe, store.url, (keys["layered"],), tmp_path / name, "photos"))
        for name, recipe in recipes.items()
    }
    view = {name: plan["reading"]["target_bytes_a_view"] for name, plan in plans.items()}
    grid = 4 * 16 * 48
    assert view == {"none": grid + 4 * 48, "one": 2 * grid + 4 * 48, "both": 3 * grid + 4 * 48}
    parameters = {name: plan["students"]["vit-mini"]["parameters"] for name, plan in plans.items()}
    assert parameters["both"] - parameters["one"] == parameters["one"] - parameters["none"] == 48 * 32 + 2 * 32 + 32 * 48
    batch = {name: plan["batch"] for name, plan in plans.items()}
    assert batch["one"]["targets_device_bytes"] - batch["none"]["targets_device_bytes"] == 6 * grid
    assert batch["one"]["prefetch"]["batch_bytes"] - batch["none"]["prefetch"]["batch_bytes"] == 6 * grid


@pytest.mark.parametrize(("layers", "text"), [
    ({"2": 1.0}, r"gives a weight to block 2, which no feature set stores beside its final tokens \(layers of teacher: 1, 3\)"),
    ({"2": 0.0}, "gives a weight to block 2"),
    ({"other/1": 1.0}, "names 'other/1', but the feature sets are of teacher"),
    ({"teacher/4": 1.0}, "gives a weight to block 4.*weight the final tokens by teacher.weights"),
])  # fmt: skip
def test_a_weight_of_what_is_not_stored_is_refused_before_the_run_s_folder_exists(
    kept: Any, tmp_path: Path, layers: dict[str, float], text: str
) -> None:
    store, keys, _ = kept
    recipe = replace(SHORT, teacher=TeacherConfig(layers=layers))
    with pytest.raises(BadInput, match=text):
        run(kept, "layered", tmp_path / "run", recipe)
    with pytest.raises(BadInput, match=text):
        plan_training(TrainOptions(recipe, store.url, (keys["layered"],), tmp_path / "run", "photos"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("key", ["0", "-1", "x", "teacher/", "04", ""])
def test_a_weight_of_no_block_is_refused_where_it_is_made(key: str) -> None:
    with pytest.raises(BadInput, match="number of a block"):
        TeacherConfig(layers={key: 1.0})
    with pytest.raises(BadInput, match="≥ 0"):
        TeacherConfig(layers={"4": -0.5})


def test_the_command_line_weights_layers_for_all_teachers_or_for_one(kept: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, keys, _ = kept
    words = [
        "train",
        "--stage",
        "2",
        "--store",
        store.url,
        "--data",
        "photos",
        "--features",
        keys["layered"],
        "--out",
        str(tmp_path / "run"),
    ]
    words += ["--student", "vit-mini", "--set", "student.sizes_px=[32]", "--set", "views.photometric=none", "--dry-run", "--json"]
    asked = ["--layer-weight", "1=0.5", "--layer-weight", "teacher/3=2"]
    assert main([*words, *asked]) == 0
    plan = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert plan["reading"]["target_bytes_a_view"] == 4 * (3 * 16 * 48 + 48)
    assert main([*words, "--set", "teacher.layers.1=0.5", "--set", "teacher.layers.teacher/3=2"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["reading"] == plan["reading"]
    for bad, text in (("1", "BLOCK=WEIGHT"), ("1=x", "with a number as weight"), ("x=1", "number of a block"), ("2=1", "block 2")):
        assert main([*words, "--layer-weight", bad]) == 2
        assert text in "".join(capsys.readouterr())
