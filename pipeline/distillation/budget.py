"""Fit a plan into bytes and hours: which views, tokens, codec and grid are stored, and how many steps are left for the student.

What is given up, and in which order, follows from what was measured: `FIDELITY` (cosine of what comes back from a codec with what went in)
and `STUDY` (points of kNN that students lose, docs/results/study.md). Views go first, by halves down to two: no stored value changes, and
teachers' hours go with the bytes. Then int8 gives way to int4, of which the study sees no loss. The last but one view and three quarters of
the tokens cost alike in kNN (half a point each); the view costs class tokens more, tokens cost patch tokens and masks more. The
view goes first, for the teachers' hours; then tokens, and where they cannot be sampled a coarser grid, which the study never measured.
fp16 is never chosen: int8 keeps the cosine at 0.99997 for half of the bytes. Bytes and hours are those of `plan` (`jobs.estimates`).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from ...jobs.estimates.cost_model import Measured, Prices, extraction_cost
from ...storage.core.choices import Codec
from ...storage.core.errors import BadInput
from ...storage.features.layout import FeatureLayout
from ...storage.features.sampling import MAX_CELLS
from ...storage.views.input_size import size_hw
from ...storage.views.view_set import DEFAULT_IMAGES_PER_SHARD
from . import scaling
from .facts import ScaleFacts, TeacherFacts
from .rules import Length, run_length

_HOUR_S = 3600.0
_EXTRACTION_SHARE = 0.5  # of the hours, while views can still be given up
_ROOM = 1.5  # of hours, over those that were measured
_ROW_BYTES = 80  # of a recorded view: crop, flip, photometric parameters, digest


class Fidelity(NamedTuple):
    """What a codec keeps: cosine of decoded with raw tokens, mean and 1st percentile, and its bytes over fp16's."""

    mean: float
    p1: float
    bytes_over_fp16: float


FIDELITY: dict[Codec, Fidelity] = {
    "int8": Fidelity(0.99997, 0.99996, 0.510),
    "int4": Fidelity(0.991, 0.983, 0.284),
}
"""On tokens of EfficientNet-Lite0, by `python -m benchmarks.bench_codec`: docs/results/bench-codec.json, int4's mean: features/codec.py."""


class Lost(NamedTuple):
    """Points of kNN that students lost in the study, with the bounds of its interval, and the pairs of students that it is of."""

    points: float
    low: float
    high: float
    pairs: int

    def text(self) -> str:
        """Return it in words, as of a change that loses so much."""
        return f"{-self.points:+.2f} [{-self.high:+.2f}, {-self.low:+.2f}] points of kNN, {self.pairs} pairs"


STUDY: dict[str, Lost] = {
    "1 view": Lost(0.90, 0.45, 1.33, 41),
    "2 views": Lost(0.47, 0.10, 0.84, 41),
    "4 views": Lost(0.40, -0.01, 0.83, 40),
    "8 views": Lost(0.14, -0.28, 0.61, 40),
    "a quarter of the tokens": Lost(0.47, 0.07, 0.88, 32),
    "int4": Lost(0.14, -0.25, 0.62, 32),
}
"""Views against fresh ones, a quarter of the tokens against all, int4 against fp32: docs/results/study.parquet, by `make study`."""


@dataclass(frozen=True)
class Candidate:
    """How tokens could be stored."""

    views_per_image: int
    tokens_per_view: int | None = None
    """None: all."""
    codec: Codec = "int8"
    grid: tuple[int, int] | None = None
    """Of the stored tokens; None: each teacher's own."""

    def named(self) -> str:
        """Return it in words."""
        tokens = (
            "all patch tokens" if self.tokens_per_view is None else f"{self.tokens_per_view} patch token{'s' * (self.tokens_per_view > 1)}"
        )
        of = "" if self.grid is None else f" of a grid of {self.grid[0]}×{self.grid[1]}"
        return f"{self.views_per_image} view{'s' * (self.views_per_image > 1)} a photo, {tokens}{of}, {self.codec}"


