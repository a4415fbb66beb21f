"""Agreement while training runs: it changes nothing, it is what a plain computation gives, it chooses the best checkpoint and resumes."""

import json
import shutil
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from eupe_pipeline.jobs.training.data import Part, run_order
from eupe_pipeline.jobs.training.evaluate_while_training import MEASURES
from eupe_pipeline.jobs.training.options import TrainOptions, Watch
from eupe_pipeline.jobs.training.train import initial_student
from eupe_pipeline.pipeline.commands.main import main
from eupe_pipeline.pipeline.commands.train import watch_of
from eupe_pipeline.storage.core.choices import TRAINING_EVALUATIONS
from eupe_pipeline.storage.core.errors import BadInput, Interrupted
from eupe_pipeline.storage.images.hold_out import held_out_images, hold_out_ranks
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.upkeep.copying import copy_features
from eupe_pipeline.storage.views.pixels import view_pixels
from eupe_pipeline.storage.views.view_spec import Input
from eupe_pipeline.student.data.targets import CachedTargets
from eupe_pipeline.student.model.losses import align_grids
from eupe_pipeline.student.model.ranks import Ranks
from eupe_pipeline.student.model.recipe import DataConfig, TeacherConfig
from eupe_pipeline.student.training.run_folder import load_model, read_metrics

from ...storage.faulty_s3 import FaultyServer
from ...student.gloo import on_ranks
from ..training_request import train
from .test_train import RECIPE, interrupt_after
from .test_train_mixture import SHARES, mixed  # noqa: F401  # a fixture

SHARE = 0.25
HELD = replace(RECIPE, data=DataConfig(hold_out=SHARE))
WATCH = Watch("agreement", 2, images=20)


def run(tiny: Any, out: Path, watch: Watch | None = WATCH, recipe: Any = HELD, **more: Any) -> dict[str, Any]:
    return train(recipe, tiny.store, ["tiny-teacher"], data="photos", out=out, watch=watch, **more)


def losses(out: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(out) if "loss" in line]


def measured(out: Path, key: str = "agreement") -> dict[int, dict[str, Any]]:
    return {line["step"]: line[key] for line in read_metrics(out) if key in line}


def oracle(tiny: Any, run: Path, images: list[int]) -> dict[str, float]:
    """Cosines of the finished run over the first view of each image, one forward, without anything of the measurement's own."""
    reader = tiny.features()
    student = initial_student(RECIPE, CachedTargets({"tiny-teacher": reader}).specs)
    load_model(student, run, {"tiny-teacher": reader.statistics.digest})
    rows = np.array(images) * 2
    pixels = torch.from_numpy(view_pixels(reader.views, rows, Input(24, "bicubic")))
    stored = reader.read(rows)
    assert stored.cls is not None
    with torch.no_grad():
        predicted = student.eval()(pixels)["tiny-teacher"]
        one, other = align_grids(predicted.patch_BHWD, torch.from_numpy(reader.decode(stored)))
        cls = torch.cosine_similarity(predicted.cls_BD, torch.from_numpy(np.asarray(stored.cls, np.float32)))
    patch = torch.cosine_similarity(one, other, dim=-1).mean()
    return {"cls_cosine": float(cls.mean()), "patch_cosine": float(patch), "agreement": float(cls.mean() + patch) / 2}


def test_every_name_has_its_row() -> None:
    assert tuple(MEASURES) == TRAINING_EVALUATIONS


