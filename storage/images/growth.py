"""Compare a walk over a source with the newest version of its dataset, and put grown rows in their order: the old ones, then the new ones.

An old image is there when the walk has its id with the same bytes, size and label. What else the walk has is new. Images that are gone are
refused unless the user allows it; then their rows stay, marked as removed. Changed images are always refused: an id means one image in all
versions. A source that shares neither its place nor most of its images with a dataset is another one, whatever its name.
Price: 40 bytes of memory an image while the two are compared.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..core.checksums import xxh3_64
from ..core.choices import Orientation
from ..core.errors import BadInput, CacheDamaged
from ..objects.content_addressed import is_key
from ..objects.objects import Objects
from .dataset import ImageDataset
from .index_rows import IndexRows, take
from .locations import canonical_source
from .versions import Earlier, describe_removed, without_earlier

Int64s = NDArray[np.int64]
_SHOWN = 3


@dataclass(frozen=True)
class FinalRows:
    """How the rows of a walk become those of a dataset."""

    label_names: list[str]
    label_numbers: NDArray[np.int32]
    """The final number of each label by order of appearance, −1 appended."""
    oriented: int
    """Images with an orientation other than 1."""
    order: Int64s | None = None
    """The rows in the dataset's order; None: as they were walked."""
    earlier: tuple[Earlier, ...] = ()
    removed_N: NDArray[np.bool_] | None = None
    """Which images left the source; None: none."""
    behind: pa.Table | None = None
    """The rows of removed images, which stand behind the walk's in `order`."""

    @property
    def removed_sha256(self) -> str | None:
        """The sha256 of `removed.bits`, None where nothing was removed."""
        return None if self.removed_N is None else str(describe_removed(self.removed_N)["bits_sha256"])

    def described(self) -> dict[str, Any]:
        """Return what the dataset's identity says of versions; {} for a dataset that continues none."""
        extends = {"extends": [version._asdict() for version in self.earlier]} if self.earlier else {}
        return extends if self.removed_N is None else {**extends, "removed": describe_removed(self.removed_N)}


@dataclass(frozen=True)
class Walk:
    """What a walk over a source found."""

    source: str
    rows: IndexRows
    labels: Mapping[str, int]
    """Number by order of appearance."""
    label_names: Sequence[str]
    """In the order of a dataset of its own."""
    oriented_rows: Int64s
    orientation: Orientation
    """How sizes were read."""
    takes_targets: bool = False
    """Targets of dense tasks are taken as images."""
    leaves_targets: bool = False
    """Targets of dense tasks were left out."""


def versions_named(objects: Objects, name: str) -> list[ImageDataset]:
    """Return the datasets of a name whose identity can be read."""
    datasets = []
    for key in keys_named(objects, name):
        with contextlib.suppress(CacheDamaged):
            datasets.append(ImageDataset(objects, key))
    return datasets


def keys_named(objects: Objects, name: str) -> list[str]:
    """Return the keys of the datasets of a name."""
    return [key for key in objects.names("datasets") if is_key(key) and key.rpartition("@")[0] == name]


def newest_versions(datasets: Sequence[ImageDataset]) -> list[ImageDataset]:
    """Return the datasets that none of the others extends, the largest first."""
    newest = without_earlier({dataset.key: (dataset.digest, dataset.earlier) for dataset in datasets})
    return sorted((dataset for dataset in datasets if dataset.key in newest), key=len, reverse=True)


def continued(newest: Sequence[ImageDataset], walk: Walk, allow_removed: bool) -> FinalRows | None:
    """Return the rows of the version that a walk makes: those of a dataset that it equals, or continues; None for other images.

    Raise `BadInput` for images that were changed, and for removed ones unless they are allowed.
    """
    compared = [Comparison.of(dataset, walk) for dataset in newest]
    related = [comparison for comparison in compared if comparison is not None and comparison.is_related]
    related.sort(key=lambda comparison: comparison.gone + len(comparison.changed))  # stable: of several that fit the largest
    if not related:
        return None
    related[0].refuse_losses(allow_removed)
    return related[0].final_rows()


