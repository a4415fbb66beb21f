"""The prefetch depth: how many batches fit into the memory that a run may spend on batches made ahead.

A batch in memory (a slot) holds every target as it is stored, one pixel buffer for each model at its largest input, and the photometric
parameters; all slots are alike, so a bound in bytes is a number of slots. One slot is the step's own while it runs, so two are the least
that let reading and training overlap: a bound below that is an error before the run begins, never a silent excess. Past `MOST_SLOTS` more
slots only delay a stop. Counted is host memory of one rank; decoded images in hand, one a reader thread, come on top.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...storage.core.choices import ResizeOn
from ...storage.core.errors import BadInput
from ...storage.views.cut_pixels import LARGEST_AREA
from ...storage.views.input_size import SizePx, area_px
from ...storage.views.view_spec import PHOTOMETRIC_PARAMETERS
from ..model.ranks import Ranks
from ..model.recipe import TrainRecipe
from .targets import STUDENT, Memory, TargetSource

LEAST_SLOTS, MOST_SLOTS = 2, 64
_MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Prefetch:
    """The slots of a rank: how many, and bytes of one and of all that are allowed."""

    slots: int
    slot_bytes: int
    limit_bytes: int

    @property
    def bytes(self) -> int:
        """What the slots take together."""
        return self.slots * self.slot_bytes

    def described(self) -> dict[str, Any]:
        """Return `batches`, bytes of one and of all, and the bound, for summaries and plans."""
        return {"batches": self.slots, "batch_bytes": self.slot_bytes, "bytes": self.bytes, "limit_bytes": self.limit_bytes}

    def why(self) -> str:
        """Return the number of batches in one line, with the reason."""
        bound = f"run.prefetch_megabytes = {self.limit_bytes // _MEGABYTE}"
        most = "the most that are made ahead" if self.slots == MOST_SLOTS else bound
        return f"{self.slots} batches of {self.slot_bytes / _MEGABYTE:,.1f} MB  # {most}"


def slots_within(megabytes: int, slot_bytes: int) -> Prefetch:
    """Return as many slots as the bound holds, at most `MOST_SLOTS`; raises `BadInput` where it holds fewer than two."""
    limit_bytes = megabytes * _MEGABYTE
    if LEAST_SLOTS * slot_bytes > limit_bytes:
        needed = -(-LEAST_SLOTS * slot_bytes // _MEGABYTE)
        raise BadInput(
            f"run.prefetch_megabytes = {megabytes} is too little: a batch of this run takes {slot_bytes / _MEGABYTE:,.1f} MB of each "
            f"rank's memory, and two are needed, one in use and one being made; set it to {needed} or more, or lower run.batch_size, or "
            "share the batch among more --workers"
        )
    return Prefetch(min(MOST_SLOTS, limit_bytes // slot_bytes), slot_bytes, limit_bytes)


def slot_bytes(batch_size: int, targets_of_one: Memory, largest_px: Mapping[str, SizePx], resize: ResizeOn = "host") -> int:
    """Return the bytes of one slot, from the memory of one view's targets and the largest input of each model whose pixels it holds.

    Views that the device resizes have room for crops of several times that.
    """
    targets = sum(tensor.nbytes for tensor in targets_of_one.values())
    pixels = sum(3 * area_px(size) for size in largest_px.values()) * (LARGEST_AREA if resize == "device" else 1)
    return batch_size * (targets + pixels + 4 * PHOTOMETRIC_PARAMETERS)


def largest_inputs(recipe: TrainRecipe, source: TargetSource) -> dict[str, SizePx]:
    """Return the largest input in px of each model whose pixels a batch holds: the student and live teachers."""
    return {STUDENT: max(recipe.student.sizes_px, key=area_px), **source.largest_px()}


def prefetch_of(recipe: TrainRecipe, source: TargetSource, ranks: Ranks, resize: ResizeOn = "host") -> Prefetch:
    """Return what a rank's stream will hold; raises `BadInput` where two batches do not fit."""
    start, stop = ranks.span(recipe.run.batch_size)
    memory = slot_bytes(stop - start, source.allocate(1), largest_inputs(recipe, source), resize)
    return slots_within(recipe.run.prefetch_megabytes, memory)