def test_it_is_the_cosine_of_both_kinds_of_tokens_on_images_of_both_sides(tiny_store: Any, tmp_path: Path) -> None:
    run(tiny_store, tmp_path / "run")
    held = held_out_images(tiny_store.store.dataset("photos"), SHARE).tolist()
    last = measured(tmp_path / "run")[8]
    assert last["images"] == len(held) < 20
    assert {name: last["held_out"][name] for name in ("agreement", "cls_cosine", "patch_cosine")} == pytest.approx(
        oracle(tiny_store, tmp_path / "run", held), abs=1e-6
    )
    assert last["held_out"]["teachers"]["tiny-teacher"]["cls"]["cosine"] == last["held_out"]["cls_cosine"]
    assert 0 < last["held_out"]["cls_cka"] <= 1
    assert last["gap"]["agreement"] == last["trained"]["agreement"] - last["held_out"]["agreement"]
    ranks = hold_out_ranks(tiny_store.store.dataset("photos").ids(0, 24))
    next_ones = np.argsort(ranks)[len(held) : 2 * len(held)].tolist()
    assert last["trained"]["agreement"] == pytest.approx(oracle(tiny_store, tmp_path / "run", next_ones)["agreement"], abs=1e-6)


def test_losses_and_weights_are_bit_equal_with_and_without_it(tiny_store: Any, tmp_path: Path) -> None:
    dropping = replace(HELD, student=replace(HELD.student, drop_path=0.3, ema=0.9))
    run(tiny_store, tmp_path / "plain", None, dropping)
    run(tiny_store, tmp_path / "watched", WATCH, dropping)
    assert losses(tmp_path / "watched") == losses(tmp_path / "plain")
    one, other = ((tmp_path / name / "model" / "backbone.safetensors").read_bytes() for name in ("plain", "watched"))
    assert one == other
    assert sorted(measured(tmp_path / "watched", "agreement_average")) == [2, 4, 6, 8]


def test_results_are_told_and_stand_in_metrics_and_tensorboard(tiny_store: Any, tmp_path: Path, events: Any) -> None:
    seen, on_event = events
    run(tiny_store, tmp_path / "run", on_event=on_event)
    found = measured(tmp_path / "run")
    assert [event["step"] for event in seen if event["event"] == "evaluation"] == sorted(found) == [2, 4, 6, 8]
    said = next(event["text"] for event in seen if event["event"] == "note" and "step 4" in event["text"])
    assert f"vit-mini agreement {found[4]['held_out']['agreement']:.3f} held out, {found[4]['trained']['agreement']:.3f} trained" in said
    events_file = next((tmp_path / "run" / "tensorboard").glob("events*"))
    assert b"agreement/held_out/agreement" in events_file.read_bytes()
    assert b"agreement/gap/agreement" in events_file.read_bytes()
    (warning,) = [event["text"] for event in seen if event["event"] == "warning"]
    assert f"agreement is of {found[4]['images']} images only, so it says little" in warning


def figures(out: Path) -> dict[int, Any]:
    return {step: [one["held_out"], one["trained"]] for step, one in measured(out).items()}


