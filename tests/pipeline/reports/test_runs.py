"""Runs listed, shown and compared from what their folders hold."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from eupe_pipeline.pipeline.reports.runs import compare_runs, list_runs, show_run
from eupe_pipeline.storage.core.errors import BadInput


def quiet(event: Mapping[str, Any]) -> None:
    pass


def make_run(out: Path, *, rate: float = 0.1, steps: int = 4, finished: bool = True, features: str = "t@1") -> Path:
    out.mkdir(parents=True)
    recipe = {"stage": 2, "student": {"architecture": "vit-mini"}, "run": {"steps": 4}, "optimizer": {"learning_rate": rate}}
    (out / "recipe.json").write_text(json.dumps({"recipe": recipe, "origins": {"stage": "paper"}}))
    (out / "identities.json").write_text(json.dumps({"targets": {"t": {"features": features, "source": "cached"}}}))
    lines = [{"step": step, "loss": 1 / step, "losses": {"t": {"cls": 0.5}}, "images_per_s": 10.0} for step in range(1, steps + 1)]
    (out / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    if finished:
        (out / "summary.json").write_text("{}")
    return out


def test_every_run_below_a_folder_is_listed_with_how_far_it_is(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    half = make_run(tmp_path / "both" / "b", steps=2, finished=False)
    (half / "checkpoints" / "step-0000002").mkdir(parents=True)
    make_run(tmp_path / "c", steps=0, finished=False)
    found = list_runs(folder=tmp_path, on_event=quiet)["runs"]
    assert {name: one["state"] for name, one in found.items()} == {"a": "finished", "both/b": "resumes at 2", "c": "begun"}
    assert found["a"]["loss"] == 0.25
    assert found["both/b"]["steps"] == "2/4"


def test_one_run_is_shown_with_targets_and_origins(tmp_path: Path) -> None:
    shown = show_run(out=make_run(tmp_path / "a"), on_event=quiet)
    assert shown["targets"] == {"t": "t@1"}
    assert shown["recipe"]["stage"] == {"value": 2, "origin": "paper"}
    assert shown["losses"] == {"t": {"cls": 0.5}}


def test_a_comparison_names_what_differs_and_nothing_else(tmp_path: Path) -> None:
    one, other = make_run(tmp_path / "a"), make_run(tmp_path / "b", rate=0.2, features="t@2")
    found = compare_runs(outs=[one, other], on_event=quiet)
    assert found["differing"] == {
        "optimizer.learning_rate": {str(one): 0.1, str(other): 0.2},
        "targets": {str(one): {"t": "t@1"}, str(other): {"t": "t@2"}},
    }
    assert set(found["runs"]) == {str(one), str(other)}


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="not the folder of a training run"):
        show_run(out=tmp_path, on_event=quiet)
    with pytest.raises(BadInput, match="named twice"):
        compare_runs(outs=[tmp_path, tmp_path], on_event=quiet)
