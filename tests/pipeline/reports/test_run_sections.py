"""Runs are described by their own figures, and compared only where the comparison means something."""

import json
from collections.abc import Callable
from pathlib import Path

from eupe_pipeline.pipeline.reports.run_sections import comparison, named, run_section, run_tiles

MakeRun = Callable[..., Path]


def learn(run: Path, features: str) -> Path:
    """Say which feature set a run learnt from."""
    (run / "identities.json").write_text(json.dumps({"targets": {"proxy": {"features": features}}}))
    return run


def test_a_run_shows_its_progress_its_curves_and_its_recipe(made_run: MakeRun) -> None:
    ((name, run),) = named([made_run("one")]).items()
    found = run_section(name, run)
    assert found["what"] == "stage 2, eupe_vitt16, running"
    assert found["facts"] == [("steps", "400"), ("images/s", "140"), ("waiting for data", "1.2 %")]
    assert len(found["charts"]) == 1
    assert len(found["small"]) == 2
    assert ("optimizer.learning_rate", "0.001", "--set") in found["recipe"]


def test_a_run_that_has_logged_nothing_says_so(made_run: MakeRun) -> None:
    run = made_run("new", steps=1)
    (run / "metrics.jsonl").unlink()
    ((name, facts),) = named([run]).items()
    found = run_section(name, facts)
    assert found["facts"] == []
    assert found["charts"][0]["chart"] == ""
    assert run_tiles({name: facts}) == []


def test_losses_lie_over_each_other_only_for_the_same_targets_and_stage(made_run: MakeRun) -> None:
    same = [learn(made_run("a"), "proxy@1"), learn(made_run("b"), "proxy@1")]
    found = comparison(same, named(same))
    assert found["alike"]
    assert 'aria-label="Total loss of each run"' in found["charts"][0]["chart"]
    other = [same[0], learn(made_run("c"), "proxy@2")]
    found = comparison(other, named(other))
    assert not found["alike"]
    assert not any("Total loss" in one["chart"] for one in found["charts"])


def test_the_values_in_which_runs_differ_are_shown_for_each(made_run: MakeRun) -> None:
    runs = [learn(made_run("a"), "proxy@1"), learn(made_run("b"), "proxy@1")]
    saved = json.loads((runs[1] / "recipe.json").read_text())
    saved["recipe"]["optimizer"]["learning_rate"] = 0.5
    (runs[1] / "recipe.json").write_text(json.dumps(saved))
    assert comparison(runs, named(runs))["differing"] == [("optimizer.learning_rate", ["0.001", "0.5"])]


def test_one_run_alone_is_no_comparison_and_has_first_figures(made_run: MakeRun) -> None:
    runs = [made_run("a")]
    assert comparison(runs, named(runs)) == {}
    figures = run_tiles(named(runs))
    assert [what for _, what, _ in figures] == ["loss, last 2 %", "images/s, mean", "of the time waiting for data"]


def test_runs_of_one_name_are_told_apart_by_their_folders(made_run: MakeRun) -> None:
    assert list(named([made_run("x/stage2"), made_run("y/stage2")])) == ["x/stage2", "y/stage2"]