@dataclass(frozen=True)
class Choice:
    """What fits: how tokens are stored, how long the student trains, what both cost, and three lines that say why."""

    candidate: Candidate
    length: Length
    store_bytes: int
    extraction_hours: float | None
    training_hours: float | None
    explanation: tuple[str, str, str]

    @property
    def hours(self) -> float | None:
        """All of them; None where speeds were not measured."""
        if self.extraction_hours is None or self.training_hours is None:
            return None
        return self.extraction_hours + self.training_hours


@dataclass(frozen=True)
class Costs:
    """Bytes of the store and hours of teachers, of one candidate."""

    store_bytes: int
    hours: float | None


def default_candidates(facts: ScaleFacts, views_per_image: int) -> list[Candidate]:
    """Return the ways to store tokens in the order in which they are tried, from nothing given up on; none that a teacher cannot have."""
    return [candidate for candidate in _all_candidates(facts, views_per_image) if _can_be_stored(facts, candidate)]


def _can_be_stored(facts: ScaleFacts, candidate: Candidate) -> bool:
    """Return whether every teacher's tokens can be."""
    return all(_layout(teacher, candidate).can_be_stored for teacher in facts.teachers)


def _all_candidates(facts: ScaleFacts, views_per_image: int) -> list[Candidate]:
    candidates = [Candidate(views) for views in _halved(views_per_image, 2)]
    least_views, shared, coarse = candidates[-1].views_per_image, _sampled_grid(facts), _coarser_grid(facts)
    small: Codec = "int4" if _can_be_stored(facts, Candidate(1, codec="int4")) else "int8"
    candidates += [Candidate(least_views, codec=small), Candidate(1, codec=small)]
    if shared is not None:
        candidates += [Candidate(1, max(1, shared // parts), small) for parts in (2, 4, 16)]
    elif coarse is not None:
        candidates.append(Candidate(1, None, small, coarse))
    return list(dict.fromkeys(candidates))


def _halved(most: int, least: int) -> Iterator[int]:
    count = most
    while count > least:
        yield count
        count //= 2
    yield min(most, least)


def _sampled_grid(facts: ScaleFacts) -> int | None:
    """Return the tokens of the grid that student and teachers share, since only then some of them can be stored; None where they do not."""
    teacher = min(facts.teachers, key=lambda teacher: teacher.cells)
    size = scaling.student_size_of(facts.student.patch_px, teacher.grid, teacher.size_px, facts.median_side_px)
    rows, columns = (side // facts.student.patch_px for side in size_hw(size))
    alike = all(teacher.grid == (rows, columns) for teacher in facts.teachers)
    return rows * columns if alike and 4 <= rows * columns <= MAX_CELLS else None


def _coarser_grid(facts: ScaleFacts) -> tuple[int, int] | None:
    """Return half the coarsest teacher's grid, which every teacher's can be resampled to; None for one below 4×4."""
    rows, columns = min((teacher.grid for teacher in facts.teachers), key=math.prod)
    return (rows // 2, columns // 2) if min(rows, columns) >= 4 else None


def store_cost(facts: ScaleFacts, candidate: Candidate, images_per_shard: int = DEFAULT_IMAGES_PER_SHARD) -> Costs:
    """Return the bytes of the feature sets and views of a candidate, and the teachers' hours, None where a speed is not measured."""
    row_bytes = {teacher.name: _layout(teacher, candidate).view_bytes for teacher in facts.teachers} | {"views": _ROW_BYTES}
    known = all(teacher.images_per_s for teacher in facts.teachers)
    seconds = {teacher.name: 1 / teacher.images_per_s if teacher.images_per_s else 0.0 for teacher in facts.teachers} | {"views": 0.0}
    cost = extraction_cost(facts.images, candidate.views_per_image, images_per_shard, Measured(row_bytes, seconds, 1.0, 1.0), Prices())
    total = cost["cost"]["all"]
    return Costs(int(total["bytes"]), total["device_hours"] if known else None)


def _layout(teacher: TeacherFacts, candidate: Candidate) -> FeatureLayout:
    grid = candidate.grid or teacher.grid
    resampled_from = None if grid == teacher.grid else teacher.grid
    layout = FeatureLayout(teacher.class_width, teacher.width, grid, candidate.codec, candidate.tokens_per_view, resampled_from)
    return replace(layout, layers=teacher.layers)


def choose_within_budget(
    facts: ScaleFacts, *, store_bytes: int | None = None, hours: float | None = None, student_images_per_s: float | None = None,
    students: int = 1, stage: int = 2, batch_size: int | None = None, candidates: Sequence[Candidate] | None = None,
) -> Choice:  # fmt: skip
    """Return the first candidate that fits into bytes and hours, with the steps that the hours leave to each of `students`.

    Teachers may take half of the hours while there are views to give up. Raises BadInput with the least bytes and hours that would fit,
    and for hours where a speed was not measured.
    """
    _check_limits(facts, store_bytes, hours, student_images_per_s)
    free = run_length(stage, facts, batch_size=batch_size, images_per_s=student_images_per_s)
    tried = list(candidates) if candidates else default_candidates(facts, scaling.views_of(free.samples / facts.images))
    costs = [store_cost(facts, candidate) for candidate in tried]
    for share in (_EXTRACTION_SHARE, 1.0):
        for number, (candidate, cost) in enumerate(zip(tried, costs, strict=True)):
            if store_bytes is not None and cost.store_bytes > store_bytes:
                continue
            if hours is not None and cost.hours is not None and cost.hours > share * hours:
                continue
            left = None if hours is None or cost.hours is None else (hours - cost.hours) / students
            length = free if left is None else _length_within(stage, facts, batch_size, student_images_per_s, left)
            if length is not None:
                trained = None if student_images_per_s is None else students * length.samples / student_images_per_s / _HOUR_S
                lines = _explained(facts, tried, number, cost, trained, store_bytes, hours, length)
                return Choice(candidate, length, cost.store_bytes, cost.hours, trained, lines)
    raise _no_fit(facts, tried, costs, store_bytes, hours, student_images_per_s, students, batch_size)


def _check_limits(facts: ScaleFacts, store_bytes: int | None, hours: float | None, rate: float | None) -> None:
    if store_bytes is not None and store_bytes <= 0:
        raise BadInput(f"a budget of {store_bytes} bytes holds nothing; give more, such as 20GB")
    if hours is not None and not hours > 0:
        raise BadInput(f"{hours} hours hold nothing; give more, such as 6")
    unmeasured = [teacher.name for teacher in facts.teachers if teacher.images_per_s is None]
    if hours is not None and (unmeasured or rate is None):
        what = ", ".join([*unmeasured, *(["the student"] if rate is None else [])])
        raise BadInput(f"hours can only be kept where speeds were measured, and that of {what} was not")


def _length_within(stage: int, facts: ScaleFacts, batch_size: int | None, rate: float | None, hours: float) -> Length | None:
    """Return the run that so many hours hold, None where that is below the least that is worth one."""
    assert rate is not None
    length = run_length(stage, facts, batch_size=batch_size, images_per_s=rate, hours=max(hours, 1e-9))
    return length if length.samples / rate / _HOUR_S <= hours * (1 + 1e-6) else None


def _no_fit(
    facts: ScaleFacts, tried: Sequence[Candidate], costs: Sequence[Costs], store_bytes: int | None, hours: float | None,
    rate: float | None, students: int, batch_size: int | None,
) -> BadInput:  # fmt: skip
    """Return the error that says the least of what was asked for that would fit."""
    smallest = min(range(len(tried)), key=lambda n: costs[n].store_bytes)
    wants = []
    if store_bytes is not None and costs[smallest].store_bytes > store_bytes:
        least = f"{in_bytes(costs[smallest].store_bytes, up=True)} ({tried[smallest].named()})"
        wants.append(f"--budget {in_bytes(store_bytes)}: the least that holds {facts.images:,} photos is {least}")
    if hours is not None and rate is not None:
        batch = batch_size or scaling.LEAST_BATCH
        training = students * scaling.LEAST_STEPS * batch / rate / _HOUR_S
        teaching = min(cost.hours or 0.0 for cost in costs)
        if teaching + training > hours:
            each = f" of each of {students} students" if students > 1 else ""
            wants.append(
                f"--hours {hours:g}: the least is {in_hours(teaching + training)} ({in_hours(teaching)} of teachers over 1 view a photo, "
                f"{in_hours(training)} for {scaling.LEAST_STEPS:,} steps of {batch}{each}); {measured_anew(teaching + training)}"
            )
    both = f"--budget {in_bytes(store_bytes or 0)} and --hours {hours} at once, by any of the {len(tried)} ways to store tokens"
    return BadInput(f"the plan does not fit into {' and '.join(wants) or both}; give that much, fewer photos, or a smaller teacher")


def measured_anew(hours: float) -> str:
    """Return what to give where hours were too few: half more than was measured, since the next call measures its own speeds."""
    return f"each call measures speeds anew, and --hours {in_hours(_ROOM * hours).removesuffix(' h')} leaves room for that"


def _explained(
    facts: ScaleFacts, tried: Sequence[Candidate], number: int, cost: Costs, trained: float | None, store_bytes: int | None,
    hours: float | None, length: Length,
) -> tuple[str, str, str]:  # fmt: skip
    """Return what was chosen and costs; what was given up for it and why that first; what stayed and would go next."""
    chosen = tried[number]
    of_bytes = "" if store_bytes is None else f" of {in_bytes(store_bytes)}"
    spent = "" if cost.hours is None or trained is None else f", {in_hours(cost.hours)} of teachers and {in_hours(trained)} of training"
    spent += f" of {hours:g} h" if spent and hours is not None else ""
    first = (
        f"chosen: {chosen.named()}: {in_bytes(cost.store_bytes, up=True)}{of_bytes}{spent}; {length.steps:,} steps of {length.batch_size:,}"
    )
    given_up = _given_up(tried[0], chosen)
    second = f"given up: {'; '.join(given_up)}" if given_up else "given up: nothing"
    kept = FIDELITY.get(chosen.codec)
    fidelity = f"{chosen.codec} keeps a cosine of {kept.mean:.5g} (1st percentile {kept.p1:.5g})" if kept else f"{chosen.codec} is exact"
    following = tried[number + 1].named() if number + 1 < len(tried) else "nothing; this is the least"
    return first, second, f"kept: {fidelity}; next to go: {following}"


def _given_up(wanted: Candidate, chosen: Candidate) -> list[str]:
    """Return what the chosen candidate lacks, with what the study or the codec's measurement says of it."""
    lacks = []
    if chosen.views_per_image < wanted.views_per_image:
        lost = STUDY.get(f"{chosen.views_per_image} view{'s' * (chosen.views_per_image > 1)}")
        figures = "not measured by the study" if lost is None else f"students against fresh views: {lost.text()}"
        lacks.append(f"{wanted.views_per_image} → {chosen.views_per_image} views ({figures})")
    if chosen.tokens_per_view != wanted.tokens_per_view:
        figures = STUDY["a quarter of the tokens"].text()
        lacks.append(f"all → {chosen.tokens_per_view} patch tokens (students of a quarter of them: {figures})")
    if chosen.codec != wanted.codec:
        cosine = f"cosine {FIDELITY[chosen.codec].mean:g}" if chosen.codec in FIDELITY else "exact"
        lacks.append(f"{wanted.codec} → {chosen.codec} ({cosine}; students: {STUDY['int4'].text()})")
    if chosen.grid != wanted.grid and chosen.grid is not None:
        lacks.append(f"each teacher's grid → {chosen.grid[0]}×{chosen.grid[1]} (not measured by the study)")
    return lacks


def in_bytes(count: float, *, up: bool = False) -> str:
    """Return bytes as --budget takes them, to two digits; `up` rounds so that the figure is enough."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            scaled = count / size
            digits = 10 ** max(0, 2 - len(str(int(scaled))))
            scaled = math.ceil(scaled * digits) / digits if up else scaled
            return f"{scaled:.3g}{unit}" if scaled < 1000 else f"{scaled:.0f}{unit}"
    return f"{count:.0f}B"


def in_hours(hours: float) -> str:
    """Return hours, rounded up to two digits."""
    if hours <= 0:
        return "0 h"
    step = 10.0 ** (math.floor(math.log10(hours)) - 1)
    return f"{math.ceil(hours / step - 1e-9) * step:.3g} h"
