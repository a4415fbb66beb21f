"""What a finished or running training run left in its folder, read for people: curves, recipe, name.

    RUN/recipe.json      {"recipe": {...}, "origins": {dotted key: origin}}
    RUN/metrics.jsonl    one JSON object a logged step: step, loss, losses {teacher: {cls, patch}}, images_per_s, wait_share, …

Reading only, so that a report can be made of a run that is still going on: a last line of metrics that is being written is left out.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..storage.errors import BadInput
from ..student.run import read_metrics
from .charts import Series
from .typed_tables import leaves


@dataclass(frozen=True)
class RunRecord:
    """A run's name, its metrics by ascending step, its recipe and the origin of each value."""

    name: str
    metrics: list[dict[str, Any]]
    recipe: dict[str, Any]
    origins: dict[str, str]

    def recipe_rows(self) -> list[tuple[str, str, str]]:
        """Return (dotted key, value as JSON, origin) of every value."""
        return [(key, json.dumps(value), self.origins.get(key, "not recorded")) for key, value in leaves(self.recipe)]

    def loss_series(self) -> list[Series]:
        """Return the total loss and, when there is more than one part, each teacher's class and patch loss over the steps."""
        total = Series("total", [(m["step"], m["loss"]) for m in self.metrics if "loss" in m])
        parts: dict[str, list[tuple[float, float]]] = {}
        for metric in self.metrics:
            for name, value in leaves(metric.get("losses", {})):
                parts.setdefault(name.replace(".", " "), []).append((metric["step"], value))
        return [total, *(Series(name, points) for name, points in parts.items() if len(parts) > 1)]

    def mean(self, field: str) -> float | None:
        """Return a metric's mean over the run, without the first logged step (it pays for the start); None when never logged."""
        values = [float(m[field]) for m in self.metrics if m.get(field) is not None]
        values = values[1:] or values
        return sum(values) / len(values) if values else None


def read_run(folder: Path) -> RunRecord:
    """Return the record of a run's folder; raises BadInput when it is not one."""
    path = folder / "recipe.json"
    if not path.is_file():
        raise BadInput(f"{folder} is not the folder of a training run: it holds no recipe.json")
    try:
        saved: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise BadInput(f"{path} is not JSON: {error}") from error
    return RunRecord(folder.name, read_metrics(folder), saved.get("recipe", {}), saved.get("origins", {}))
