"""The study's rows at rest, differences within pairs with their intervals, and the page that people read.

A comparison is a list of differences, one a seed: the arm's figure less that of the arm which it is compared with. Its interval is a
bootstrap over those pairs, studentised (each resample's mean over its own standard error), because percentiles of 16 differences are too
narrow; of fewer than twelve pairs, which have too few resamples for that, it is Student's. Each question has as many comparisons as the
table has lines, so intervals are at 1 − 0.05 / lines: all of them together hold the truth in 19 studies of 20 (Bonferroni). kNN decides;
the other measures have intervals of the same width and decide nothing.
"""

import fcntl
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy import stats  # type: ignore[import-untyped]

from .figures import machine
from .study_arms import AGREEMENT_IMAGES, Scale

GOAL = 0.6  # points: half the width of an interval, and what counts as a difference that matters
PILOT = 4  # pairs
_NOTHING_VARIES = 0.05  # points: a deviation below a twelfth of the goal
LEAST_BOOTSTRAPPED = 12  # pairs
RESAMPLES = 20_000
_BY_HAND = "\n## What it says\n"
_UNITS = {
    "knn_percent": "kNN", "linear_percent": "linear probe", "cls_cosine": "class cosine", "patch_cosine": "patch cosine",
    "mask_iou": "mask IoU",
}  # fmt: skip
DECIDES = "knn_percent"
_TEXT = """# What caching costs, and what stages give

Students of one seed are a pair: the same initial weights, order of photos and views in every arm. Each was taught on {images:,} training
photos of CIFAR-10 by EfficientNet-Lite0 at {teacher_px} px: ViT, width 64, depth 4, {size_px} px, a {grid} × {grid} grid like the
teacher's, {steps:,} steps of {batch_size} a stage, fp32. Measured on {test_images:,} test photos, in percent: kNN among {bank_images:,}
photos with labels (ours: k = 10, cosine, class token), a linear probe taught by the same, cosines × 100 of class and patch tokens to the
teacher's on {agreement_images:,} of the test photos, and the IoU of real things' alpha masks found in patch tokens. Differences are within
pairs, with bootstrap intervals over the pairs (Student's of fewer than twelve) that hold together for all {lines} lines of a measure
(95 %).

{power}

## Differences

"Equal" means that the whole interval of kNN lies within ± {goal}; "hurts" and "helps" that zero lies outside; else the study cannot tell.

| arm | against | pairs | {heads} | kNN says |
|---|---|---|{rules}---|
{differences}

## Views an image against fresh ones

{views}

## Means

| arm | students | {heads} |
|---|---|{rules}
{means}

Every row is in [{rows}]({rows}). {machine}, `{command}`; {hours:.1f} processor hours.
"""

Figures: TypeAlias = Mapping[str, Mapping[tuple[int, str], float]]
"""Figures of one measure by arm, then by seed and processor: they round differently, and a rounding moves a student as far as a codec."""


@dataclass(frozen=True)
class Row:
    """One student."""

    arm: str
    seed: int
    measures: Mapping[str, float]
    """Figures by name: percent, and cosines × 100; NaN where an arm has none."""
    seconds: float
    """Processor time of one process, training and measuring, without what arms share; wall clock in older rows, NaN of interrupted ones."""
    scale: Mapping[str, int]
    processor: str
    """Its kind: of the GPU where there is one, else of the CPU."""

    @property
    def student(self) -> tuple[object, ...]:
        """Return what tells this student from others."""
        return self.arm, self.seed, self.processor, *self.scale.items()


class Interval(NamedTuple):
    """Mean and bounds of differences, and how many there are."""

    mean: float
    low: float
    high: float
    pairs: int

    @property
    def half_width(self) -> float:
        """Half of the distance between the bounds."""
        return (self.high - self.low) / 2

    def text(self) -> str:
        """Return the mean and the bounds."""
        bounds = "" if math.isnan(self.low) else f" [{self.low:+.2f}, {self.high:+.2f}]"
        return "–" if math.isnan(self.mean) else f"{self.mean:+.2f}{bounds}"


def read_rows(path: Path, scale: Mapping[str, int]) -> list[Row]:
    """Return the rows of studies of this scale; none where there is no file."""
    return [row for row in _all_rows(path, scale) if row.scale == scale]


