"""Draw the dataset of each step's batch: a batch is all of one dataset, drawn with that dataset's share (paper: ImageNet-1k 0.10).

The draw of a step is a hash of (seed, step) against the shares: independent from step to step, the same for any number of ranks and after
any resume. A dataset's own order must go on where its last batch ended, so the number of a step among the steps of its dataset is
needed: it is counted from the first step in blocks whose totals are kept, about 0.1 s for a million steps, once. Images of one dataset are
thus seen in their own true permutation, epoch after epoch, whatever the others' sizes.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...storage.core.errors import BadInput
from ..model.draws import bits64
from .order import BatchIndices, BatchOrder, Int64s, mixed_bits

_BLOCK = 1 << 16


class Turn(NamedTuple):
    """A step's dataset, and how many batches of that dataset came before."""

    name: str
    number: int


class Mixture:
    """Shares of datasets by name, summing to 1; `turn(step)` is a pure function of (shares, seed, step)."""

    def __init__(self, shares: Mapping[str, float], seed: int) -> None:
        if not shares or any(share <= 0 for share in shares.values()) or abs(sum(shares.values()) - 1) > 1e-9:
            raise BadInput(f"the shares of a mixture are above 0 and sum to 1, got {dict(shares)}")
        self.shares, self.seed = dict(shares), seed
        self.names = list(self.shares)
        self._edges = np.cumsum(list(self.shares.values()))[:-1]
        self._totals = lru_cache(maxsize=None)(self._block_totals)

    def drawn(self, first: int, last: int) -> NDArray[np.int64]:
        """Return the number of the dataset (in `names`) of each step in [first, last)."""
        steps = np.arange(first, last, dtype=np.uint64)
        uniform = (mixed_bits(steps, bits64(self.seed, "mixture")) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return np.searchsorted(self._edges, uniform, side="right").astype(np.int64)

    def _block_totals(self, block: int) -> tuple[int, ...]:
        drawn = self.drawn(block * _BLOCK, (block + 1) * _BLOCK)
        return tuple(np.bincount(drawn, minlength=len(self.names)).tolist())

    def turn(self, step: int) -> Turn:
        """Return the dataset of a step and the number of its batch there."""
        block = step // _BLOCK
        within = self.drawn(block * _BLOCK, step + 1)
        which = int(within[-1])
        before = sum(self._totals(earlier)[which] for earlier in range(block)) + int((within[:-1] == which).sum())
        return Turn(self.names[which], before)

    def batch(
        self, orders: Mapping[str, BatchOrder], step: int, batch_size: int, rank: int = 0, ranks: int = 1
    ) -> tuple[str, BatchIndices]:
        """Return the dataset of a step and one rank's part of its batch."""
        name, number = self.turn(step)
        return name, orders[name].batch(number, batch_size, rank, ranks)


class MixedOrder:
    """The order of a run over several datasets whose images and rows are numbered one after another (`joined`)."""

    def __init__(
        self, mixture: Mixture, orders: Mapping[str, BatchOrder], image_starts: Mapping[str, int], row_starts: Mapping[str, int]
    ) -> None:
        self.mixture, self.orders = mixture, dict(orders)
        self._image_starts, self._row_starts = dict(image_starts), dict(row_starts)

    @property
    def epoch_length(self) -> int:
        """Images of all datasets that a run may see."""
        return sum(order.epoch_length for order in self.orders.values())

    @property
    def excluded(self) -> Int64s:
        """The left-out images of all datasets."""
        return np.concatenate([order.excluded + self._image_starts[name] for name, order in self.orders.items()])

    def epoch_of(self, position: int) -> float:
        """Return the views seen, in passes over all images together; a dataset's own passes follow from its share."""
        return position / self.epoch_length

    def ready(self, step: int, batch_size: int) -> bool:
        """Return True: what is in the store at the start is all there is."""
        return True

    def reach(self, batch_size: int) -> int:
        """Return the reach of the dataset whose window spans the most steps, those of the others between included."""
        return max(int(order.reach(batch_size) / self.mixture.shares[name]) for name, order in self.orders.items())

    def batch(self, step: int, batch_size: int, rank: int = 0, ranks: int = 1) -> BatchIndices:
        """Return one rank's part of a step, all of it of the step's dataset."""
        name, indices = self.mixture.batch(self.orders, step, batch_size, rank, ranks)
        image_B, row_B = indices.image_B + self._image_starts[name], indices.row_B + self._row_starts[name]
        return BatchIndices(image_B, indices.view_B, row_B)
