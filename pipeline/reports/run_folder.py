"""Read what a finished or running training run left in its folder: curves, recipe, name.

    RUN/recipe.json      {"recipe": {...}, "origins": {dotted key: origin}}
    RUN/metrics.jsonl    one JSON object a logged step: step, loss, losses {teacher: {cls, patch}}, images_per_s, wait_share, …;
                         an evaluation during training is a line of its own, with a table under its name (knn, agreement) and no loss

Reading only, so that a report can be made of a run that is still going on: a last line of metrics that is being written is left out.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...storage.core.errors import BadInput
from ...student.probes.knn_names import rename_protocols
from ...student.training.run_folder import read_metrics
from ..recipes.typed_tables import leaves
from .charts import Series

MOST_FIGURES = 4
AGREEMENT = "agreement"  # the evaluation, and its one figure
_SIDES = {"held_out": "held-out images", "trained": "trained images"}
HEADLINES = ("ours", "top1", "mIoU", "miou", "rmse", "pck")  # a protocol's last word for the figure that people quote
WORDS = {"knn": "kNN", "knn_average": "kNN of the moving average", "cls": "class token", "mean_patch": "mean patch token"}


@dataclass(frozen=True)
class RunRecord:
    """A run's name, its metrics by ascending step, its recipe and the origin of each value; evaluations made while it trained."""

    name: str
    metrics: list[dict[str, Any]]
    recipe: dict[str, Any]
    origins: dict[str, str]
    evaluations: list[dict[str, Any]] = field(default_factory=list)

    def recipe_rows(self) -> list[tuple[str, str, str]]:
        """Return (dotted key, value as JSON, origin) of every value."""
        return [(key, json.dumps(value), self.origins.get(key, "not recorded")) for key, value in leaves(self.recipe)]

    def loss_series(self) -> list[Series]:
        """Return the total loss and, when there is more than one part, each teacher's class and patch loss over the steps."""
        total = Series("total", [(m["step"], m["loss"]) for m in self.metrics if "loss" in m])
        parts: dict[str, list[tuple[float, float]]] = {}
        for metric in self.metrics:
            for teacher, terms in metric.get("losses", {}).items():  # a teacher's name may hold dots
                for term, value in terms.items():
                    parts.setdefault(f"{teacher} {term}", []).append((metric["step"], value))
        return [total, *(Series(name, points) for name, points in parts.items() if len(parts) > 1)]

    def metric_series(self, name: str, what: str, scale: float = 1.0) -> list[Series]:
        """Return one metric over the steps as a curve called `what`; none when it was never logged."""
        points = [(m["step"], scale * float(m[name])) for m in self.metrics if m.get(name) is not None]
        return [Series(what, points)] if points else []

    def evaluation_series(self) -> list[Series]:
        """Return the figures of evaluations during training over the steps: each protocol's headline values, at most MOST_FIGURES."""
        series: dict[str, list[tuple[float, float]]] = {}
        for evaluation in self.evaluations:
            tables = {name: table for name, table in evaluation.items() if isinstance(table, Mapping) and not name.startswith(AGREEMENT)}
            for name, value in leaves({name: rename_protocols(table) for name, table in tables.items()}):
                if isinstance(value, int | float) and not isinstance(value, bool):
                    words = ", ".join(WORDS.get(part, part.replace("_", " ")) for part in name.split("."))
                    series.setdefault(words, []).append((evaluation["step"], float(value)))
        head = [name for name in series if name.endswith(HEADLINES)] or list(series)
        return [Series(name, series[name]) for name in head[:MOST_FIGURES]]

    def agreement_series(self) -> list[Series]:
        """Return agreement with the teachers over the steps, on held-out images and on trained ones; [] when it was never measured."""
        sides = [
            (words, [(record["step"], record[AGREEMENT][side][AGREEMENT]) for record in self._agreements]) for side, words in _SIDES.items()
        ]
        return [Series(words, points) for words, points in sides if points]

    def agreement_by_teacher(self) -> list[Series]:
        """Return agreement on held-out images with each teacher, where there are several."""
        names = self._agreements[-1][AGREEMENT]["held_out"]["teachers"] if self._agreements else {}
        series = [
            Series(name, [(record["step"], record[AGREEMENT]["held_out"]["teachers"][name][AGREEMENT]) for record in self._agreements])
            for name in names
        ]
        return series if len(series) > 1 else []

    def last_agreement(self) -> dict[str, float]:
        """Return the newest agreement on held-out images and its gap to that on trained ones; {} when it was never measured."""
        last = self._agreements[-1][AGREEMENT] if self._agreements else {}
        return {AGREEMENT: last["held_out"][AGREEMENT], "gap": last["gap"][AGREEMENT]} if last else {}

    @property
    def _agreements(self) -> list[dict[str, Any]]:
        return [record for record in self.evaluations if AGREEMENT in record]

    def mean(self, field: str) -> float | None:
        """Return a metric's mean over the run, without the first logged step (it pays for the start); None when never logged."""
        values = [float(m[field]) for m in self.metrics if m.get(field) is not None]
        values = values[1:] or values
        return sum(values) / len(values) if values else None


def is_evaluation(line: Mapping[str, Any]) -> bool:
    """Return whether a line of metrics is an evaluation: it has tables of figures, and no loss."""
    return "loss" not in line and any(isinstance(value, Mapping) for value in line.values())


def read_run(folder: Path) -> RunRecord:
    """Return the record of a run's folder; raises BadInput when it is not one."""
    path = folder / "recipe.json"
    if not path.is_file():
        raise BadInput(f"{folder} is not the folder of a training run: it holds no recipe.json")
    try:
        saved: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise BadInput(f"{path} is not JSON: {error}") from error
    lines = read_metrics(folder)
    evaluations = [line for line in lines if is_evaluation(line)]
    steps = [line for line in lines if not is_evaluation(line)]
    return RunRecord(folder.name, steps, saved.get("recipe", {}), saved.get("origins", {}), evaluations)
