"""What earlier versions of a dataset hold of a set of views, and of feature sets over it, and how it is taken over.

A set over the new version has an identity of its own. It differs from the earlier one's in the dataset alone, and the views of an old image
depend on nothing else, so a complete shard is the same to the byte: its objects get a second key, and a new record. Of a shard that more
images have come into, the old rows are copied as they are stored, and only the others are computed. What is damaged in the earlier set is
not taken. The newest version that has a shard gives it. Statistics are those of the earlier version, or no token could be used again.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from .core.choices import ORIENTATIONS
from .core.errors import CacheDamaged
from .core.events import OnEvent, ignore_event
from .core.identity import digest, ids_digest
from .features.features import FeatureReader, TokenRows
from .images.versions import REMOVED
from .shards.commit import Record
from .shards.taken_over import take_shard
from .sources.decode import decoder_identity, orientation_of
from .store import FeatureStore
from .views.pixels import fill_pixels
from .views.view_set import PIXELS, ViewSet
from .views.view_spec import Views

Opened = TypeVar("Opened")
_THREADS = 4
_MEMORY_BYTES = 1 << 30  # of the shards under way


def earlier_views(views: ViewSet) -> Iterator[tuple[str, int]]:
    """Yield digest and rows of the view sets over earlier versions that are as these, the newest first; they need not be in the store."""
    decoder, reading = views.identity["decoder"], orientation_of(views.identity["decoder"])
    for version in reversed(views.dataset.earlier):
        # Where no image of a version carries an orientation, both ways to read it give the same pixels.
        readings = [reading, *(other for other in ORIENTATIONS if other != reading and not version.oriented)]
        for other_reading in readings:
            orientation = decoder_identity(other_reading)["orientation"]
            changes = {"dataset": version.digest, "images": version.images, "decoder": {**decoder, "orientation": orientation}}
            yield digest({**views.identity, **changes}), version.images * views.views_per_image


@dataclass(frozen=True)
class EarlierSets:
    """The sets over earlier versions that hold rows of these sets, the newest first."""

    views: ViewSet
    view_sets: Sequence[ViewSet]
    features: Mapping[str, Sequence[FeatureReader]]
    """By key of our feature set."""

    @classmethod
    def of(cls, store: FeatureStore, views: ViewSet, readers: Sequence[FeatureReader], on_event: OnEvent = ignore_event) -> "EarlierSets":
        """Find the sets; those that cannot be opened are left out with a warning."""
        view_sets: list[ViewSet] = []
        features: dict[str, list[FeatureReader]] = {reader.key: [] for reader in readers}
        for views_digest, _ in earlier_views(views):
            key = store.key_of("views", views_digest)
            earlier = None if key is None else _opened(partial(store.view_set, key), on_event)
            if earlier is None:
                continue
            view_sets.append(earlier)
            for features_key in store.list_features():
                identity = _opened(partial(store.features_identity, features_key), ignore_event)
                takers = [reader for reader in readers if identity is not None and _is_alike(identity, earlier.digest, reader.identity)]
                opened = _opened(partial(store.features, features_key), on_event) if takers else None
                for reader in takers:
                    features[reader.key] += [] if opened is None else [opened]
        return cls(views, view_sets, features)

    def take_over(self, readers: Sequence[FeatureReader], on_event: OnEvent = ignore_event) -> int:
        """Commit every missing shard that an earlier version has in full; return how many shards of feature sets were taken."""
        if not self.view_sets:
            return 0
        most = max(view_set.shards for view_set in self.view_sets)
        missing = sorted({shard for reader in readers for shard in reader.missing_shards() if shard < most})
        groups = [self.views.group, *(reader.group for reader in readers)]
        shard_bytes = max(sum(spec.row_bytes for spec in group.specs.values()) * group.shard_rows for group in groups)
        threads = max(1, min(_THREADS, _MEMORY_BYTES // shard_bytes))
        taken = 0
        with ThreadPoolExecutor(threads, thread_name_prefix="take over") as pool:
            work = partial(self._take_shard, readers=readers, on_event=on_event)
            for start in range(0, len(missing), 64):  # an error or Ctrl-C leaves few that have begun
                for done, count in enumerate(pool.map(work, missing[start : start + 64]), start=start + 1):
                    taken += count
                    stage = f"take over from version {self.views.dataset.version - 1}"
                    on_event({"event": "progress", "stage": stage, "done": done, "total": len(missing), "unit": "shards"})
        if taken:
            names = ", ".join(dict.fromkeys(view_set.dataset.key for view_set in self.view_sets))
            on_event({"event": "note", "text": f"{taken:,} shards are as they were computed for {names}, and are used again"})
        return taken

    def known_rows(self, shard: int, reader: FeatureReader) -> int:
        """Return how many of a shard's first rows an earlier feature set holds, as far as its records say."""
        for earlier in self.features[reader.key]:
            record = _record(earlier, shard)
            if record is not None and not self._has_revived(record):
                return record.rows
        return 0

    def known_view_rows(self, shard: int) -> int:
        """Return how many of a shard's first views an earlier set holds, as far as its records say."""
        records = (_record(earlier, shard) for earlier in self.view_sets)
        return next((record.rows for record in records if record is not None and not self._has_revived(record)), 0)

    def _has_revived(self, record: Record) -> bool:
        """Return whether an image that had been removed is back: it has no row there."""
        gone = [image_id for image_id, why in record.failed.items() if why == REMOVED]
        return bool(gone) and any(not self.views.dataset.is_removed(int(n)) for n in self.views.dataset.index_of(gone))

    def _take_shard(self, shard: int, readers: Sequence[FeatureReader], on_event: OnEvent) -> int:
        ids = ids_digest(self.views.dataset.ids(*self.views.shard_images(shard)))
        if self.views.group.record(shard) is None:
            self._take_first(self.views, self.view_sets, shard, ids, "", on_event)
        of_views = self.views.group.record(shard)
        if of_views is None:
            return 0
        count = 0
        for reader in readers:
            if reader.group.record(shard) is None:
                alike = [earlier for earlier in self.features[reader.key] if self._same_views(earlier, shard, of_views)]
                count += self._take_first(reader, alike, shard, ids, of_views.digest, on_event)
        return count

    def _take_first(
        self, ours: ViewSet | FeatureReader, earlier_sets: Sequence[ViewSet | FeatureReader], shard: int, ids: str, views_record: str,
        on_event: OnEvent,
    ) -> bool:  # fmt: skip
        """Take a shard from the first of some sets that has it whole; a damaged one is reported and passed over."""
        for earlier in earlier_sets:
            record = _record(earlier, shard)
            if record is None or record.image_ids_sha256 != ids or self._has_revived(record):
                continue
            fresh = Record(ours.digest, shard, record.rows, ids, {}, record.failed, views_record)
            flaw = take_shard(ours.group, earlier.group, record, fresh)
            if not flaw:
                return True
            on_event({"event": "warning", "text": f"shard {shard} is not taken over: {flaw}"})
        return False

    def _same_views(self, earlier: FeatureReader, shard: int, of_views: Record) -> bool:
        """Return whether an earlier set's tokens of a shard are of the very views that are committed here."""
        of_theirs, record = _record(earlier.views, shard), _record(earlier, shard)
        return (
            of_theirs is not None
            and record is not None
            and record.views_record in ("", of_theirs.digest)
            and {name: entry.xxh3_128 for name, entry in of_theirs.objects.items()}
            == {name: entry.xxh3_128 for name, entry in of_views.objects.items()}
        )

    def begin_views(self, shard: int) -> Views | None:
        """Commit the views of a shard whose first images an earlier set has: those as they are, the others drawn; None without such a set.

        Raise as an extraction does for images that changed.
        """
        if not self.view_sets:
            return None
        ids = ids_digest(self.views.dataset.ids(*self.views.shard_images(shard)))
        if self._take_first(self.views, self.view_sets, shard, ids, "", ignore_event):
            return self.views.read_shard(shard)
        for earlier in self.view_sets:
            record = _record(earlier, shard)
            if record is None or self._has_revived(record):
                continue
            first, last = self.views.group.shard_span(shard)
            drawn, failed, known = self.views.draw_shard(shard), dict(record.failed), record.rows
            pixels = self._empty_pixels(last - first)
            try:
                theirs = earlier.read_shard(shard)
                assert theirs is not None
                for ours, values in zip(_arrays(drawn), _arrays(theirs), strict=True):
                    ours[:known] = values
                if pixels is not None:
                    good = np.flatnonzero(theirs.digest.any(axis=1))
                    pixels[good] = earlier.read_pixels(good + earlier.group.shard_span(shard)[0])
            except CacheDamaged:
                continue
            outputs = [] if pixels is None or self.views.spec.pixels is None else [(self.views.spec.pixels.input, pixels[known:])]
            rows = np.arange(first + known, last)
            fill_pixels(self.views, rows, drawn.part(slice(known, last - first)), outputs, drawn_now=True, failed=failed)
            self.views.commit_shard(shard, drawn, failed, pixels)
            return self.views.read_shard(shard)
        return None

    def _empty_pixels(self, rows: int) -> NDArray[np.uint8] | None:
        spec = self.views.group.specs.get(PIXELS)
        return None if spec is None else np.zeros((rows, *spec.shape[1:]), np.uint8)

    def copy_rows(self, shard: int, reader: FeatureReader, buffer: TokenRows) -> tuple[int, dict[str, str]]:
        """Copy the first rows of a shard from an earlier set; return how many, and the images that failed there (id → reason).

        Nothing is copied where the views are not the same or the rows are damaged.
        """
        if not self.features[reader.key]:
            return 0, {}
        committed = self.views.read_shard(shard)
        for earlier in self.features[reader.key]:
            record = _record(earlier, shard)
            if record is None or self._has_revived(record):
                continue
            try:
                theirs = earlier.views.read_shard(shard)
                if theirs is None or not _begins_with(committed, theirs):
                    continue
                rows = self._rows_with_tokens(record, shard)
                tokens = earlier.read(rows + earlier.group.shard_span(shard)[0])
            except CacheDamaged:
                continue
            for ours, values in zip(buffer, tokens, strict=True):
                if ours is not None and values is not None:
                    ours[rows] = values
            if buffer.position is not None and (drawn := reader.draw_positions(shard)) is not None:
                buffer.position[: record.rows] = drawn[: record.rows]  # of failed images, too, which have no stored ones
            return record.rows, dict(record.failed)
        return 0, {}

    def _rows_with_tokens(self, record: Record, shard: int) -> NDArray[np.int64]:
        """Return the rows of an earlier record, within the shard, whose image did not fail."""
        per_image, (first, _) = self.views.views_per_image, self.views.shard_images(shard)
        ids = self.views.dataset.ids(first, first + record.rows // per_image)
        good = np.repeat([image_id not in record.failed for image_id in ids], per_image)
        return np.flatnonzero(good).astype(np.int64)


def _opened(make: Callable[[], Opened], on_event: OnEvent) -> Opened | None:
    """Return what a call gives, None and a warning where it is damaged."""
    try:
        return make()
    except CacheDamaged as error:
        on_event({"event": "warning", "text": f"nothing is taken over from an earlier version's set: {error}"})
        return None


def _record(opened: ViewSet | FeatureReader, shard: int) -> Record | None:
    """Return the record of a shard, None where the set does not reach so far, or the record is missing or damaged."""
    try:
        return opened.group.record(shard) if shard < opened.group.shards else None
    except CacheDamaged:
        return None


def _is_alike(earlier: Mapping[str, Any], views_digest: str, ours: Mapping[str, Any]) -> bool:
    """Return whether a feature set over an earlier version's views holds what ours does: by teacher, layout and statistics."""
    decisive = ("method", "digest", "count", "pooled")
    statistics = [{name: identity["statistics"].get(name) for name in decisive} for identity in (earlier, ours)]
    others = [{name: value for name, value in identity.items() if name not in ("views", "statistics")} for identity in (earlier, ours)]
    return earlier.get("views") == views_digest and statistics[0] == statistics[1] and others[0] == others[1]


def _begins_with(ours: Views | None, theirs: Views) -> bool:
    return ours is not None and all(
        len(left) >= len(right) and np.array_equal(left[: len(right)], right)
        for left, right in zip(_arrays(ours), _arrays(theirs), strict=True)
    )


def _arrays(views: Views) -> list[NDArray[Any]]:
    return [views.crop, views.flip, views.photometric, views.digest]