@dataclass
class Comparison:
    """A dataset and a walk: where each old image stands among the walk's rows."""

    dataset: ImageDataset
    walk: Walk
    places_N: Int64s
    """The walk's row of each image that is there unchanged, −1 of the others."""
    oriented: int
    """Images of the dataset that carry an orientation other than 1 in the walk."""
    changed: dict[str, str] = field(default_factory=dict)
    """Image id → what differs."""

    @classmethod
    def of(cls, dataset: ImageDataset, walk: Walk) -> "Comparison | None":
        """Compare; None where the images of the two are not turned alike, or dense targets not taken alike: that is another dataset."""
        comparison = cls(dataset, walk, np.full(len(dataset), -1, np.int64), 0)
        find, first = _Finder(walk.rows), 0
        is_oriented = np.zeros(walk.rows.count, np.bool_)
        is_oriented[walk.oriented_rows] = True
        for table in dataset.groups():
            places = find(table.column("id"))
            comparison.oriented += int(is_oriented[places[places >= 0]].sum())
            comparison._compare(table, places, first)
            first += len(table)
        turned_otherwise = dataset.indexed != walk.orientation and (dataset.oriented or comparison.oriented)
        other_targets = walk.takes_targets and not dataset.has_targets
        other_targets |= walk.leaves_targets and dataset.has_targets and comparison.gone > 0
        return None if turned_otherwise or other_targets else comparison

    def _compare(self, table: pa.Table, places: Int64s, first: int) -> None:
        there = np.flatnonzero(places >= 0)
        if not len(there):
            return
        old, new = table.take(there), take(self.walk.rows.table(), places[there])
        number_of = np.array([self.walk.labels.get(name, -2) for name in self.dataset.label_names] + [-1])
        same_label = number_of[old.column("label").to_numpy()] == new.column("label").to_numpy()
        flaws = {
            "other bytes": ~_equal(old, new, "sha256"),
            "another label": ~same_label,
            "another size": ~(_equal(old, new, "height") & _equal(old, new, "width")),
        }
        changed = np.logical_or.reduce(list(flaws.values()))
        self.places_N[first + there[~changed]] = places[there[~changed]]
        for n in np.flatnonzero(changed).tolist():
            what = next(what for what, mask in flaws.items() if mask[n])
            self.changed[old.column("id")[n].as_py()] = what

    @property
    def kept(self) -> int:
        """How many images are there unchanged."""
        return int((self.places_N >= 0).sum())

    def _gone_N(self) -> NDArray[np.bool_]:
        """Which images are not there and were in the version before."""
        gone_N = self.places_N < 0
        gone_N[self.dataset.removed()] = False
        if self.changed:
            gone_N[self.dataset.index_of(list(self.changed))] = False
        return gone_N

    @property
    def gone(self) -> int:
        """How many images left the source since the version before."""
        return int(self._gone_N().sum())

    @property
    def is_related(self) -> bool:
        """Whether the walk is over what the dataset was made from: its place, or most of its images."""
        places = {canonical_source(place) for place in self.dataset.sources}
        live = len(self.dataset) - self.dataset.removed_count
        return canonical_source(self.walk.source) in places or 2 * self.kept >= live

    def refuse_losses(self, allow_removed: bool) -> None:
        """Raise `BadInput` for changed images, and for removed ones unless they are allowed."""
        key, source, version = self.dataset.key, self.walk.source, self.dataset.version
        whole = f"{len(self.dataset):,} images of {key} (version {version})"
        ways = f"index {source} under another --name, which makes a dataset of its own"
        if self.changed:
            named = _named([f"{image_id} has {what}" for image_id, what in self.changed.items()])
            raise BadInput(
                f"{len(self.changed):,} of the {whole} are not as they were in {source}: {named}. An id means one image in all versions "
                f"of a dataset: bring the images of then back and give the changed ones other names, or {ways}"
            )
        gone_N = self._gone_N()
        if gone_N.any() and not allow_removed:
            named = _named([self.dataset.row(image).id for image in np.flatnonzero(gone_N)[: _SHOWN + 1].tolist()])
            raise BadInput(
                f"{int(gone_N.sum()):,} of the {whole} are not in {source} any more: {named}. Bring them back; or say --allow-removed, "
                f"which keeps their rows, marks them as removed and trains without them; or {ways}"
            )

    def final_rows(self) -> FinalRows:
        """Return the rows of the version that follows, the dataset's own where nothing changed."""
        dataset, rows, labels = self.dataset, self.walk.rows, dict(self.walk.labels)
        is_old = np.zeros(rows.count, np.bool_)
        is_old[self.places_N[self.places_N >= 0]] = True
        new = np.flatnonzero(~is_old)
        removed_N, removed_before = self.places_N < 0, np.zeros(len(dataset), np.bool_)
        removed_before[dataset.removed()] = True
        continues = len(new) > 0 or bool((removed_N != removed_before).any())
        order = np.concatenate([self.places_N, new])
        order[: len(dataset)][removed_N] = rows.count + np.arange(int(removed_N.sum()))
        behind = pa.concat_tables(self._removed_rows(removed_N, labels)) if removed_N.any() else None
        names = [*dataset.label_names, *(name for name in self.walk.label_names if name not in set(dataset.label_names))]
        numbers = np.full(len(labels) + 1, -1, np.int32)
        position_of = {name: position for position, name in enumerate(names)}
        for name, number in labels.items():
            numbers[number] = position_of[name]
        this = Earlier(dataset.digest, len(dataset), self.oriented if self.walk.orientation == dataset.indexed else dataset.oriented)
        return FinalRows(
            names,
            numbers,
            len(self.walk.oriented_rows) + max(0, dataset.oriented - self.oriented),
            order,
            (*dataset.earlier, this) if continues else dataset.earlier,
            np.concatenate([removed_N, np.zeros(len(new), np.bool_)]) if removed_N.any() else None,
            behind,
        )

    def _removed_rows(self, removed_N: NDArray[np.bool_], labels: dict[str, int]) -> Iterator[pa.Table]:
        """Yield the index rows of removed images, with their labels numbered as the walk's are; new names are added to `labels`."""
        first = 0
        for table in self.dataset.groups():
            mask, first = removed_N[first : first + len(table)], first + len(table)
            if mask.any():
                rows = table.filter(pa.array(mask))
                names = [self.dataset.label_names[label] if label >= 0 else None for label in rows.column("label").to_numpy().tolist()]
                numbers = [-1 if name is None else labels.setdefault(name, len(labels)) for name in names]
                yield rows.set_column(rows.schema.get_field_index("label"), "label", pa.array(numbers, pa.int32()))