def _all_rows(path: Path, scale: Iterable[str]) -> list[Row]:
    lines = pq.read_table(path).to_pylist() if path.is_file() else []
    return [
        Row(
            line["arm"], line["seed"], {name: line[name] for name in _UNITS}, line["seconds"],
            {name: line[name] for name in scale}, line["processor"],
        )
        for line in lines
    ]  # fmt: skip


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Put rows into a Parquet file, in the place of older ones of the same students; it is never there in part.

    One process at a time does so, and what others have put in meanwhile stays.
    """
    if not rows:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        known = {row.student: row for row in _all_rows(path, rows[0].scale)}
        lines = [
            {"arm": row.arm, "seed": row.seed, **row.measures, "seconds": row.seconds, **row.scale, "processor": row.processor}
            for row in (known | {row.student: row for row in rows}).values()
        ]
        pq.write_table(pa.Table.from_pylist(lines), whole := path.with_suffix(".part"))
        whole.rename(path)
    finally:
        os.close(folder)


def by_arm(rows: Sequence[Row], measure: str) -> Figures:
    """Return the figures of a measure, without those that an arm does not have."""
    found: dict[str, dict[tuple[int, str], float]] = {}
    for row in rows:
        if not math.isnan(row.measures[measure]):
            found.setdefault(row.arm, {})[row.seed, row.processor] = row.measures[measure]
    return found


def differences(arms: Figures, arm: str, against: str) -> NDArray[np.float64]:
    """Return an arm's figures less those of another, of the seeds that both have from one kind of machine, in the order of the seeds."""
    one, other = arms.get(arm, {}), arms.get(against, {})
    return np.array([one[pair] - other[pair] for pair in sorted(one.keys() & other.keys())])


def interval(differences_n: NDArray[np.float64], lines: int) -> Interval:
    """Return the studentised bootstrap interval of a mean, at 1 − 0.05 / `lines`, Student's of few pairs; NaN bounds for fewer than three.

    Differences that are all alike have an interval without width: nothing varies.
    """
    count = len(differences_n)
    mean = float(differences_n.mean()) if count else math.nan
    if count < 3:
        return Interval(mean, math.nan, math.nan, count)
    error = float(differences_n.std(ddof=1)) / math.sqrt(count)
    if error == 0:
        return Interval(mean, mean, mean, count)
    if count < LEAST_BOOTSTRAPPED:
        half = planned_half_width(error * math.sqrt(count), count, lines)
        return Interval(mean, mean - half, mean + half, count)
    drawn = np.random.default_rng(0).choice(differences_n, (RESAMPLES, count))
    errors = drawn.std(axis=1, ddof=1) / math.sqrt(count)
    usable = errors > 1e-6 * error  # a resample of one difference alone has a spread of rounding, which stands for nothing
    studentised = (drawn.mean(axis=1)[usable] - mean) / errors[usable]
    outside = 0.05 / lines / 2
    low, high = np.quantile(studentised, [outside, 1 - outside])
    return Interval(mean, mean - float(high) * error, mean - float(low) * error, count)


def planned_half_width(deviation: float, pairs: int, lines: int) -> float:
    """Return half the width that an interval of normal differences with this standard deviation has, at 1 − 0.05 / `lines`."""
    return float(stats.t.ppf(1 - 0.05 / lines / 2, pairs - 1)) * deviation / math.sqrt(pairs)


def seen_difference(deviation: float, pairs: int, lines: int, power: float = 0.8) -> float:
    """Return the smallest difference whose interval leaves zero out in this share of studies (t, noncentral)."""
    line = float(stats.t.ppf(1 - 0.05 / lines / 2, pairs - 1))
    effects = np.linspace(0, 12, 2401)
    shares = stats.nct.sf(line, pairs - 1, effects)
    return float(effects[int(np.argmax(shares >= power))]) * deviation / math.sqrt(pairs)


def verdict(found: Interval) -> str:
    """Return what an interval says, in a word or two."""
    if math.isnan(found.low):
        return "too few pairs"
    if found.low > 0 or found.high < 0:
        return "helps" if found.low > 0 else "hurts"
    return "equal" if max(-found.low, found.high) <= GOAL else "cannot tell"


def pilot_deviation(arms: Figures, against: Mapping[str, str]) -> float:
    """Return the standard deviation of differences within pairs, pooled over the comparisons, of the first pairs alone; NaN without any.

    Without the comparisons of which nothing varies, or next to nothing, as of `live` with `fp32` and of stage 3 live and cached: they say
    nothing of the others' power.
    """
    pilots = [found[:PILOT] for arm, other in against.items() if len(found := differences(arms, arm, other)) >= PILOT]
    spreads = [variance for pilot in pilots if (variance := float(pilot.var(ddof=1))) > _NOTHING_VARIES**2]
    return math.sqrt(float(np.mean(spreads))) if spreads else math.nan


