"""Evaluations of runs beside the paper's rows: one table whose columns are what was evaluated.

    RUN/evaluations/<evaluation>-<digest12>.json      {"evaluation", "protocol", "results", "seconds", …}

The paper's numbers are its ViT-B students' on its own data; the table says which data each figure is from, because a figure of another
dataset is no comparison, and which protocol a figure is by where that is not the one of the paper's row. A record that cannot be read is
an error: a missing row would look like an evaluation that nobody made.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...storage.core.errors import CacheDamaged
from ...student.probes.knn_names import rename_record_protocols
from ..recipes.typed_tables import leaves


@dataclass(frozen=True)
class Column:
    """One evaluation's headline: its name, unit and format, where a record holds it, and the paper's data and figures by row."""

    name: str
    unit: str
    form: str
    keys: tuple[str, ...]
    paper_data: str = ""
    paper: tuple[float, ...] = ()


PAPER_ROWS = ("stage 2 only", "stages 1, 2", "stages 1, 3", "stages 1, 2, 3")
NAMED_PROTOCOLS = ("segmentation", "depth", "correspondence")  # a record of these without a name is by our protocol
# EUPE (arXiv 2603.22387), ViT-B students; keys in order of preference
COLUMNS = {
    "knn": Column("kNN", "%", ".1f", ("cls.paper", "mean_patch.paper", "cls.ours", "mean_patch.ours"), "ImageNet-1k",
                  (84.0, 84.0, 84.3, 84.1)),
    "linear": Column("linear probe", "%", ".1f", ("top1",)),
    "zero-shot": Column("zero-shot", "%", ".1f", ("top1", "accuracy")),
    "segmentation": Column("segmentation, mIoU", "%", ".1f", ("miou", "mean_iou", "mIoU"), "ADE20k", (41.9, 43.3, 52.0, 52.4)),
    "depth": Column("depth, RMSE", "m", ".3f", ("rmse", "rmse_m", "RMSE"), "NYUv2", (0.616, 0.557, 0.388, 0.391)),
    "correspondence": Column("PCK@0.1", "%", ".1f", ("pck", "pck@0.1", "mean", "all"), "SPair-71k", (35.1, 41.0, 53.3, 51.3)),
}  # fmt: skip


@dataclass(frozen=True)
class Figure:
    """One evaluated figure: its value with the unit, and on what."""

    value: str
    data: str


@dataclass(frozen=True)
class EvaluationRow:
    """A model's figures by column; `paper` for the rows that the paper reports."""

    model: str
    figures: dict[str, list[Figure]]
    paper: bool = False


def read_evaluations(run: Path) -> list[dict[str, Any]]:
    """Return the records of a model's folder by file name; raises CacheDamaged for one that is none."""
    records = []
    for path in sorted((run / "evaluations").glob("*.json")):
        if path.name.endswith(".partial.json"):
            continue
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(record.get("evaluation"), str) or not isinstance(record.get("results"), Mapping):
                raise ValueError("it lacks evaluation or results")
        except (OSError, ValueError, AttributeError) as error:
            raise CacheDamaged(f"{path} is not the record of an evaluation ({error}); remove it and evaluate again") from error
        records.append(rename_record_protocols(record))
    return records


def data_of(record: Mapping[str, Any]) -> str:
    """Return what a record was tested on: the data's name without its digest, or how much of it; "" when it does not say."""
    protocol = record.get("protocol", {})
    tested = protocol.get("test", protocol.get("data", {}))
    if isinstance(tested, Mapping):
        tested = tested.get("val", tested)
        name = str(tested.get("dataset", "")).split("@")[0]
        amounts = (("sample of", "sample", "images"), ("", "pictures", "pictures"), ("", "pairs", "pairs"))
        words = [f"{of} {tested[key]:,} {unit}".strip() for of, key, unit in amounts if isinstance(tested.get(key), int)]
        return ", ".join(part for part in (name, *words) if part)
    return str(tested).rstrip("/").rsplit("/", 1)[-1]


def headline(record: Mapping[str, Any]) -> Figure:
    """Return the figure that stands for a record: the known one, else its first number; of the official segmentation its best, as there."""
    values = {name: value for name, value in leaves(record["results"]) if isinstance(value, int | float) and not isinstance(value, bool)}
    column = COLUMNS.get(record["evaluation"], Column(record["evaluation"], "", ".4g", ()))
    keys = ("best_miou", *column.keys) if record.get("protocol", {}).get("name") == "official" else column.keys
    known = [key for key in keys if key in values] or list(values)[:1]
    text = f"{values[known[0]]:{column.form}} {column.unit}".strip() if known else "no figure"
    tokens = "mean patch token" if known and known[0].startswith("mean_patch") else ""
    return Figure(text, ", ".join(part for part in (data_of(record), tokens, *deviations(record, known[:1])) if part))


def deviations(record: Mapping[str, Any], keys: Sequence[str]) -> list[str]:
    """Return in what a figure (under `keys`) is measured otherwise than the paper's row of its column: by our protocol, at another size."""
    kind, results = record["evaluation"], record["results"]
    ours = kind in NAMED_PROTOCOLS and "name" not in record.get("protocol", {})
    ours = ours or (kind == "knn" and any(key.endswith(".ours") for key in keys))
    if ours:
        return ["our protocol"]
    return [word for known in ("differs_from_paper", "differs_from_official") for word in results.get(known, [])]


def evaluation_rows(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[EvaluationRow]:
    """Return a row for each run that was evaluated and then the paper's, with the columns that any run has; [] without any."""
    used = {record["evaluation"] for records in runs.values() for record in records}
    names = [*(name for name in COLUMNS if name in used), *sorted(used - set(COLUMNS))]
    ours = [
        EvaluationRow(run, {name: [headline(record) for record in records if record["evaluation"] == name] for name in names})
        for run, records in runs.items()
        if records
    ]
    stated = {name: COLUMNS[name] for name in names if name in COLUMNS and COLUMNS[name].paper}
    paper = [
        EvaluationRow(
            row,
            {name: [Figure(f"{c.paper[n]:{c.form}} {c.unit}", c.paper_data)] if (c := stated.get(name)) else [] for name in names},
            True,
        )
        for n, row in enumerate(PAPER_ROWS)
        if stated
    ]
    return ours + paper if ours else []


def details(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return each record as (title, every value of its results and its protocol)."""
    detailed = []
    for record in records:
        kind, data = record["evaluation"], data_of(record)
        title = ", ".join(part for part in (COLUMNS[kind].name if kind in COLUMNS else kind, data) if part)
        values = leaves({"results": record["results"], "protocol": record.get("protocol", {})})
        detailed.append((title, [(key, json.dumps(value)) for key, value in values]))
    return detailed