class _Finder:
    """Finds images among the rows of a walk by id, in 16 bytes an image."""

    def __init__(self, rows: IndexRows) -> None:
        self._rows = rows
        batches = (batch.column(0) for batch in rows.table().select(["id"]).to_batches())
        hashes = np.concatenate([np.empty(0, np.uint64), *(_hashes(batch) for batch in batches)])
        self._order = np.argsort(hashes, kind="stable")
        self._sorted = hashes[self._order]

    def __call__(self, ids: "pa.ChunkedArray[Any]") -> Int64s:
        """Return the row of each id, −1 where there is none."""
        wanted = _hashes(ids)
        spots = np.searchsorted(self._sorted, wanted)
        positions = np.full(len(wanted), -1, np.int64)
        there = np.flatnonzero(self._sorted[np.minimum(spots, len(self._sorted) - 1)] == wanted)
        positions[there] = self._order[spots[there]]
        for n, walked_id, image_id in zip(there.tolist(), self._ids(positions[there]), ids.take(there).to_pylist(), strict=True):
            if walked_id != image_id:
                positions[n] = self._among_equal_hashes(int(spots[n]), str(image_id))
        return positions

    def _ids(self, rows: Int64s) -> list[str]:
        return [str(image_id) for image_id in take(self._rows.table(), rows).column("id").to_pylist()]

    def _among_equal_hashes(self, spot: int, image_id: str) -> int:
        """Return the row of an id whose hash another id has as well, −1 where it is not there."""
        last = int(np.searchsorted(self._sorted, self._sorted[spot], side="right"))
        candidates = self._order[spot:last]
        return next((int(row) for row in candidates if self._ids(np.array([row]))[0] == image_id), -1)


def _hashes(ids: Any) -> NDArray[np.uint64]:
    return np.fromiter((xxh3_64(image_id.encode()) for image_id in ids.to_pylist()), np.uint64, len(ids))


def _equal(left: pa.Table, right: pa.Table, column: str) -> NDArray[np.bool_]:
    return np.asarray(pc.equal(left.column(column), right.column(column)).to_numpy())


def _named(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + ("; …" if len(names) > _SHOWN else "")