def intervals(rows: Sequence[Row], against: Mapping[str, str]) -> dict[tuple[str, str], dict[str, Interval]]:
    """Return the interval of each measure by (arm, what it is compared with), of the comparisons that have pairs."""
    measured = {name: by_arm(rows, name) for name in _UNITS}
    lines = [pair for pair in against.items() if len(differences(measured[DECIDES], *pair))]
    return {pair: {name: interval(differences(measured[name], *pair), len(lines)) for name in _UNITS} for pair in lines}


def write_page(rows: Sequence[Row], against: Mapping[str, str], curve: Mapping[str, int], out: Path, command: str) -> None:
    """Write the page, and below it what stands there from "What it says" on; raises ValueError for no rows.

    `against` says what each arm is compared with, `curve` how many views the arms of that question have.
    """
    if not rows:
        raise ValueError("no results to show")
    measured = {name: by_arm(rows, name) for name in _UNITS}
    found = intervals(rows, against)
    known: dict[str, Any] = {
        **rows[0].scale,
        "grid": Scale(**rows[0].scale).grid,
        "agreement_images": min(AGREEMENT_IMAGES, rows[0].scale["test_images"]),
        "rows": out.with_suffix(".parquet").name,
        "goal": GOAL,
        "lines": len(found),
        "heads": " | ".join(_UNITS.values()),
        "rules": "---|" * len(_UNITS),
        "power": _power(measured[DECIDES], against, len(found)),
        "differences": "\n".join(_difference_line(pair, of) for pair, of in found.items()),
        "views": _views_lines({pair: of[DECIDES] for pair, of in found.items()}, curve),
        "means": "\n".join(_means_line(arm, measured) for arm in dict.fromkeys(row.arm for row in rows)),
        "machine": "{}, {} cores, Python {}".format(" and ".join(sorted({row.processor for row in rows})), *_cores_and_python()),
        "command": command,
        "hours": sum(row.seconds for row in rows if not math.isnan(row.seconds)) / 3600,
    }
    _, heading, words = out.read_text().partition(_BY_HAND) if out.is_file() else ("", "", "")
    out.write_text(_TEXT.format(**known) + heading + words)


def _cores_and_python() -> tuple[Any, Any]:
    here = machine()
    return here["cores"], here["python"]


def _power(arms: Figures, against: Mapping[str, str], lines: int) -> str:
    deviation = pilot_deviation(arms, against)
    if math.isnan(deviation):
        return f"Power: fewer than {PILOT} pairs, so none is stated."
    width, seen = planned_half_width(deviation, 16, lines), seen_difference(deviation, 16, lines)
    return (
        f"Power, from the first {PILOT} pairs of each line alone: kNN's differences deviate by {deviation:.2f} from pair to pair, "
        f"so 16 pairs give intervals of ± {width:.2f} (wanted ± {GOAL}), and a difference of {seen:.2f} is seen in four studies of five."
    )


def _difference_line(pair: tuple[str, str], found: Mapping[str, Interval]) -> str:
    cells = [pair[0], pair[1], str(found[DECIDES].pairs), *(found[name].text() for name in _UNITS), verdict(found[DECIDES])]
    return f"| {' | '.join(cells)} |"


def _means_line(arm: str, measured: Mapping[str, Figures]) -> str:
    cells = [arm, str(len(measured[DECIDES].get(arm, {})))]
    for name in _UNITS:
        values = list(measured[name].get(arm, {}).values())
        cells.append(
            "–" if not values else f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else f"{values[0]:.2f}"
        )
    return f"| {' | '.join(cells)} |"


def _views_lines(found: Mapping[tuple[str, str], Interval], curve: Mapping[str, int]) -> str:
    """Return the table of points lost by the number of views, with a bar a tenth of a point."""
    lines = ["| views an image | kNN lost | |", "|---|---|---|"]
    for (arm, _), one in found.items():
        if arm in curve:
            lost = Interval(-one.mean, -one.high, -one.low, one.pairs)
            lines.append(f"| {curve[arm]} | {lost.text()} | {'█' * max(0, round(lost.mean * 10))} |")
    return "\n".join(lines)
