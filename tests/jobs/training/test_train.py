"""Training end to end over a tiny real store: exactness, resume, three stages, and every refusal before the first step."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from eupe_pipeline.jobs.training.data import excluded_images, open_features
from eupe_pipeline.jobs.training.train import initial_student
from eupe_pipeline.storage.core.errors import BadInput, CacheMismatch, Interrupted
from eupe_pipeline.student.data.targets import LiveTargets
from eupe_pipeline.student.model.recipe import (
    AdapterConfig,
    OptimizerConfig,
    RunConfig,
    StudentConfig,
    TeacherConfig,
    TeacherWeights,
    TrainRecipe,
)
from eupe_pipeline.student.model.student import TargetSpec
from eupe_pipeline.student.training.run_folder import read_metrics

from ..training_request import train

STEPS = 8
RECIPE = TrainRecipe(
    stage=2,
    precision="fp32",
    device="cpu",
    student=StudentConfig("vit-mini", {"depth": 1, "layer_scale": 0.5}, (24,)),
    adapter=AdapterConfig(32),
    optimizer=OptimizerConfig(learning_rate=1e-2, warmup_share=0.1),
    run=RunConfig(STEPS, 6, checkpoint_every=3, log_every=1, reader_threads=2),
)
LIVE = replace(RECIPE, teacher=TeacherConfig("live"))


def losses(out: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(out)]


def run(tiny: Any, recipe: TrainRecipe, out: Path, features: tuple[str, ...] = ("tiny-teacher",), **more: Any) -> dict[str, Any]:
    return train(recipe, tiny.store, features, data="photos", out=out, **more)


def interrupt_after(step: int) -> Any:
    """An event callback that sends SIGTERM to this process once `step` steps are logged."""

    def on_event(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return on_event


def test_a_run_writes_model_metrics_events_and_summary(tiny_store: Any, tmp_path: Path, events: Any) -> None:
    seen, on_event = events
    out = tmp_path / "run"
    summary = run(tiny_store, RECIPE, out, on_event=on_event, origins={"run.steps": "--set"})
    assert {path.name for path in (out / "model").iterdir()} == {
        "model.json",
        "backbone.safetensors",
        "adapters.json",
        "adapters.safetensors",
    }
    assert [line["step"] for line in read_metrics(out)] == list(range(1, STEPS + 1))
    assert list((out / "tensorboard").glob("events*"))
    assert [path.name for path in sorted((out / "checkpoints").iterdir())] == ["step-0000006", "step-0000008"]
    recorded = json.loads((out / "recipe.json").read_text())
    assert recorded["recipe"]["run"]["steps"] == STEPS
    assert recorded["origins"] == {"run.steps": "--set"}
    assert json.loads((out / "identities.json").read_text())["targets"]["tiny-teacher"]["features"].startswith("tiny-teacher@")
    assert summary["steps"] == STEPS
    assert set(summary["losses"]["tiny-teacher"]) == {"cls", "patch"}
    assert summary["images_per_s"] > 0
    assert 0 <= summary["wait_share"] <= 1
    assert (seen[0]["event"], seen[-1]["event"]) == ("start", "end")
    assert seen[0]["prefetch"] == "64 batches of 0.0 MB  # the most that are made ahead"
    batch_bytes = 6 * (2 * 2 * 48 * 4 + 48 * 4 + 24 * 24 * 3 + 32)
    assert summary["prefetch"] == {"batches": 64, "batch_bytes": batch_bytes, "bytes": 64 * batch_bytes, "limit_bytes": 4096 * 10**6}


def test_the_loss_falls(tiny_store: Any, tmp_path: Path) -> None:
    run(tiny_store, replace(RECIPE, run=replace(RECIPE.run, steps=60, checkpoint_every=60)), tmp_path / "run")
    curve = losses(tmp_path / "run")
    assert sum(curve[-5:]) < 0.8 * sum(curve[:5])


def test_cached_fp32_targets_train_bit_equal_to_the_live_teacher(tiny_store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache was made one view at a time, so the live teacher must also be, or matrix products round by batch size."""

    class OneByOne(LiveTargets):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, forward_batch=1, **kwargs)

    monkeypatch.setattr("eupe_pipeline.jobs.training.train.LiveTargets", OneByOne)
    long = replace(RECIPE.run, steps=50, checkpoint_every=50)
    run(tiny_store, replace(RECIPE, run=long), tmp_path / "cached")
    run(tiny_store, replace(LIVE, run=long), tmp_path / "live", proxy=tiny_store.teacher_run)
    assert losses(tmp_path / "cached") == losses(tmp_path / "live")


