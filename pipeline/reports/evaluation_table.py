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

from ...jobs.evaluation.registry import EVALUATIONS, PAPER_ROWS
from ...storage.core.errors import CacheDamaged
from ...student.probes.knn_names import rename_record_protocols
from ..recipes.typed_tables import leaves


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
        words += [what for key, what in (("held_out", "held out"), ("trained_on", "trained on")) if tested.get(key)]
        return ", ".join(part for part in (name, *words) if part)
    return str(tested).rstrip("/").rsplit("/", 1)[-1]


def headline(record: Mapping[str, Any]) -> Figure:
    """Return the figure that stands for a record: the known one, else its first number; of the official segmentation its best, as there."""
    values = {name: value for name, value in leaves(record["results"]) if isinstance(value, int | float) and not isinstance(value, bool)}
    row = EVALUATIONS.get(record["evaluation"])
    unit, form, keys = (row.unit, row.form, row.keys) if row else ("", ".4g", ())
    if row and record.get("protocol", {}).get("name") == "official":
        keys = (*row.official_keys, *keys)
    known = [key for key in keys if key in values] or list(values)[:1]
    text = f"{values[known[0]]:{form}} {unit}".strip() if known else "no figure"
    tokens = "mean patch token" if known and known[0].startswith("mean_patch") else ""
    return Figure(text, ", ".join(part for part in (data_of(record), tokens, *deviations(record, known[:1])) if part))


def deviations(record: Mapping[str, Any], keys: Sequence[str]) -> list[str]:
    """Return in what a figure (under `keys`) is measured otherwise than the paper's row of its column: by our protocol, at another size."""
    kind, results = record["evaluation"], record["results"]
    ours = kind in EVALUATIONS and EVALUATIONS[kind].named_protocols and "name" not in record.get("protocol", {})
    ours = ours or (kind == "knn" and any(key.endswith(".ours") for key in keys))
    if ours:
        return ["our protocol"]
    return [word for known in ("differs_from_paper", "differs_from_official") for word in results.get(known, [])]


def title_of(evaluation: str) -> str:
    """Return what an evaluation's column is called; its name where there is no row."""
    return EVALUATIONS[evaluation].title if evaluation in EVALUATIONS else evaluation


def evaluation_rows(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[EvaluationRow]:
    """Return a row for each run that was evaluated and then the paper's, with the columns that any run has; [] without any."""
    used = {record["evaluation"] for records in runs.values() for record in records}
    names = [*(name for name in EVALUATIONS if name in used), *sorted(used - set(EVALUATIONS))]
    ours = [
        EvaluationRow(run, {name: [headline(record) for record in records if record["evaluation"] == name] for name in names})
        for run, records in runs.items()
        if records
    ]
    stated = {name: EVALUATIONS[name] for name in names if name in EVALUATIONS and EVALUATIONS[name].paper}
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
    return [
        (
            f"{title_of(record['evaluation'])}, {data_of(record)}".removesuffix(", "),
            [(key, json.dumps(value)) for key, value in leaves({"results": record["results"], "protocol": record.get("protocol", {})})],
        )
        for record in records
    ]
