"""kNN while training runs: it changes nothing, it lands in the metrics, and it resumes with the run."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from eupe_pipeline.jobs.training.options import Watch
from eupe_pipeline.pipeline.commands.train import watch_of
from eupe_pipeline.pipeline.reports.runs import row
from eupe_pipeline.storage.core.errors import BadInput, Interrupted
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.student.model.ranks import Ranks
from eupe_pipeline.student.training.run_folder import read_metrics

from ...student.gloo import on_ranks
from ..training_request import train
from .test_train import RECIPE

WATCH = Watch("knn", 2, "photos", 24, allow_overlap=True)
DROPPING = replace(RECIPE, student=replace(RECIPE.student, drop_path=0.3, ema=0.9))


def run(tiny: Any, out: Path, watch: Watch | None, **more: Any) -> dict[str, Any]:
    return train(DROPPING, tiny.store, ["tiny-teacher"], data="photos", out=out, watch=watch, **more)


def losses(out: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(out) if "loss" in line]


def lines_of_evaluations(out: Path) -> list[int]:
    return [line["step"] for line in read_metrics(out) if "knn" in line]


def test_losses_and_weights_are_bit_equal_with_and_without_it(tiny_store: Any, tmp_path: Path) -> None:
    run(tiny_store, tmp_path / "plain", None)
    run(tiny_store, tmp_path / "watched", WATCH)
    assert losses(tmp_path / "watched") == losses(tmp_path / "plain")
    for model in ("model", "average/model"):
        one, other = ((tmp_path / name / model / "backbone.safetensors").read_bytes() for name in ("plain", "watched"))
        assert one == other


def test_results_stand_in_metrics_and_tensorboard_and_are_told(tiny_store: Any, tmp_path: Path, events: Any) -> None:
    seen, on_event = events
    run(tiny_store, tmp_path / "run", WATCH, on_event=on_event)
    assert lines_of_evaluations(tmp_path / "run") == [2, 4, 6, 8]
    (line,) = [line for line in read_metrics(tmp_path / "run") if line["step"] == 4 and "knn" in line]
    assert set(line["knn"]) == {"cls", "mean_patch", "seconds"}
    assert 0 <= line["knn_average"]["cls"]["paper"] <= 100
    assert [event["step"] for event in seen if event["event"] == "evaluation"] == [2, 4, 6, 8]
    assert "step 4: vit-mini knn " in next(event["text"] for event in seen if event["event"] == "note" and "step 4" in event["text"])
    events_file = next((tmp_path / "run" / "tensorboard").glob("events*"))
    assert b"knn/cls/paper" in events_file.read_bytes()
    assert row(tmp_path / "run")["loss"] == losses(tmp_path / "run")[-1]


def test_a_run_that_goes_on_repeats_no_evaluation_and_leaves_none_out(tiny_store: Any, tmp_path: Path) -> None:
    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    run(tiny_store, tmp_path / "whole", WATCH)
    with pytest.raises(Interrupted):
        run(tiny_store, tmp_path / "stopped", WATCH, on_event=stop)
    run(tiny_store, tmp_path / "stopped", WATCH)
    assert lines_of_evaluations(tmp_path / "stopped") == [2, 4, 6, 8]
    wanted = [(line["step"], line["knn"]["cls"]) for line in read_metrics(tmp_path / "whole") if "knn" in line]
    assert [(line["step"], line["knn"]["cls"]) for line in read_metrics(tmp_path / "stopped") if "knn" in line] == wanted


def test_what_cannot_be_evaluated_is_refused_before_the_first_step(tiny_store: Any, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="photos"):
        run(tiny_store, tmp_path / "run", Watch("knn", 2, "phoots", 24))
    assert not list((tmp_path / "run" / "checkpoints").glob("*"))
    with pytest.raises(BadInput, match="knn"):
        Watch("kmm", 2, "photos")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="go together"):
        watch_of("knn", 2, None, 24)
    assert watch_of(None, 2, None, 24) is None


def train_on_rank(ranks: Ranks, url: str, out: Path, watch: Watch | None) -> None:
    recipe = replace(RECIPE, run=replace(RECIPE.run, steps=4, parallel="fsdp"))
    train(recipe, FeatureStore.open(url), ["tiny-teacher"], data="photos", out=out, ranks=ranks, watch=watch)


@pytest.mark.long
def test_sharded_students_are_evaluated_whole_and_train_as_before(tiny_store: Any, tmp_path: Path) -> None:
    for name, watch in (("plain", None), ("watched", WATCH)):
        on_ranks(2, tmp_path, train_on_rank, tiny_store.store.url, tmp_path / name, watch)
    assert losses(tmp_path / "watched") == losses(tmp_path / "plain")
    assert lines_of_evaluations(tmp_path / "watched") == [2, 4]


def test_the_best_checkpoint_goes_by_the_evaluations(tiny_store: Any, tmp_path: Path) -> None:
    recipe = replace(RECIPE, run=replace(RECIPE.run, checkpoint_every=2, keep_best=True))
    summary = train(recipe, tiny_store.store, ["tiny-teacher"], data="photos", out=tmp_path / "run", watch=WATCH)
    measured = {line["step"]: line["knn"]["cls"]["ours"] for line in read_metrics(tmp_path / "run") if "knn" in line}
    assert measured[summary["best_step"]] == max(measured.values())
    scores = [json.loads(path.read_text())["score"]["evaluation"] for path in (tmp_path / "run" / "checkpoints").glob("*/checkpoint.json")]
    assert set(scores) <= set(measured.values())
