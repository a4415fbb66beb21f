"""The study's results at rest, and the table that people read: mean, spread, and what a difference is worth.

The spread of one student from seed to seed is pooled over all arms, because three seeds alone say little of it. A difference of two arms'
means counts when it is larger than chance makes any one of the table's differences in one study of twenty (95 %, divided by their number).
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
_BY_HAND = "\n## What it says\n"
_TEXT = """# What caching costs, and what stages give

kNN accuracy (our protocol, k = 10, class token) of small students on {test_images:,} of CIFAR-10's test photos, taught on {images:,}
training photos by EfficientNet-Lite0 at 128 px: ViT, width 96, depth 4, 64 px, {steps} steps of {batch_size} views a stage. Mean and
standard deviation over seeds, each with its own weights, order and views; `int8` is also `2 views` and the ablation `2 only`. The spread
pooled over all arms is {pooled:.2f}: with {seeds} seeds a difference of two means is noise below {line:.1f} points (95 % for all rows
together). Students this small on photos this few rank little: read it as "what breaks", not as the paper's ablation.

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
    """Return the results of studies of this scale; a last line that a kill cut short is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            rows.append(Row(**json.loads(line)))
        except ValueError:
            continue
    return [row for row in rows if row.scale == scale]


def by_arm(rows: Sequence[Row], order: Sequence[str]) -> dict[str, dict[int, float]]:
    """Return percent by arm and seed; arms in the given order, others after them."""
    found: dict[str, dict[int, float]] = {name: {} for name in order if any(row.arm == name for row in rows)}
    for row in rows:
        found.setdefault(row.arm, {})[row.seed] = row.knn_percent
    return found


def pooled_spread(arms: Mapping[str, Mapping[int, float]]) -> float:
    """Return the standard deviation from seed to seed, from all arms that have several seeds; NaN when none has."""
    variances = [statistics.variance(one.values()) for one in arms.values() if len(one) > 1]
    return math.sqrt(statistics.mean(variances)) if variances else math.nan


def line_of_noise(spread: float, first: int, second: int, comparisons: int) -> float:
    """Return the largest difference of two means that chance gives in 95 % of tables with so many comparisons over so many seeds each."""
    error = spread * math.sqrt(1 / first + 1 / second)
    return statistics.NormalDist().inv_cdf(1 - 0.05 / (2 * comparisons)) * error


def verdict(difference: float, line: float) -> str:
    """Return the verdict in a word."""
    if math.isnan(line):
        return "one seed"
    return "noise" if abs(difference) <= line else "helps" if difference > 0 else "hurts"


def table_row(name: str, arms: Mapping[str, Mapping[int, float]]) -> str:
    """Return one line of the table."""
    values = list(arms[name].values())
    spread = f"{statistics.stdev(values):.2f}" if len(values) > 1 else "–"
    against = _AGAINST.get(name, REFERENCE)
    line = f"| {name} | {statistics.mean(values):.2f} | {spread} |"
    if against == name or against not in arms:
        return f"{line} | | |"
    difference = statistics.mean(values) - statistics.mean(arms[against].values())
    line_at = line_of_noise(pooled_spread(arms), len(values), len(arms[against]), len(arms) - 1)
    return f"{line} {against} | {difference:+.2f} | {verdict(difference, line_at)} |"


def write_table(rows: Sequence[Row], order: Sequence[str], out: Path) -> None:
    """Write the Markdown page, and below it what stands there from "What it says" on; raises ValueError for no rows."""
    if not rows:
        raise ValueError("no results to show")
    arms = by_arm(rows, order)
    seeds, pooled = max(len(one) for one in arms.values()), pooled_spread(arms)
    known: dict[str, Any] = {
        **rows[0].scale,
        "seeds": seeds,
        "pooled": pooled,
        "line": line_of_noise(pooled, seeds, seeds, max(1, len(arms) - 1)),
        "rows": "\n".join(table_row(name, arms) for name in arms),
        "machine": "{cpu}, {cores} cores, Python {python}".format(**machine()),
        "hours": sum(row.seconds for row in rows) / 3600,
    }
    _, heading, words = out.read_text().partition(_BY_HAND) if out.is_file() else ("", "", "")
    out.write_text(_TEXT.format(**known) + heading + words)
