"""A run's folder is read as it was left, finished or not."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from eupe_pipeline.pipeline.reports.run_folder import read_run
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.student.model.recipe import TrainRecipe
from eupe_pipeline.student.training.run_folder import Metrics, RunFolder


def test_what_training_writes_is_what_the_report_reads(tmp_path: Path) -> None:
    RunFolder(tmp_path / "run").begin(TrainRecipe(seed=7), {"seed": "--set"}, {"targets": {}})
    metrics = Metrics(tmp_path / "run", 0)
    metrics.write({"step": 10, "loss": 2.0, "losses": {"proxy": {"cls": 0.5, "patch": 1.5}}, "images_per_s": 90.0})
    metrics.write({"step": 20, "loss": 1.0, "losses": {"proxy": {"cls": 0.25, "patch": 0.75}}, "images_per_s": 110.0})
    metrics.close()
    run = read_run(tmp_path / "run")
    assert run.name == "run"
    assert ("seed", "7", "--set") in run.recipe_rows()
    assert ("optimizer.name", '"adamw"', "not recorded") in run.recipe_rows()
    series = {one.label: one.points for one in run.loss_series()}
    assert series == {"total": [(10, 2.0), (20, 1.0)], "proxy cls": [(10, 0.5), (20, 0.25)], "proxy patch": [(10, 1.5), (20, 0.75)]}


def test_a_mean_leaves_out_the_first_logged_step(made_run: Callable[..., Path]) -> None:
    folder = made_run(steps=2)
    lines = [{"step": 1, "images_per_s": 1.0}, {"step": 2, "images_per_s": 100.0}, {"step": 3, "images_per_s": 102.0}]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    run = read_run(folder)
    assert run.mean("images_per_s") == 101.0
    assert run.mean("wait_share") is None


def test_a_run_that_is_being_written_is_read_up_to_its_last_whole_line(made_run: Callable[..., Path]) -> None:
    folder = made_run(steps=5)
    text = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(text[:-20])
    assert len(read_run(folder).metrics) == 4


def test_a_run_without_a_logged_step_is_read(made_run: Callable[..., Path]) -> None:
    folder = made_run(steps=1)
    (folder / "metrics.jsonl").unlink()
    assert [one.points for one in read_run(folder).loss_series()] == [[]]


def test_evaluations_while_training_are_curves_of_their_own_and_no_steps(made_run: Callable[..., Path]) -> None:
    folder = made_run(steps=2)
    with (folder / "metrics.jsonl").open("a") as file:
        for step, percent in ((2, 30.0), (4, 40.0)):
            values = {"cls": {"paper": percent, "official": {"10": percent + 1}}, "mean_patch": {"paper": percent - 5}, "seconds": 1.5}
            file.write(json.dumps({"step": step, "knn": values}) + "\n")
    run = read_run(folder)
    assert len(run.metrics) == 2
    series = {one.label: one.points for one in run.evaluation_series()}
    # Without "ours" beside it, what such a line calls "paper" was measured by our protocol.
    assert series == {"kNN, class token, ours": [(2, 30.0), (4, 40.0)], "kNN, mean patch token, ours": [(2, 25.0), (4, 35.0)]}
    assert [len(one.points) for one in run.metric_series("images_per_s", "rate")] == [2]
    assert run.metric_series("never", "x") == []


def test_a_folder_that_is_no_run_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"nothing-here is not the folder of a training run"):
        read_run(tmp_path / "nothing-here")


def test_a_recipe_that_is_not_json_is_refused(made_run: Callable[..., Path]) -> None:
    folder = made_run(steps=1)
    (folder / "recipe.json").write_text("{")
    with pytest.raises(BadInput, match=r"recipe\.json is not JSON"):
        read_run(folder)
