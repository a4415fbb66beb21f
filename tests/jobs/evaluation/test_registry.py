"""Every evaluation's row is complete: its function is there, it has a command, it is documented, the paper's figures fit their rows."""

import importlib
from pathlib import Path
from typing import Any

import click
import pytest
from eupe_pipeline.jobs.evaluation.registry import EVALUATIONS, PAPER_ROWS, hub_tasks
from eupe_pipeline.pipeline.commands.evaluate import evaluate, option_fields
from eupe_pipeline.pipeline.reports.evaluation_table import headline, title_of
from eupe_pipeline.student.export.model_card_results import eval_results

TEXT_ONLY: set[str] = set()  # no task of the Hub: their figures stand in the text of a model card, and their rows have no `hub`
DOCUMENTED = (Path(__file__).parents[3] / "docs" / "evaluations.md").read_text()


@pytest.mark.parametrize("name", EVALUATIONS)
class TestRow:
    def test_its_module_has_the_function_and_the_options(self, name: str) -> None:
        row = EVALUATIONS[name]
        assert callable(row.load())
        assert row.load().__module__ == importlib.import_module(f".{row.module}", "eupe_pipeline.jobs.evaluation").__name__
        if row.options is not None:
            assert "model" in {one.name for one in option_fields(row.load_options())}

    def test_it_has_a_command(self, name: str) -> None:
        command = evaluate.get_command(click.Context(evaluate), EVALUATIONS[name].command or name)
        assert command is not None
        assert command.help

    def test_its_figure_is_shown_with_its_unit_under_its_title(self, name: str) -> None:
        row = EVALUATIONS[name]
        results: Any = 12.0
        for part in reversed(row.keys[0].split(".")):
            results = {part: results}
        assert headline({"evaluation": name, "results": results}).value == f"{12.0:{row.form}} {row.unit}".strip()
        assert title_of(name) == row.title
        assert len(row.paper) in (0, len(PAPER_ROWS))
        assert bool(row.paper) == bool(row.paper_data)
        best = max(row.paper, default=0.0) if row.higher_is_better else min(row.paper, default=0.0)
        assert not row.paper or best in row.paper[2:], "the paper's best student saw stage 3"

    def test_a_model_card_enters_its_figure_in_the_hubs_metadata(self, name: str) -> None:
        task, results = EVALUATIONS[name].hub, dict[str, Any]()
        if task is None:
            assert name in TEXT_ONLY, "the row needs `hub`"
            return
        for key in ["cls", *task.metrics]:
            results[key] = {"ours": 12.0} if task.accuracies_by_feature else 12.0
        assert task.accuracies_by_feature or EVALUATIONS[name].keys[0] in task.metrics
        record = {"evaluation": name, "protocol": {"test": {"dataset": "photos@0123", "digest": "ab"}}, "results": results}
        entries = eval_results([record], hub_tasks())
        assert len(entries) == (1 if task.accuracies_by_feature else len(task.metrics))
        assert {entry.metric_value for entry in entries} == {12.0}
        assert all(entry.metric_name.startswith(f"{task.method}, ") for entry in entries)  # type: ignore[union-attr]

    def test_it_is_documented(self, name: str) -> None:
        assert f"evaluate {EVALUATIONS[name].command or name} " in DOCUMENTED
