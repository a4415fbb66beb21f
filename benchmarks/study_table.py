"""The study's results at rest, and the table that people read: mean, spread, and what a difference is worth.

An arm is compared with its reference seed by seed, because seeds share weights, order and views: the mean of the paired differences, and
twice its standard error as the line between a difference and noise. With three seeds that is a rough line, and the table says so.
"""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .figures import machine

REFERENCE = "int8"
_AGAINST = {"fp32": "live", "fp16": "live", "int8": "live", "stages 1-2-3": "stages 1-2"}
_TEXT = """# What caching costs, and what stages give

kNN accuracy (paper's protocol, k = 10, class token) of small students on {test_images:,} of CIFAR-10's test photos, taught on {images:,}
training photos by EfficientNet-Lite0 at 128 px: ViT, width 96, depth 4, 64 px, {steps} steps of {batch_size} views a stage. Mean and
standard deviation over seeds, each with its own weights, order and views; `int8` is also `2 views` and the ablation `2 only`. A
difference is the mean over seeds of arm less reference, and is called noise below twice its standard error. With {seeds} seeds that is a
rough line, and students this small on photos this few rank little: read it as "nothing breaks", not as the paper's ablation.

| arm | kNN % | spread | against | difference | |
|---|---|---|---|---|---|
{rows}

{machine}, `make study`; {hours:.1f} processor hours.
"""


@dataclass(frozen=True)
class Row:
    """One student."""

    arm: str
    seed: int
    knn_percent: float
    seconds: float
    scale: Mapping[str, int]


def read_rows(path: Path, scale: Mapping[str, int]) -> list[Row]:
    """The results of studies of this scale; a last line that a kill cut short is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            rows.append(Row(**json.loads(line)))
        except ValueError:
            continue
    return [row for row in rows if row.scale == scale]


def by_arm(rows: Sequence[Row], order: Sequence[str]) -> dict[str, dict[int, float]]:
    """Percent by arm and seed; arms in the given order, others after them."""
    found: dict[str, dict[int, float]] = {name: {} for name in order if any(row.arm == name for row in rows)}
    for row in rows:
        found.setdefault(row.arm, {})[row.seed] = row.knn_percent
    return found


def difference(arm: Mapping[int, float], reference: Mapping[int, float]) -> tuple[float, float]:
    """Mean of the paired differences and its standard error (NaN for fewer than two pairs)."""
    pairs = [arm[seed] - reference[seed] for seed in arm if seed in reference]
    if len(pairs) < 2:
        return (pairs[0] if pairs else math.nan), math.nan
    return statistics.mean(pairs), statistics.stdev(pairs) / math.sqrt(len(pairs))


def verdict(mean: float, error: float) -> str:
    """In a word."""
    if math.isnan(mean) or math.isnan(error):
        return "one seed"
    return "noise" if abs(mean) <= 2 * error else "helps" if mean > 0 else "hurts"


def table_row(name: str, arms: Mapping[str, Mapping[int, float]]) -> str:
    """One line of the table."""
    values = list(arms[name].values())
    spread = f"{statistics.stdev(values):.2f}" if len(values) > 1 else "–"
    against = _AGAINST.get(name, REFERENCE)
    line = f"| {name} | {statistics.mean(values):.2f} | {spread} |"
    if against == name or against not in arms:
        return f"{line} | | |"
    mean, error = difference(arms[name], arms[against])
    return f"{line} {against} | {mean:+.2f} | {verdict(mean, error)} |"


def write_table(rows: Sequence[Row], order: Sequence[str], out: Path) -> None:
    """Write the Markdown page; raises ValueError for no rows."""
    if not rows:
        raise ValueError("no results to show")
    arms = by_arm(rows, order)
    known: dict[str, Any] = {
        **rows[0].scale,
        "seeds": max(len(one) for one in arms.values()),
        "rows": "\n".join(table_row(name, arms) for name in arms),
        "machine": "{cpu}, {cores} cores, Python {python}".format(**machine()),
        "hours": sum(row.seconds for row in rows) / 3600,
    }
    out.write_text(_TEXT.format(**known))
