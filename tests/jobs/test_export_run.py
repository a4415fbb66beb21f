"""A run is exported with a model card that has the figures of every evaluation of the table."""

from pathlib import Path

import pytest
from eupe_pipeline.jobs.evaluation.registry import hub_tasks
from eupe_pipeline.jobs.export_run import ExportOptions, export_run
from eupe_pipeline.student.export.contract import make_student
from eupe_pipeline.student.probes.evaluation_records import write_record
from huggingface_hub import ModelCard, ModelCardData

TEST = {"test": {"dataset": "photos@0123456789ab", "digest": "ab" * 32}}


@pytest.mark.filterwarnings("default")
def test_the_card_of_an_exported_run_has_a_figure_of_every_evaluation(tmp_path: Path) -> None:
    make_student(tmp_path / "run", {"name": "vit-mini", "depth": 1, "layer_scale": 1.0}, 32)
    for number, (name, task) in enumerate(hub_tasks().items()):
        results = {"cls": {"ours": float(number)}} if task.accuracies_by_feature else {next(iter(task.metrics)): float(number)}
        write_record(tmp_path / "run", name, TEST, results, 1.0)
    export_run(ExportOptions(tmp_path / "run", tmp_path / "out", ("timm",)))
    data = ModelCard.load(tmp_path / "out" / "timm" / "README.md").data
    assert isinstance(data, ModelCardData)
    entered = {(result.task_type, result.metric_value) for result in data.eval_results or []}
    assert entered == {(task.id, float(number)) for number, task in enumerate(hub_tasks().values())}
