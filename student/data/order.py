"""The order of a run: which view of which image is read at which position; a true global permutation an epoch, in O(1) memory.

The permutation is a keyed Feistel network over the smallest even number of bits that holds the images, with cycle walking, so no array of
all indexes exists: 1.7e9 images cost the same as ten. Position p of the run lies in epoch p // images; everything is a pure function of
(seed, position), hence the same for any number of ranks, workers and restarts. A batch may straddle two epochs: nothing is dropped.
View rule: image i shows view (first(i) + epoch) mod K, so that K epochs show every view exactly once. Images that any feature set
failed on are skipped through a rank table of the excluded ones (O(excluded) memory). Price: about 1 µs a position.
"""

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ...storage.core.errors import BadInput
from ..model.draws import bits64
from ..model.ranks import rank_span

Int64s = NDArray[np.int64]
UInt64s = NDArray[np.uint64]

_ROUNDS = 6
_MIX_1 = np.uint64(0xFF51AFD7ED558CCD)
_MIX_2 = np.uint64(0xC4CEB9FE1A85EC53)
_SHIFT = np.uint64(33)


def mixed_bits(values: UInt64s, key: int) -> UInt64s:
    """Apply MurmurHash3's 64-bit finaliser to values plus a round key (wrapping arithmetic)."""
    mixed = values + np.uint64(key)
    mixed = (mixed ^ (mixed >> _SHIFT)) * _MIX_1
    mixed = (mixed ^ (mixed >> _SHIFT)) * _MIX_2
    return mixed ^ (mixed >> _SHIFT)


