"""The statistics that normalise a teacher's tokens: measured on a fixed sample of views, or taken from another feature set.

The sample is a pure function of the number of views, drawn before the first shard. Unless batches are asked for, it costs at most 3 % of
the forwards: `ALL_VIEWS` or fewer are all measured, shard by shard, and their tokens kept until the shard is computed; of more, 3 % are
measured, in batches of 32 whatever the size of a forward is. Parts are merged in their order: the same request gives the same statistics
on any number of workers. What was measured is frozen in the store under what it was measured on, and statistics that were frozen on the
500 batches that used to be the default are used again.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...storage.core.errors import BadInput, CacheMismatch
from ...storage.core.events import OnEvent
from ...storage.core.identity import differing_fields
from ...storage.earlier_sets import earlier_views
from ...storage.features.features import FeatureReader
from ...storage.features.statistics import NORMALISATIONS, Statistics
from ...storage.store import FeatureStore
from ...storage.views.view_set import ViewSet
from ...teachers.registry.spec import TeacherSpec
from .pool import Workers
from .shard_worker import Measure, SampleMoments
from .summary import progress

SAMPLE_BATCH = 32  # views
ALL_VIEWS = 8000  # so many are all measured, and pass the teacher once
_PAPER_BATCHES = 500  # iterations that the paper measures over
_SHARE = 0.03  # of more: 240 views at least
_SAMPLE_SEED = 0x5EED
Sampling = dict[str, Any]


def sample_size(rows: int) -> int:
    """Return how many of `rows` views are measured where nobody says it."""
    return rows if rows <= ALL_VIEWS else min(_PAPER_BATCHES * SAMPLE_BATCH, int(rows * _SHARE))


def sample_rows(rows: int, count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return `count` rows for the statistics, ascending; all rows, once, when there are no more than that."""
    if count >= rows:
        return np.arange(rows)
    raw = np.asarray(np.random.Philox(key=_SAMPLE_SEED).random_raw(count), np.uint64)
    return np.sort((raw % np.uint64(rows)).astype(np.int64))


