"""What a checkpoint is credited with is of its own step: evaluations, the best of them, and the summary of a run that only had to end."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from eupe_pipeline.jobs.runs.upload import RunMirror
from eupe_pipeline.jobs.training.options import Watch
from eupe_pipeline.pipeline.reports.runs import row
from eupe_pipeline.storage.objects.objects import open_objects
from eupe_pipeline.student.training.checkpoint import step_in_name
from eupe_pipeline.student.training.run_folder import read_metrics

from ..training_request import train
from .test_train import RECIPE, STEPS, interrupt_after, losses

OFTEN = replace(RECIPE, run=replace(RECIPE.run, checkpoint_every=1, keep_checkpoints=STEPS, keep_best=True))


def scores(run: Path) -> dict[int | None, float | None]:
    found = (run / "checkpoints").glob("*/checkpoint.json")
    return {step_in_name(path.parent.name): json.loads(path.read_text())["score"]["evaluation"] for path in found}


def warnings(seen: list[dict[str, Any]]) -> list[str]:
    """All but the one that the evaluated images are trained on, as they are here."""
    return [event["text"] for event in seen if event["event"] == "warning" and "learnt from" not in event["text"]]


def test_a_checkpoint_has_the_evaluation_of_its_own_step_and_no_other(tiny_store: Any, tmp_path: Path, events: Any) -> None:
    seen, on_event = events
    watch = Watch("knn", 3, "photos", 24, allow_overlap=True)
    out = tmp_path / "run"
    summary = train(OFTEN, tiny_store.store, ["tiny-teacher"], data="photos", out=out, watch=watch, on_event=on_event)
    measured = {line["step"]: line["knn"]["cls"]["ours"] for line in read_metrics(out) if "knn" in line}
    assert sorted(measured) == [3, 6, 8]
    assert scores(out) == {step: measured.get(step) for step in range(1, STEPS + 1)}
    assert summary["best_step"] == max(measured, key=lambda step: (measured[step], -step))
    assert not warnings(seen)


@pytest.mark.parametrize("stop", [3, 4])
def test_a_run_that_goes_on_credits_no_step_with_what_came_before_it(tiny_store: Any, tmp_path: Path, stop: int) -> None:
    watch, out = Watch("knn", 3, "photos", 24, allow_overlap=True), tmp_path / "run"
    with pytest.raises(Exception, match="stopped after step"):
        train(OFTEN, tiny_store.store, ["tiny-teacher"], data="photos", out=out, watch=watch, on_event=interrupt_after(stop))
    train(OFTEN, tiny_store.store, ["tiny-teacher"], data="photos", out=out, watch=watch)
    assert sorted(step for step, found in scores(out).items() if step is not None and found is not None) == [3, 6, 8]


def test_evaluations_that_fall_between_checkpoints_are_said_to_choose_none(tiny_store: Any, tmp_path: Path, events: Any) -> None:
    seen, on_event = events
    apart = replace(OFTEN, run=replace(OFTEN.run, checkpoint_every=4))
    train(
        apart,
        tiny_store.store,
        ["tiny-teacher"],
        data="photos",
        out=tmp_path,
        watch=Watch("knn", 3, "photos", 24, allow_overlap=True),
        on_event=on_event,
    )
    (said,) = warnings(seen)
    assert "every 12 steps" in said
    assert "--every 4" in said


def test_a_run_that_was_killed_before_its_summary_says_its_last_loss(tiny_store: Any, tmp_path: Path) -> None:
    def die(event: dict[str, Any]) -> None:
        if event["event"] == "checkpoint" and event["step"] == STEPS:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        train(RECIPE, tiny_store.store, ["tiny-teacher"], data="photos", out=tmp_path / "run", on_event=die)
    summary = train(RECIPE, tiny_store.store, ["tiny-teacher"], data="photos", out=tmp_path / "run")
    assert (summary["resumed_from"], summary["loss"]) == (STEPS, losses(tmp_path / "run")[-1])
    assert set(summary["losses"]) == {"tiny-teacher"}


def test_listings_of_a_run_go_by_number_here_and_at_its_url(tiny_store: Any, tmp_path: Path) -> None:
    """Step 10,000,000 comes after 9,999,999, whose name is larger as a text."""
    home = tmp_path / "run"
    train(replace(RECIPE, run=replace(RECIPE.run, steps=3)), tiny_store.store, ["tiny-teacher"], data="photos", out=home)
    (home / "summary.json").unlink()
    (home / "checkpoints" / "step-0000003").rename(home / "checkpoints" / "step-9999999")
    (tmp_path / "run.id").write_text("0123")
    mirror = RunMirror(open_objects(str(tmp_path / "url"), make=True), home)
    mirror.push()
    (home / "checkpoints" / "step-9999999").rename(home / "checkpoints" / "step-10000000")
    mirror.pull()  # this machine is ahead: its copy stays
    assert [path.name for path in (home / "checkpoints").iterdir()] == ["step-10000000"]
    for step in (9_999_998, 9_999_999):
        (home / "checkpoints" / f"step-{step}").mkdir()
        (home / "checkpoints" / f"step-{step}" / "checkpoint.json").write_text("{}")
    assert row(home)["state"] == "resumes at 10000000"
    assert [step_in_name(name) for name in mirror._files_here()[1][:3]] == [9_999_998, 9_999_999, 10_000_000]
