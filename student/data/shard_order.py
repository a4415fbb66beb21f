"""The order for object stores: whole shards in a true permutation, images shuffled within a window of shards at a time.

A random read from an object store costs a request; a whole shard costs one as well. So an epoch goes through windows of `window_shards`
shards that a keyed permutation picks, and a second one shuffles the images within a window: a shard is fetched once an epoch when two
windows fit into the shard cache. Like the global order it is a pure function of (seed, position) in O(excluded) memory, and every image
that is not excluded is read in each epoch exactly once: absent images leave holes in the sequence of positions, which the inverse
permutations find. Price: neighbours in time share windows, so a batch is less random than globally; and with K views an image, a shard's
bytes are fetched in each of the K epochs, a window ahead of their use. Ranks on several machines each fetch the shards of their spans.
"""

from dataclasses import dataclass, field

import numpy as np

from .order import Int64s, KeyedPermutation, Order, passing_over


@dataclass(frozen=True)
class ShardOrder(Order):
    """`Order` with locality: shard s holds images [s · images_per_shard, (s + 1) · images_per_shard)."""

    images_per_shard: int = 128
    window_shards: int = 64
    _holes: dict[int, Int64s] = field(default_factory=dict, compare=False, repr=False)

    @property
    def shards(self) -> int:
        """Shards of the dataset, the last of which may be short."""
        return -(-self.images // self.images_per_shard)

    def reach(self, batch_size: int) -> int:
        """Return the steps of one window: while one is read, the next one is fetched."""
        return -(-min(self.window_shards, self.shards) * self.images_per_shard // batch_size)

    def _images(self, epoch: int, within: Int64s) -> Int64s:
        return self._images_at(epoch, passing_over(self._absent(epoch), within))

    def _absent(self, epoch: int) -> Int64s:
        """Return the positions of an epoch without an image, ascending; those of the last two epochs are cached."""
        if epoch not in self._holes:
            beyond = np.arange(self.images, self.shards * self.images_per_shard, dtype=np.int64)
            self._holes[epoch] = np.sort(self._positions_of(epoch, np.concatenate([self.excluded, beyond])))
            for old in [known for known in list(self._holes) if known < epoch - 1]:
                self._holes.pop(old, None)
        return self._holes[epoch]

    def _images_at(self, epoch: int, positions: Int64s) -> Int64s:
        """Return the images at positions of [0, shards · images_per_shard)."""
        windows, local = np.divmod(positions, self.window_shards * self.images_per_shard)
        slots = np.empty_like(positions)
        for window in np.unique(windows).tolist():
            here = windows == window
            shards, inside = np.divmod(self._window(epoch, window)(local[here]), self.images_per_shard)
            slots[here] = (window * self.window_shards + shards) * self.images_per_shard + inside
        turns, inside = np.divmod(slots, self.images_per_shard)
        return self._shard_permutation(epoch)(turns) * self.images_per_shard + inside

    def _positions_of(self, epoch: int, images: Int64s) -> Int64s:
        """Return the inverse of `_images_at`."""
        shards, inside = np.divmod(images, self.images_per_shard)
        windows, turns = np.divmod(self._shard_permutation(epoch).inverse(shards), self.window_shards)
        positions = np.empty_like(images)
        for window in np.unique(windows).tolist():
            here = windows == window
            local = self._window(epoch, window).inverse(turns[here] * self.images_per_shard + inside[here])
            positions[here] = window * self.window_shards * self.images_per_shard + local
        return positions

    def _shard_permutation(self, epoch: int) -> KeyedPermutation:
        return KeyedPermutation(self.shards, self.seed, "shards", epoch)

    def _window(self, epoch: int, window: int) -> KeyedPermutation:
        shards = min(self.window_shards, self.shards - window * self.window_shards)
        return KeyedPermutation(shards * self.images_per_shard, self.seed, f"window of epoch {epoch}", window)