class Normalisation:
    """Statistics by teacher, and what each was measured on; `missing` names those that must still be measured."""

    def __init__(
        self,
        store: FeatureStore,
        views: ViewSet,
        specs: Mapping[str, TeacherSpec],
        batches: int | None,
        borrowed: Sequence[str] = (),
        method: str = "mean-std",
    ) -> None:
        self.store, self.views, self.specs, self.batches, self.method = store, views, specs, batches, method
        self.sampling: dict[str, Sampling] = {name: self._sampling(batches) for name in specs}
        self.known: dict[str, Statistics] = {}
        for key in borrowed:
            self._borrow(store.features(key))
        for name in set(specs) - set(self.known):
            self._find(name)

    @property
    def missing(self) -> list[str]:
        """The teachers whose statistics are not known yet, in the order of the request."""
        return [name for name in self.specs if name not in self.known]

    def _sampling(self, batches: int | None, rows: int | None = None) -> Sampling:
        if batches is None:
            return {"views": sample_size(self.views.rows if rows is None else rows), "seed": _SAMPLE_SEED}
        return {"batches": batches, "batch_size": SAMPLE_BATCH, "seed": _SAMPLE_SEED}

    def _find(self, name: str) -> None:
        """Take what was frozen for a teacher on these views, else on those of an earlier version, without which no token is used again.

        Without a number of batches, what the earlier default has measured serves where the sample of today was measured nowhere; so a set
        that was begun goes on, whoever has asked for a number of batches since.
        """
        versions = [(self.views.digest, self.views.rows), *earlier_views(self.views)]
        for batches in (None, _PAPER_BATCHES) if self.batches is None else (self.batches,):
            for views_digest, rows in versions:
                sampling = self._sampling(batches, rows)
                kept = self.store.kept_statistics(name, {**self._measured_on(name), "views": views_digest, "sample": sampling})
                if kept is not None:
                    self.known[name] = kept
                    self.sampling[name] = sampling if views_digest == self.views.digest else {"from_views": views_digest, **sampling}
                    return

    @property
    def sampled(self) -> int:
        """How many views are measured."""
        return min(self.views.rows, sample_size(self.views.rows) if self.batches is None else self.batches * SAMPLE_BATCH)

    @property
    def whole(self) -> bool:
        """Whether whole shards are measured, whose forwards are worth keeping."""
        return self.batches is None and self.sampled == self.views.rows

    def _measured_on(self, name: str) -> dict[str, Any]:
        recorded = NORMALISATIONS[self.method].recorded
        return {"teacher": self.specs[name].identity(), "views": self.views.digest, "sample": self.sampling[name], **recorded}

    def _borrow(self, reader: FeatureReader) -> None:
        """Take a feature set's statistics for the teacher that made it, at whatever input size and precision."""
        differences = {
            name: differing_fields(_core(spec.identity()), _core(reader.identity["teacher"])) for name, spec in self.specs.items()
        }
        takers = [name for name, lines in differences.items() if not lines]
        if not takers:
            lines = "; ".join(f"{name}: {', '.join(fields)}" for name, fields in differences.items())
            raise CacheMismatch(f"no teacher of this command made {reader.key}, whose statistics were asked for ({lines})")
        described = {key: value for key, value in reader.identity["statistics"].items() if key not in ("method", "digest", "count")}
        for name in takers:
            if name in self.known and self.known[name].digest != reader.statistics.digest:
                raise BadInput(f"two feature sets with different statistics were given for {name}, {reader.key} is the second; give one")
            self.known[name] = reader.statistics
            self.sampling[name] = {"from_views": reader.views.digest, **described}

    def measure(self, workers: Workers, on_event: OnEvent) -> None:
        """Fill in what is missing, each frozen in the store as soon as it is known."""
        names = self.missing
        if not names:
            return
        tasks = self._tasks(names)
        started, merged, unit = time.perf_counter(), _InOrder(self.method), "shards" if self.whole else "batches"
        for done, (number, result) in enumerate(workers.run(tasks), start=1):
            merged.add(number, result)
            on_event(progress("statistics", done, len(tasks), unit, started, done))
        for name in names:
            self.known[name] = self.store.keep_statistics(name, self._measured_on(name), merged.statistics(name))

    def _tasks(self, names: list[str]) -> list[tuple[str, tuple[Any, ...]]]:
        if self.whole:
            return [("measure_shard", (shard, names)) for shard in range(self.views.shards)]
        rows = sample_rows(self.views.rows, self.sampled if self.batches is None else self.batches * SAMPLE_BATCH)
        return [("measure", (rows[start : start + SAMPLE_BATCH].tolist(), names)) for start in range(0, len(rows), SAMPLE_BATCH)]


def _core(teacher_identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return the identity fields that two teachers must share to be normalised alike: all but the input's size and the precision."""
    prep = {key: value for key, value in teacher_identity["preprocessing"].items() if key != "size_px"}
    rest = {key: value for key, value in teacher_identity.items() if key not in ("grid", "precision", "preprocessing")}
    return {**rest, "preprocessing": prep}


class _InOrder:
    """Merges the batches in their order, so that which worker did which does not change a bit of the result.

    A result is merged as soon as those before it are: a covariance has millions of entries, and few of them wait.
    """

    def __init__(self, method: str) -> None:
        self._method, self._next, self._views = method, 0, 0
        self._waiting: dict[int, SampleMoments] = {}
        self._sums: dict[str, tuple[Measure | None, Measure]] = {}

    def add(self, number: int, result: SampleMoments) -> None:
        """Add one batch's result."""
        self._waiting[number] = result
        while (ready := self._waiting.pop(self._next, None)) is not None:
            self._next, self._views = self._next + 1, self._views + ready.views
            for name, (cls, patch) in ready.moments.items():
                self._sums[name] = _merge(self._sums[name], cls, patch) if name in self._sums else (cls, patch)

    def statistics(self, name: str) -> Statistics:
        """Return frozen statistics of one teacher; raises `BadInput` when no image could be decoded, or PHI-S has no matrix for the
        width.
        """
        if name not in self._sums:
            raise BadInput("none of the sampled images can be decoded; look at the source, then index it again")
        return NORMALISATIONS[self._method].freeze(*self._sums[name], self._views)


def _merge(into: tuple[Measure | None, Measure], cls: Measure | None, patch: Measure) -> tuple[Measure | None, Measure]:
    pairs: list[tuple[Any, Any]] = [(into[0], cls), (into[1], patch)]
    for sums, part in pairs:
        if sums is not None and part is not None:
            sums.merge(part)
    return into