@dataclass(frozen=True)
class KeyedPermutation:
    """A bijection of [0, size) that (seed, purpose, number) decide."""

    size: int
    seed: int
    purpose: str
    number: int

    def __call__(self, positions: Int64s) -> Int64s:
        """Return the images at positions in [0, size), elementwise; raises ValueError outside."""
        if len(positions) and not 0 <= int(positions.min()) <= int(positions.max()) < self.size:
            raise ValueError(f"positions leave [0, {self.size})")
        half, keys = self._half_bits(), self._keys()
        values = self._feistel(positions.astype(np.uint64), half, keys)
        while (outside := np.flatnonzero(values >= np.uint64(self.size))).size:
            values[outside] = self._feistel(values[outside], half, keys)
        return values.astype(np.int64)

    def inverse(self, values: Int64s) -> Int64s:
        """Return the positions of values in [0, size): the inverse of `__call__`."""
        half, keys = self._half_bits(), self._keys()
        positions = self._feistel_back(values.astype(np.uint64), half, keys)
        while (outside := np.flatnonzero(positions >= np.uint64(self.size))).size:
            positions[outside] = self._feistel_back(positions[outside], half, keys)
        return positions.astype(np.int64)

    def _half_bits(self) -> np.uint64:
        return np.uint64(max(1, (max(1, self.size - 1).bit_length() + 1) // 2))

    def _keys(self) -> list[int]:
        return [bits64(self.seed, self.purpose, self.number, turn) for turn in range(_ROUNDS)]

    def _feistel(self, values: UInt64s, half: np.uint64, keys: list[int]) -> UInt64s:
        mask = (np.uint64(1) << half) - np.uint64(1)
        left, right = values >> half, values & mask
        for key in keys:
            left, right = right, left ^ (mixed_bits(right, key) & mask)
        return (left << half) | right

    def _feistel_back(self, values: UInt64s, half: np.uint64, keys: list[int]) -> UInt64s:
        mask = (np.uint64(1) << half) - np.uint64(1)
        left, right = values >> half, values & mask
        for key in reversed(keys):
            left, right = right ^ (mixed_bits(left, key) & mask), left
        return (left << half) | right


class BatchIndices(NamedTuple):
    """What is read at some positions of a run: image_B, view_B (k) and feature row_B = image · K + k, all int64."""

    image_B: Int64s
    view_B: Int64s
    row_B: Int64s


class BatchOrder(Protocol):
    """What a stream and a trainer ask of an order."""

    @property
    def epoch_length(self) -> int:
        """Positions in an epoch."""

    @property
    def excluded(self) -> Int64s:
        """Images that are never drawn."""

    def epoch_of(self, position: int) -> float:
        """Return how many epochs have gone by at a position."""

    def ready(self, step: int, batch_size: int) -> bool:
        """Return whether everything that a step reads is in the store."""

    def reach(self, batch_size: int) -> int:
        """Return how many steps before its use a step's shards are worth fetching; 0 where neighbouring steps share no shards."""

    def batch(self, step: int, batch_size: int, rank: int = 0, ranks: int = 1) -> BatchIndices:
        """Return one rank's part of a step's batch."""


@dataclass(frozen=True)
class Order:
    """The order of a run over `images` images with `views` views each, without the images in `excluded` (sorted, unique)."""

    images: int
    views: int
    seed: int
    excluded: Int64s = field(default_factory=lambda: np.empty(0, np.int64))

    def __post_init__(self) -> None:
        if self.epoch_length < 1:
            raise BadInput(f"no image is left to train on: {self.images} images, {len(self.excluded)} of them failed or left out")

    @property
    def epoch_length(self) -> int:
        """Positions in an epoch: each image that is not excluded is read once."""
        return self.images - len(self.excluded)

    def epoch_of(self, position: int) -> float:
        """Return how many epochs have gone by at a position."""
        return position / self.epoch_length

    def at_positions(self, start: int, stop: int) -> BatchIndices:
        """Return what is read at run positions [start, stop)."""
        positions = np.arange(start, stop, dtype=np.int64)
        epochs, within = np.divmod(positions, self.epoch_length)
        image_B = np.empty_like(positions)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            image_B[here] = self._images(int(epoch), within[here])
        view_B = (self._first_view(image_B) + epochs) % self.views
        return BatchIndices(image_B, view_B, image_B * self.views + view_B)

    def batch(self, step: int, batch_size: int, rank: int = 0, ranks: int = 1) -> BatchIndices:
        """Return the part of rank `rank` of `ranks` in a step: its span of the step's `batch_size` positions."""
        start, stop = rank_span(batch_size, rank, ranks)
        return self.at_positions(step * batch_size + start, step * batch_size + stop)

    def ready(self, step: int, batch_size: int) -> bool:
        """Return True: what is in the store at the start is all there is."""
        return True

    def reach(self, batch_size: int) -> int:
        """Return 0: a step's images lie anywhere."""
        return 0

    def _images(self, epoch: int, within: Int64s) -> Int64s:
        """Return the images at positions of an epoch."""
        return passing_over(self.excluded, KeyedPermutation(self.epoch_length, self.seed, "epoch", epoch)(within))

    def _first_view(self, image_B: Int64s) -> Int64s:
        mixed = mixed_bits(image_B.astype(np.uint64), bits64(self.seed, "first view"))
        return (mixed % np.uint64(self.views)).astype(np.int64)


@dataclass(frozen=True)
class FixedRows:
    """The order of a measurement: some rows, one after another, each once; a `BatchOrder` that `Stream` reads them by."""

    image_N: Int64s
    row_N: Int64s

    @property
    def epoch_length(self) -> int:
        """How many rows there are."""
        return len(self.row_N)

    @property
    def excluded(self) -> Int64s:
        """Return none."""
        return np.empty(0, np.int64)

    def epoch_of(self, position: int) -> float:
        """Return the share that has been read."""
        return position / self.epoch_length

    def ready(self, step: int, batch_size: int) -> bool:
        """Return True: who chose the rows has looked."""
        return True

    def reach(self, batch_size: int) -> int:
        """Return 0."""
        return 0

    def batch(self, step: int, batch_size: int, rank: int = 0, ranks: int = 1) -> BatchIndices:
        """Return a batch; a rank has no part of its own. The number of the view is not known here."""
        rows = slice(step * batch_size, (step + 1) * batch_size)
        return BatchIndices(self.image_N[rows], np.zeros_like(self.row_N[rows]), self.row_N[rows])


def passing_over(holes: Int64s, ranks: Int64s) -> Int64s:
    """Return the rank-th number that is not among `holes` (sorted, unique)."""
    before = holes - np.arange(len(holes), dtype=np.int64)
    return ranks + np.searchsorted(before, ranks, side="right").astype(np.int64)
