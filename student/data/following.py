"""Train while the targets are still being extracted: the order of images stays the same, and a step waits for its shards.

The order must not depend on which shards happen to be committed, or no resume would be exact; so nothing is reordered: a step that needs a
shard without a record waits for it. Images on which a teacher fails are not known beforehand either. Such an image is replaced by the next
image of the same batch that has tokens: a function of the step and of the finished store alone, so a run that waited and one that found
every shard committed are the same run. Price: until the first epoch has been extracted, a global order waits for nearly all of it; a
shard order (`data.order = "shards"`) begins after its first window.
"""

import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ...storage.core.errors import BadInput, StoreUnavailable
from ...storage.features.features import FeatureReader
from ..model.ranks import rank_span
from .joined import Numbering
from .order import BatchIndices, BatchOrder, Int64s

POLL_S = 1.0
_LOOK_S = 5.0  # between listings of what is there
_GRACE_S = 60.0  # for an extraction that is about to start, or is being started again


class FollowedOrder:
    """An order over feature sets that grow; `parts` has the sets of each dataset, one after another as their rows are numbered."""

    def __init__(
        self,
        order: BatchOrder,
        parts: Sequence[Sequence[FeatureReader]],
        limit_s: float,
        extractors: Callable[[], Sequence[str]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.order, self.parts, self.limit_s, self._clock = order, [list(part) for part in parts], limit_s, clock
        self._extractors = extractors
        self._numbering = Numbering([part[0].rows for part in self.parts])
        self._readers = [reader for part in self.parts for reader in part]
        self._there: set[tuple[str, int]] = set()
        self._asked: dict[tuple[str, int], float] = {}
        self._failed: dict[tuple[int, int], Int64s] = {}
        self._committed, self._grew, self._looked = -1, clock(), -_LOOK_S

    @property
    def epoch_length(self) -> int:
        """Number of all images; those that fail are replaced."""
        return self.order.epoch_length

    @property
    def excluded(self) -> Int64s:
        """Images that the wrapped order leaves out; those that fail are replaced instead."""
        return self.order.excluded

    def epoch_of(self, position: int) -> float:
        """Return what the wrapped order returns."""
        return self.order.epoch_of(position)

    def ready(self, step: int, batch_size: int) -> bool:
        """Return whether every shard that a step's whole batch needs has its record; looks at a missing one once a second at most."""
        rows = self.order.batch(step, batch_size).row_B
        return all(self._has(reader, shard) for reader, shard in self._needed(rows))

    def reach(self, batch_size: int) -> int:
        """Return what the wrapped order returns."""
        return self.order.reach(batch_size)

    def _needed(self, rows: Int64s) -> list[tuple[FeatureReader, int]]:
        needed = []
        for part, _, local in self._numbering.split(rows):
            for reader in self.parts[part]:
                needed += [(reader, shard) for shard in np.unique(local // reader.group.shard_rows).tolist()]
        return needed

    def _has(self, reader: FeatureReader, shard: int) -> bool:
        key = (reader.key, shard)
        if key in self._there:
            return True
        if self._clock() - self._asked.get(key, -POLL_S) < POLL_S:
            return False
        self._asked[key] = self._clock()
        if reader.group.record(shard) is None:
            return False
        self._there.add(key)
        return True

    def progress(self) -> dict[str, int]:
        """Return the shards of all sets that are committed (`done`) and that will be (`total`), as of the last few seconds."""
        if self._clock() - self._looked >= _LOOK_S:
            committed = sum(int(reader.group.committed_mask().sum()) for reader in self._readers)
            self._looked = self._clock()
            if committed != self._committed:
                self._committed, self._grew = committed, self._clock()
        return {"done": self._committed, "total": sum(reader.shards for reader in self._readers)}

    def hopeless(self) -> str | None:
        """Return why waiting leads nowhere: nothing new for too long, or no extraction running; None while there is hope."""
        idle_s = self._clock() - self._grew
        if idle_s < min(_GRACE_S, self.limit_s):
            return None
        at_work = self._extractors()
        if not at_work:
            return "no extraction of them is running any more: it has ended or died"
        return f"nothing new has come for {idle_s:.0f} s from {', '.join(at_work)}" if idle_s >= self.limit_s else None

    def given_up(self) -> StoreUnavailable:
        """Return the error that ends such a wait."""
        state, keys = self.progress(), ", ".join(reader.key for reader in self._readers)
        return StoreUnavailable(
            f"{state['total'] - state['done']} of {state['total']} shards of {keys} are not there, and "
            f"{self.hopeless() or 'another rank has given up'}. Run the same `extract-features` command again, then this one, which goes on"
        )

    def batch(self, step: int, batch_size: int, rank: int = 0, ranks: int = 1) -> BatchIndices:
        """Return one rank's part of a step that is ready; raises `BadInput` when every image of the batch failed."""
        indices = self.order.batch(step, batch_size)
        start, stop = rank_span(batch_size, rank, ranks)
        chosen = instead_of_failed(self._without_tokens(indices.row_B))[start:stop]
        return BatchIndices(indices.image_B[chosen], indices.view_B[chosen], indices.row_B[chosen])

    def _without_tokens(self, rows: Int64s) -> NDArray[np.bool_]:
        failed = np.zeros(len(rows), np.bool_)
        for part, here, local in self._numbering.split(rows):
            shard_rows = self.parts[part][0].group.shard_rows
            bad = [self._failed_rows(part, shard) for shard in np.unique(local // shard_rows).tolist()]
            failed[here] = np.isin(local, np.concatenate(bad))
        return failed

    def _failed_rows(self, part: int, shard: int) -> Int64s:
        """Return the rows of a shard that at least one feature set has no tokens for."""
        if (part, shard) not in self._failed:
            views = self.parts[part][0].views
            records = [reader.group.record(shard) for reader in self.parts[part]]
            failed_ids = {image_id for record in records if record is not None for image_id in record.failed} | views.failed_images(
                shard
            ).keys()
            first, last = views.shard_images(shard)
            images = (
                [first + number for number, image_id in enumerate(views.dataset.ids(first, last)) if image_id in failed_ids]
                if failed_ids
                else []
            )
            rows = np.array(images, np.int64)[:, None] * views.views_per_image + np.arange(views.views_per_image)
            self._failed[part, shard] = rows.ravel().astype(np.int64)
        return self._failed[part, shard]


def instead_of_failed(failed_B: NDArray[np.bool_]) -> Int64s:
    """Return for each row of a batch the row whose image it takes: its own, or the next one (around the end) that did not fail."""
    good = np.flatnonzero(~failed_B)
    if not len(good):
        raise BadInput("no image of this batch has tokens: all of them failed in the extraction; look at `features show`")
    next_good = np.searchsorted(good, np.arange(len(failed_B)))
    return good[next_good % len(good)].astype(np.int64)
