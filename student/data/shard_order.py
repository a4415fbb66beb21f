"""The order for object stores: whole shards in a true permutation, images shuffled among a window of them at a time.

A random read from an object store costs a request; a whole shard costs one as well. So an epoch goes through windows of `window_shards`
shards that a keyed permutation picks, and a second one shuffles the images within a window: a shard is fetched once an epoch when two
windows fit into the shard cache. Like the global order it is a pure function of (seed, position) in O(excluded) memory, and every image
that is not excluded stands in each epoch exactly once: absent images leave holes in the sequence of places, whose positions the inverse
permutations give. Price: neighbours in time share windows, so a batch is less random than globally; and with K views an image, a shard's
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
        """The steps of one window: while one is read, the next one is fetched."""
        return -(-min(self.window_shards, self.shards) * self.images_per_shard // batch_size)

    def _images(self, epoch: int, within: Int64s) -> Int64s:
        return self._at(epoch, passing_over(self._absent(epoch), within))

    def _absent(self, epoch: int) -> Int64s:
        """The places of an epoch at which no image stands, ascending; those of the last two epochs are kept."""
        if epoch not in self._holes:
            beyond = np.arange(self.images, self.shards * self.images_per_shard, dtype=np.int64)
            self._holes[epoch] = np.sort(self._place(epoch, np.concatenate([self.excluded, beyond])))
            for old in [one for one in list(self._holes) if one < epoch - 1]:
                self._holes.pop(old, None)
        return self._holes[epoch]

    def _at(self, epoch: int, places: Int64s) -> Int64s:
        """The images at places of [0, shards · images_per_shard)."""
        windows, local = np.divmod(places, self.window_shards * self.images_per_shard)
        slots = np.empty_like(places)
        for window in np.unique(windows).tolist():
            here = windows == window
            shards, inside = np.divmod(self._window(epoch, window)(local[here]), self.images_per_shard)
            slots[here] = (window * self.window_shards + shards) * self.images_per_shard + inside
        turns, inside = np.divmod(slots, self.images_per_shard)
        return self._shard_permutation(epoch)(turns) * self.images_per_shard + inside

    def _place(self, epoch: int, images: Int64s) -> Int64s:
        """The inverse of `_at`."""
        shards, inside = np.divmod(images, self.images_per_shard)
        windows, turns = np.divmod(self._shard_permutation(epoch).inverse(shards), self.window_shards)
        places = np.empty_like(images)
        for window in np.unique(windows).tolist():
            here = windows == window
            local = self._window(epoch, window).inverse(turns[here] * self.images_per_shard + inside[here])
            places[here] = window * self.window_shards * self.images_per_shard + local
        return places

    def _shard_permutation(self, epoch: int) -> KeyedPermutation:
        return KeyedPermutation(self.shards, self.seed, "shards", epoch)

    def _window(self, epoch: int, window: int) -> KeyedPermutation:
        shards = min(self.window_shards, self.shards - window * self.window_shards)
        return KeyedPermutation(shards * self.images_per_shard, self.seed, f"window of epoch {epoch}", window)