def test_a_run_that_goes_on_repeats_none_and_leaves_none_out(tiny_store: Any, tmp_path: Path) -> None:
    run(tiny_store, tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(tiny_store, tmp_path / "stopped", on_event=interrupt_after(4))
    run(tiny_store, tmp_path / "stopped")
    assert figures(tmp_path / "stopped") == figures(tmp_path / "whole")


def scores(out: Path) -> dict[int, Any]:
    return {
        int(path.parent.name.rpartition("-")[2]): json.loads(path.read_text())["score"]
        for path in (out / "checkpoints").glob("*/checkpoint.json")
    }


def test_the_best_checkpoint_is_the_one_of_the_highest_held_out_agreement(tiny_store: Any, tmp_path: Path) -> None:
    recipe = replace(HELD, run=replace(HELD.run, checkpoint_every=2, keep_best=True, keep_checkpoints=8))
    summary = run(tiny_store, tmp_path / "run", recipe=recipe)
    held_out = {step: one["held_out"]["agreement"] for step, one in measured(tmp_path / "run").items()}
    assert {step: (one["evaluation"], one["evaluated_by"]) for step, one in scores(tmp_path / "run").items()} == {
        step: (value, "agreement") for step, value in held_out.items()
    }
    assert summary["best_step"] == max(held_out, key=lambda step: held_out[step])
    assert (tmp_path / "run" / "best" / "model" / "adapters.safetensors").is_file()


def test_figures_of_another_evaluation_do_not_compete(tiny_store: Any, tmp_path: Path) -> None:
    """kNN is in percent, agreement at most 1: a run that goes on with the other must not keep the first one's checkpoint."""
    recipe = replace(HELD, run=replace(HELD.run, checkpoint_every=2, keep_best=True, keep_checkpoints=8))
    with pytest.raises(Interrupted):
        run(tiny_store, tmp_path / "run", Watch("knn", 2, "photos", 24, allow_overlap=True), recipe, on_event=interrupt_after(4))
    summary = run(tiny_store, tmp_path / "run", WATCH, recipe)
    assert {step: one["evaluated_by"] for step, one in scores(tmp_path / "run").items()} == {
        2: "knn", 4: "knn", 6: "agreement", 8: "agreement",
    }  # fmt: skip
    assert summary["best_step"] in (6, 8)


def train_on_rank(ranks: Ranks, url: str, out: Path, parallel: str) -> None:
    recipe = replace(HELD, run=replace(RECIPE.run, steps=2, parallel=parallel))
    train(recipe, FeatureStore.open(url), ["tiny-teacher"], data="photos", out=out, ranks=ranks, watch=WATCH)


@pytest.mark.long
def test_sharded_students_are_measured_whole(tiny_store: Any, tmp_path: Path) -> None:
    on_ranks(2, tmp_path, train_on_rank, tiny_store.store.url, tmp_path / "run", "fsdp")
    held = held_out_images(tiny_store.store.dataset("photos"), SHARE).tolist()
    found = measured(tmp_path / "run")[2]["held_out"]
    assert found["agreement"] == pytest.approx(oracle(tiny_store, tmp_path / "run", held)["agreement"], abs=1e-6)


def test_live_targets_are_measured_against_the_stored_ones(tiny_store: Any, tmp_path: Path) -> None:
    recipe = replace(HELD, stage=3, teacher=TeacherConfig("live", (16, 24)), student=replace(HELD.student, sizes_px=(16, 24)))
    run(tiny_store, tmp_path / "run", recipe=replace(recipe, run=replace(recipe.run, steps=2)), proxy=tiny_store.teacher_run)
    held = held_out_images(tiny_store.store.dataset("photos"), SHARE).tolist()
    found = measured(tmp_path / "run")[2]["held_out"]
    assert found["agreement"] == pytest.approx(oracle(tiny_store, tmp_path / "run", held)["agreement"], abs=1e-6)


def test_several_teachers_count_alike(tiny_store: Any, tmp_path: Path) -> None:
    recipe = replace(HELD, run=replace(HELD.run, steps=2))
    train(recipe, tiny_store.store, ["tiny-teacher", "tiny-int8"], data="photos", out=tmp_path / "run", watch=WATCH)
    found = measured(tmp_path / "run")[2]["held_out"]
    by_name = {name: one["agreement"] for name, one in found["teachers"].items()}
    assert set(by_name) == {"tiny-teacher", "tiny-int8"}
    assert found["agreement"] == pytest.approx(sum(by_name.values()) / 2)


def test_a_mixture_is_measured_over_all_of_its_datasets(mixed: FeatureStore, tmp_path: Path) -> None:  # noqa: F811
    recipe = replace(RECIPE, data=DataConfig(SHARES, hold_out=SHARE), run=replace(RECIPE.run, steps=2))
    train(recipe, mixed, ["teacher"], out=tmp_path / "run", watch=WATCH)
    held = sum(len(held_out_images(mixed.dataset(name), SHARE)) for name in SHARES)
    assert measured(tmp_path / "run")[2]["images"] == held


def test_images_without_tokens_are_left_out(tiny_store: Any, tmp_path: Path) -> None:
    held = held_out_images(tiny_store.store.dataset("photos"), 0.6).tolist()
    assert 5 in held  # which failed
    recipe = replace(RECIPE, data=DataConfig(hold_out=0.6), run=replace(RECIPE.run, steps=2))
    train(recipe, tiny_store.store, ["tiny-gaps"], data="photos", out=tmp_path / "run", watch=WATCH)
    assert measured(tmp_path / "run")[2]["images"] == min(len(held) - 1, 24 - len(held))


def test_beside_an_extraction_it_waits_for_nothing(tiny_store: Any, tmp_path: Path, events: Any) -> None:
    """The shards of the last images are not there; none of them is drawn in the first step."""
    seen, on_event = events
    shutil.copytree(tiny_store.store.url, tmp_path / "store")
    store = FeatureStore.open(tmp_path / "store")
    reader = store.features("tiny-teacher")
    recipe = replace(
        HELD, data=DataConfig(hold_out=SHARE, order="shards", window_shards=1), run=replace(RECIPE.run, steps=1, batch_size=2)
    )  # fmt: skip
    needed = run_order(replace(recipe, data=replace(recipe.data, replace_failed=True)), [Part("photos", 1.0, {"t": reader})], store, 1)
    for shard in set(range(reader.shards)) - set((needed.batch(0, 2).row_B // reader.group.shard_rows).tolist()):
        reader.group.discard(shard)
    train(
        recipe, FeatureStore.open(store.url), ["tiny-teacher"], data="photos", out=tmp_path / "run", watch=WATCH, follow_s=60.0,
        on_event=on_event,
    )  # fmt: skip
    assert not measured(tmp_path / "run")
    assert any("no agreement yet: the tokens of its images are still being extracted" in str(event.get("text")) for event in seen)


def test_what_cannot_be_measured_is_refused_with_what_to_do(tiny_store: Any, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="give --hold-out 1% as well"):
        TrainOptions(RECIPE, tiny_store.store.url, ("tiny-teacher",), tmp_path / "run", "photos", watch=WATCH)
    with pytest.raises(BadInput, match="without labels; leave --evaluate-data out"):
        watch_of("agreement", 2, "photos", 24)
    with pytest.raises(BadInput, match="leave --allow-overlap out"):
        watch_of("agreement", 2, None, 24, True)
    with pytest.raises(BadInput, match="go together"):
        watch_of("knn", 2, None, 24)
    assert watch_of("agreement", 2, None, 24) == Watch("agreement", 2, "", 24)


@pytest.mark.parametrize(("words", "says"), [
    ("--evaluate agreement", "nothing is; give --hold-out 1% as well"),
    ("--evaluate agreement --hold-out 1% --evaluate-data photos", "without labels; leave --evaluate-data out"),
    ("--evaluate agreement --hold-out 1% --allow-overlap", "leave --allow-overlap out"),
    ("--evaluate agreement --hold-out 1%", "holds out none of 24 images"),
    ("--evaluate agreemnt --hold-out 1%", "'agreemnt' is not one of 'knn', 'agreement'"),
    ("--evaluate knn --hold-out 25%", "kNN needs a labelled dataset"),
])  # fmt: skip
def test_a_newcomers_mistake_is_said_with_status_2(
    tiny_store: Any, tmp_path: Path, words: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    train_words = f"train --stage 2 --recipe demo --store {tiny_store.store.url} --data photos --features tiny-teacher --out {tmp_path}/run"
    assert main([*train_words.split(), "--set", "student.sizes_px=[16]", *words.split()]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_a_store_on_s3_gives_the_figures_of_a_local_copy(tiny_store: Any, bucket: FaultyServer, tmp_path: Path) -> None:
    url = f"s3://runs/{uuid.uuid4().hex}"
    key = copy_features(tiny_store.store, tiny_store.features().key, FeatureStore.create(url)).key
    store = FeatureStore.open(url, shard_cache=tmp_path / "cache")
    recipe = replace(HELD, data=DataConfig(hold_out=SHARE, order="shards"), run=replace(RECIPE.run, steps=2))
    train(recipe, store, [key], data="photos", out=tmp_path / "s3", shard_cache=tmp_path / "cache", watch=WATCH)
    run(tiny_store, tmp_path / "local", WATCH, recipe)
    assert figures(tmp_path / "s3") == figures(tmp_path / "local")