def test_int8_targets_stay_close_to_fp32_ones(tiny_store: Any, tmp_path: Path) -> None:
    run(tiny_store, RECIPE, tmp_path / "exact")
    run(tiny_store, RECIPE, tmp_path / "int8", ("tiny-int8",))
    for one, other in zip(losses(tmp_path / "exact"), losses(tmp_path / "int8"), strict=True):
        assert one == pytest.approx(other, abs=2e-3)


@pytest.mark.fault(7, "recovered")
@pytest.mark.parametrize("stop", range(1, STEPS))
def test_a_run_stopped_at_any_step_goes_on_bit_equal(tiny_store: Any, tmp_path: Path, stop: int) -> None:
    run(tiny_store, RECIPE, tmp_path / "whole")
    with pytest.raises(Interrupted, match=f"stopped after step {stop} of {STEPS}"):
        run(tiny_store, RECIPE, tmp_path / "stopped", on_event=interrupt_after(stop))
    summary = run(tiny_store, RECIPE, tmp_path / "stopped")
    assert summary["resumed_from"] == stop
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
    weights = [(tmp_path / name / "model" / "backbone.safetensors").read_bytes() for name in ("whole", "stopped")]
    assert weights[0] == weights[1]


@pytest.mark.fault(13, "recovered")
def test_a_run_killed_between_checkpoints_repeats_only_the_steps_since(tiny_store: Any, tmp_path: Path) -> None:
    def die(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == 5:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        run(tiny_store, RECIPE, tmp_path / "run", on_event=die)
    assert run(tiny_store, RECIPE, tmp_path / "run")["resumed_from"] == 3
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == list(range(1, STEPS + 1))


def test_the_best_checkpoint_survives_and_becomes_a_model_of_its_own(tiny_store: Any, tmp_path: Path) -> None:
    """A rate that is far too high at its peak makes the loss rise again, so that the best lies early."""
    rising = replace(RECIPE.optimizer, learning_rate=0.5, warmup_share=0.9, clip_norm=0.0)
    recipe = replace(RECIPE, optimizer=rising, run=replace(RECIPE.run, steps=30, checkpoint_every=2, keep_best=True, keep_checkpoints=1))
    summary = run(tiny_store, recipe, tmp_path / "run")
    kept = [int(path.name[-7:]) for path in sorted((tmp_path / "run" / "checkpoints").iterdir())]
    curve = losses(tmp_path / "run")
    smoothed = {step: sum(curve[:step]) / step for step in range(2, 31, 2)}
    assert kept == sorted({summary["best_step"], 30})
    assert summary["best_step"] == min(smoothed, key=lambda step: smoothed[step]) < 30
    models = [(tmp_path / "run" / kind / "backbone.safetensors").read_bytes() for kind in ("best/model", "model")]
    assert models[0] != models[1]
    assert run(tiny_store, recipe, tmp_path / "run") == {**summary, "already": True}


def test_the_best_checkpoint_is_not_the_one_whose_step_dropped_a_teacher(tiny_store: Any, tmp_path: Path) -> None:
    drops = TeacherConfig(drop_probability=0.6, weights={"tiny-int8": TeacherWeights(cls=2.0, patch=0.5)})
    recipe = replace(RECIPE, teacher=drops, run=replace(RECIPE.run, checkpoint_every=1, keep_best=True))
    summary = run(tiny_store, recipe, tmp_path / "run", ("tiny-teacher", "tiny-int8"))
    lines = read_metrics(tmp_path / "run")
    factors = {("tiny-teacher", "cls"): 1.0, ("tiny-teacher", "patch"): 1.0, ("tiny-int8", "cls"): 2.0, ("tiny-int8", "patch"): 0.5}
    whole = [sum(factor * line["losses"][name][term] for (name, term), factor in factors.items()) for line in lines]
    smoothed, dropping = ([sum(curve[:step]) / step for step in range(1, STEPS + 1)] for curve in (whole, losses(tmp_path / "run")))
    best, misled = (1 + curve.index(min(curve)) for curve in (smoothed, dropping))
    assert summary["best_step"] == best != misled


def test_a_finished_run_says_so_and_returns_at_once(tiny_store: Any, tmp_path: Path, events: Any) -> None:
    seen, on_event = events
    first = run(tiny_store, RECIPE, tmp_path / "run")
    again = run(tiny_store, RECIPE, tmp_path / "run", on_event=on_event)
    assert not first["already"]
    assert again == {**first, "already": True}
    assert [event["event"] for event in seen] == ["already"]


def test_a_run_begun_with_another_recipe_is_refused_by_field(tiny_store: Any, tmp_path: Path) -> None:
    run(tiny_store, RECIPE, tmp_path / "run")
    other = replace(RECIPE, optimizer=replace(RECIPE.optimizer, learning_rate=0.02))
    with pytest.raises(CacheMismatch, match=r"optimizer.learning_rate: got 0.02, wanted 0.01"):
        run(tiny_store, other, tmp_path / "run")


def test_threads_and_logging_may_change_between_resumes(tiny_store: Any, tmp_path: Path) -> None:
    run(tiny_store, RECIPE, tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(tiny_store, RECIPE, tmp_path / "run", on_event=interrupt_after(4))
    run(tiny_store, replace(RECIPE, run=replace(RECIPE.run, reader_threads=5, prefetch_megabytes=1)), tmp_path / "run")
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_a_bound_on_memory_that_cannot_be_kept_is_refused_before_the_run_s_folder_exists(tiny_store: Any, tmp_path: Path) -> None:
    large = replace(RECIPE, run=replace(RECIPE.run, batch_size=400, prefetch_megabytes=1))
    with pytest.raises(BadInput, match=r"prefetch_megabytes = 1 is too little: a batch of this run takes 1\.1 MB .* set it to 3 or more"):
        run(tiny_store, large, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_begun_on_other_targets_is_refused_by_field(tiny_store: Any, tmp_path: Path) -> None:
    run(tiny_store, RECIPE, tmp_path / "run")
    with pytest.raises(CacheMismatch, match="learns from something else"):
        run(tiny_store, RECIPE, tmp_path / "run", ("tiny-int8",))


def test_stage_3_starts_from_backbone_and_adapters_and_draws_both_sizes(tiny_store: Any, tmp_path: Path) -> None:
    run(tiny_store, RECIPE, tmp_path / "stage2")
    student = replace(RECIPE.student, sizes_px=(16, 24, 32), init_from=str(tmp_path / "stage2"))
    stage3 = replace(LIVE, stage=3, student=student, teacher=TeacherConfig("live", (16, 24)), run=replace(RECIPE.run, steps=24))
    summary = run(tiny_store, stage3, tmp_path / "stage3", proxy=tiny_store.teacher_run)
    sizes = [(line["sizes_px"]["student"], line["sizes_px"]["tiny-teacher"]) for line in read_metrics(tmp_path / "stage3")]
    assert len(set(sizes)) >= 5
    assert losses(tmp_path / "stage3")[0] < losses(tmp_path / "stage2")[0]
    assert not (tmp_path / "stage3" / "initial").exists()
    assert summary["stage"] == 3


def test_a_start_from_a_run_with_other_adapters_is_refused(tiny_store: Any, tmp_path: Path) -> None:
    run(tiny_store, RECIPE, tmp_path / "stage2")
    wider = replace(RECIPE, adapter=AdapterConfig(48), student=replace(RECIPE.student, init_from=str(tmp_path / "stage2")))
    with pytest.raises(CacheMismatch, match=r"adapters\.teachers\.tiny-teacher\.shapes"):
        run(tiny_store, wider, tmp_path / "next")


def test_a_start_from_an_unfinished_run_is_refused(tiny_store: Any, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="holds no trained model"):
        run(tiny_store, replace(RECIPE, student=replace(RECIPE.student, init_from=str(tmp_path / "none"))), tmp_path / "next")


def test_two_teachers_are_distilled_at_once_with_weights(tiny_store: Any, tmp_path: Path) -> None:
    weights = {"tiny-int8": TeacherWeights(cls=0.0, patch=2.0)}
    recipe = replace(RECIPE, stage=1, teacher=TeacherConfig(weights=weights))
    run(tiny_store, recipe, tmp_path / "run", ("tiny-teacher", "tiny-int8"))
    line = read_metrics(tmp_path / "run")[-1]
    one, other = line["losses"]["tiny-teacher"], line["losses"]["tiny-int8"]
    assert line["loss"] == pytest.approx(one["cls"] + one["patch"] + 2 * other["patch"], rel=1e-5)


def test_feature_sets_over_other_views_are_refused_by_field(tiny_store: Any, tmp_path: Path) -> None:
    with pytest.raises(CacheMismatch, match=r"views\.seed: got 4, wanted 3"):
        run(tiny_store, RECIPE, tmp_path / "run", ("tiny-teacher", "tiny-gaps"))
    assert not (tmp_path / "run").exists()


def test_an_unknown_feature_set_is_refused_and_the_known_are_listed(tiny_store: Any, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="tiny-teacher@"):
        run(tiny_store, RECIPE, tmp_path / "run", ("tiny-teecher",))


def test_images_without_tokens_are_never_drawn(tiny_store: Any, tmp_path: Path) -> None:
    readers = open_features(tiny_store.store, ["tiny-gaps"], "photos")
    assert excluded_images(readers.values()).tolist() == [5]
    recipe = replace(RECIPE, run=replace(RECIPE.run, steps=20))  # five epochs
    run(tiny_store, recipe, tmp_path / "run", ("tiny-gaps",))


def test_a_live_teacher_other_than_the_cached_one_is_refused(tiny_store: Any, tmp_path: Path) -> None:
    run(tiny_store, RECIPE, tmp_path / "other")
    with pytest.raises(CacheMismatch, match="weights_sha256"):
        run(tiny_store, LIVE, tmp_path / "run", proxy=tmp_path / "other")


def test_a_live_run_records_its_views_because_its_teacher_does_not_name_them(tiny_store: Any, tmp_path: Path) -> None:
    run(tiny_store, LIVE, tmp_path / "run", proxy=tiny_store.teacher_run)
    recorded = json.loads((tmp_path / "run" / "identities.json").read_text())
    assert recorded["views"] == [tiny_store.features("tiny-teacher").views.key]


def test_live_targets_without_a_teacher_are_refused(tiny_store: Any, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="--proxy RUN"):
        run(tiny_store, LIVE, tmp_path / "run")


def test_weights_for_a_teacher_that_is_not_there_are_refused(tiny_store: Any, tmp_path: Path) -> None:
    recipe = replace(RECIPE, teacher=TeacherConfig(weights={"dinov3-h+": TeacherWeights()}))
    with pytest.raises(BadInput, match=r"dinov3-h\+"):
        run(tiny_store, recipe, tmp_path / "run")


def test_feature_sets_of_other_teachers_than_the_recipes_are_refused(tiny_store: Any, tmp_path: Path) -> None:
    recipe = replace(RECIPE, teacher=TeacherConfig(names=("pecore-g", "tiny-teacher")))
    with pytest.raises(BadInput, match="about the teachers pecore-g, tiny-teacher"):
        run(tiny_store, recipe, tmp_path / "run")


def test_a_folder_with_other_things_is_refused(tiny_store: Any, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    with pytest.raises(BadInput, match="is not empty"):
        run(tiny_store, RECIPE, tmp_path / "run")
    assert (tmp_path / "run" / "thesis.txt").read_text() == "mine"


def test_a_run_that_lost_its_record_is_refused_and_stays_as_it_is(tiny_store: Any, tmp_path: Path) -> None:
    run(tiny_store, replace(RECIPE, run=replace(RECIPE.run, steps=3)), tmp_path / "run")
    (tmp_path / "run" / "recipe.json").unlink()
    before = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*"))
    with pytest.raises(BadInput, match="is not empty and holds no run"):
        run(tiny_store, RECIPE, tmp_path / "run")
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == before


def test_a_loss_that_is_not_finite_stops_before_the_weights_change(tiny_store: Any, tmp_path: Path) -> None:
    from eupe_pipeline.student.training.learner import TrainingDiverged

    explosive = replace(RECIPE, optimizer=replace(RECIPE.optimizer, learning_rate=9.0, weight_decay=9.0, clip_norm=0.0))
    explosive = replace(explosive, run=replace(RECIPE.run, steps=400, checkpoint_every=400, log_every=400))
    with pytest.raises(TrainingDiverged, match=r"Images of this batch: class"):
        run(tiny_store, explosive, tmp_path / "run")


def test_the_initial_student_depends_on_the_seed_alone() -> None:
    specs = {"t": TargetSpec(8, 8, (2, 2))}
    torch.manual_seed(99)
    one = initial_student(RECIPE, specs).state_dict()
    other = initial_student(RECIPE, specs).state_dict()
    changed = initial_student(replace(RECIPE, seed=1), specs).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert any(not torch.equal(one[name], changed[name]) for name in one)


def test_a_size_off_the_stride_is_refused() -> None:
    with pytest.raises(BadInput, match="multiple"):
        initial_student(replace(RECIPE, student=replace(RECIPE.student, sizes_px=(20,))), {"t": TargetSpec(8, 8, (2, 2))})
