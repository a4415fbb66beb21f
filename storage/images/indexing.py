"""Build a dataset's index: read every image once, record its sha256, size and label, and publish the result under its digest.

Files of the source are read by a few threads (hashing and header reading release the interpreter lock); the order of the index does not
depend on them. Rows are buffered on disk (`index_rows`): memory holds the names of the files and the rows of eight files, however many
images there are. Everything left out is counted and reported (`left_out`); above a limit of broken images (0.1 %) the run stops, because a
source with more is rarely the one that was meant. The same content found at another location is the same dataset, which stores the location
(`locations`).
"""

import contextlib
import hashlib
import re
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import islice, product, zip_longest
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..core.choices import ORIENTATIONS, Orientation
from ..core.errors import BadInput, CacheDamaged, EupeError
from ..core.events import Event
from ..core.identity import short
from ..objects.content_addressed import MARKER, check_name
from ..objects.objects import Objects
from ..sources.decode import BadImage, image_header
from ..sources.image_kinds import IMAGE_ENDINGS, ending_of, targets_among
from ..sources.source_items import ClassNames, LeftOut, Skipped, SourceImage, TarEnd, printable
from ..sources.sources import list_files, open_source, walk
from .dataset import ImageDataset, ImageRow
from .growth import FinalRows, Walk, continued, keys_named, newest_versions, versions_named
from .index_rows import IndexRows
from .left_out import LeftOutCounts
from .locations import canonical_source
from .publishing import TARGETS, digests_of_rows, publish

MAX_BAD_SHARE = 0.001
_NUMBER = re.compile(r"-?\d+(\.\d+)?")
_THREADS = 4
_FILES_AHEAD = 2 * _THREADS  # files whose rows wait in memory for those before them


class Result(NamedTuple):
    """An image, something left out, or class names; of an image its label, and whether it carries an orientation other than 1."""

    item: ImageRow | Skipped | LeftOut | ClassNames
    label: str | None = None
    is_oriented: bool = False


@dataclass
class _Index:
    """The index under construction: its rows on disk, labels in order of appearance, what was left out."""

    rows: IndexRows
    labels: dict[str, int] = field(default_factory=dict)
    left_out: LeftOutCounts = field(default_factory=LeftOutCounts)
    oriented_rows: "array[int]" = field(default_factory=lambda: array("q"))
    dense_targets: bool = False
    classes: ClassNames | None = None

    def add(self, result: Result) -> None:
        item, label, is_oriented = result
        if isinstance(item, ClassNames):
            self._agree(item)
            return
        if not isinstance(item, ImageRow):
            self.left_out.add(item)
            return
        if is_oriented:
            self.oriented_rows.append(self.rows.count)
        number = -1 if label is None else self.labels.setdefault(label, len(self.labels))
        self.rows.add(ImageRow(**{**item.__dict__, "label": number}))

    def _agree(self, classes: ClassNames) -> None:
        """Take the class names of a file; raise `BadInput` when another file has others."""
        known = self.classes or classes
        if known.names != classes.names:
            pairs = zip_longest(known.names, classes.names)
            number, (first, second) = next((number, pair) for number, pair in enumerate(pairs) if pair[0] != pair[1])
            raise BadInput(
                f"{known.path} and {classes.path} name other classes: number {number} is {first!r} in one and {second!r} in the other; "
                "give the files one list of names, or index them apart"
            )
        self.classes = known

    @property
    def seen(self) -> int:
        """Samples that were found, usable or not."""
        return self.rows.count + self.left_out.broken

    @property
    def first_skipped(self) -> str:
        """The first few that were left out, and why."""
        named = "; ".join(f"{name}: {reason}" for name, reason in islice(self.left_out.first_broken.items(), 5))
        return named + ("; …" if self.left_out.broken > 5 else "")

    def as_walked(self) -> FinalRows:
        """Return the rows of a dataset that continues none."""
        names, numbers = self.final_labels()
        return FinalRows(names, numbers, len(self.oriented_rows))

    def walk(self, source: str, orientation: Orientation) -> Walk:
        """Return what is compared with earlier versions."""
        return Walk(
            source, self.rows, self.labels, self.final_labels()[0], np.array(self.oriented_rows, np.int64), orientation,
            takes_targets=self.dense_targets, leaves_targets=TARGETS in self.left_out.counts,
        )  # fmt: skip

    def final_labels(self) -> tuple[list[str], NDArray[np.int32]]:
        """Return the label names in final order, and the final number of each label by order of appearance, with −1 appended.

        The order is that of a file's class names, where there are any; else numbers come first, in numeric order. Raise `BadInput` for a
        label that is none of the class names.
        """
        if self.classes is not None and (unknown_labels := [text for text in self.labels if text not in self.classes.names]):
            raise BadInput(
                f"{self.classes.path} names {len(self.classes.names):,} classes, and other files have labels that are none of them: "
                f"{', '.join(unknown_labels[:5])}; give all files the same names, or index them apart"
            )
        names = list(self.classes.names) if self.classes else sorted(self.labels, key=_label_sort_key)
        numbers = np.full(len(self.labels) + 1, -1, np.int32)
        positions = {text: position for position, text in enumerate(names)}
        for text, number in self.labels.items():
            numbers[number] = positions[text]
        return names, numbers


def _label_sort_key(text: str) -> tuple[int, Decimal, str]:
    """Return the sort key of a label: numbers in numeric order (negative ones and fractions too), then names."""
    return (0, Decimal(text), text) if _NUMBER.fullmatch(text) else (1, Decimal(0), text)


def _read_header(image: SourceImage, orientation: Orientation) -> Result:
    try:
        header = image_header(image.data, where=image.image_id, orientation=orientation)
    except BadImage as error:
        return Result(Skipped(image.image_id, str(error).removeprefix(f"{image.image_id}: ")))
    sha256, length = hashlib.sha256(image.data).digest(), len(image.data)
    size_hw = header.height_px, header.width_px
    row = ImageRow(image.image_id, image.path, image.container, image.offset, length, sha256, *size_hw, -1)
    return Result(row, image.label, header.orientation != 1)


def _results(filesystem: Any, root: str, path: str, dense_targets: bool, orientation: Orientation) -> list[Result]:
    """Return what one file of the source holds, each image examined as it is read; a tar's labels and targets are known at its end."""
    results: list[Result] = []
    tar_end = TarEnd()
    for item in walk(filesystem, root, path):
        if isinstance(item, TarEnd):
            tar_end = item
        elif isinstance(item, SourceImage):
            results.append(_read_header(item, orientation))
        else:
            results.append(Result(item))
    if dense_targets:
        tar_end = TarEnd(tar_end.labels)
    return [_resolve_targets(result, tar_end) for result in results]


def _resolve_targets(result: Result, tar_end: TarEnd) -> Result:
    item = result.item
    if isinstance(item, (LeftOut, ClassNames)):
        return result
    name = item.id if isinstance(item, ImageRow) else item.name
    return Result(LeftOut(name, TARGETS)) if name in tar_end.targets else result._replace(label=tar_end.labels.get(name, result.label))


def walk_source(url: str, dense_targets: bool = False, orientation: Orientation = "stored") -> Iterator[tuple[list[Result], int, int]]:
    """Yield the results of each file of the source in order, with the number of files done and in all."""
    filesystem, root = open_source(url)
    files = list_files(filesystem, root)
    store = next((path for path in files if path.rsplit("/", 1)[-1] == MARKER), None)
    if store is not None:
        raise BadInput(f"{url} holds a feature store ({store}), whose own files are no images of yours; keep the two in folders apart")
    targets = set() if dense_targets else targets_among([path for path in files if ending_of(path) in IMAGE_ENDINGS])

    def examine(path: str) -> list[Result]:
        if path in targets:
            return [Result(LeftOut(printable(path), TARGETS))]
        return _results(filesystem, root, path, dense_targets, orientation)

    pool = ThreadPoolExecutor(_THREADS)
    try:
        pending = deque(pool.submit(examine, path) for path in files[:_FILES_AHEAD])
        for number in range(1, len(files) + 1):
            results = pending.popleft().result()
            if number + _FILES_AHEAD <= len(files):
                pending.append(pool.submit(examine, files[number + _FILES_AHEAD - 1]))
            yield results, number, len(files)
    finally:
        pool.shutdown(cancel_futures=True)  # an error is said without reading the tars behind it


def build_index(
    objects: Objects,
    source: str,
    name: str,
    *,
    max_bad_share: float = MAX_BAD_SHARE,
    dense_targets: bool = False,
    orientation: Orientation = "upright",
    as_version: bool = True,
    allow_removed: bool = False,
    on_event: Callable[[Event], None] = lambda event: None,
) -> ImageDataset:
    """Index `source` as `name`; equal content gives the same dataset. Raise `BadInput` for an empty or broken source.

    A source that grew gives the next version of its dataset (`growth`); one that lost images is refused, unless `allow_removed`. Without
    `as_version` it is compared with no other dataset.
    Images are turned upright, or taken as stored; where none carries an orientation the two give one dataset. Files such as `1.seg.png`
    beside `1.jpg` are no training images, unless `dense_targets` takes them. A damaged identity or index of an existing dataset is
    repaired.
    """
    check_name("dataset", name)
    source = canonical_source(source)
    with IndexRows() as rows:
        index = _collect_rows(rows, source, name, dense_targets, orientation, on_event)
        _check_bad_share(index, source, max_bad_share)
        _report_left_out(index, name, on_event)
        _report_orientation(len(index.oriented_rows), name, orientation, on_event)
        final = _final_rows(objects, source, name, index, orientation, allow_removed) if as_version else index.as_walked()
        dataset = ImageDataset(objects, publish(objects, source, name, rows, index.left_out, orientation, final))
        # Of this walk: where the dataset stood already, others may have been left out then, or nobody counted.
        dataset.oriented = final.oriented
        dataset.skipped, dataset.left_out = index.left_out.first, dict(index.left_out.counts)
        return dataset


def _final_rows(objects: Objects, source: str, name: str, index: _Index, orientation: Orientation, allow_removed: bool) -> FinalRows:
    """Return the rows as they were walked where they are a known dataset or a new one, else as they continue the newest version.

    Where that one is damaged and the walk still has its images, they are its rows: writing them puts it right.
    """
    as_walked = index.as_walked()
    if not keys_named(objects, name):
        return as_walked
    datasets = versions_named(objects, name)
    newest, walked_key = newest_versions(datasets), _key_of(name, index, orientation, as_walked)
    places = {canonical_source(place) for dataset in newest if dataset.key != walked_key for place in dataset.sources}
    is_older = any(dataset.key == walked_key for dataset in datasets) and walked_key not in [dataset.key for dataset in newest]
    if objects.names(f"datasets/{walked_key}") and not (is_older and source in places):
        return as_walked  # also a damaged one, which is repaired
    unreadable = set(keys_named(objects, name)) - {dataset.key for dataset in datasets}
    damage: CacheDamaged | None = None
    if not unreadable:
        try:
            return continued(newest, index.walk(source, orientation), allow_removed) or as_walked
        except CacheDamaged as error:
            damage = error
    wanted = unreadable | {dataset.key for dataset in newest if damage}
    for final in _possible_rows(objects, source, name, index, orientation):
        if _key_of(name, index, orientation, final) in wanted:
            return final
    if damage is not None:
        raise damage
    return continued(newest, index.walk(source, orientation), allow_removed) or as_walked


def _key_of(name: str, index: _Index, orientation: Orientation, final: FinalRows) -> str:
    return f"{name}@{short(digests_of_rows(index.rows, orientation, final)[1])}"


def _report_left_out(index: _Index, name: str, on_event: Callable[[Event], None]) -> None:
    """Report all lost samples in one event, and each kind of what is left out in another."""
    left_out = index.left_out
    if left_out.broken:
        text = f"left out of {name}: {left_out.broken:,} of {index.seen:,} samples ({index.first_skipped})"
        on_event({"event": "warning", "text": text})
    for line, is_warning in left_out.lines():
        on_event({"event": "warning" if is_warning else "note", "text": f"left out of {name}: {line}"})


def restore_index(objects: Objects, key: str, source: str, on_event: Callable[[Event], None] = lambda event: None) -> bool:
    """Restore a dataset's identity and index from its images; return False, writing nothing, when `source` has other images.

    The identity may be what is lost, so every reading that it could name is tried: dense targets taken or not, images turned or not.
    """
    name = key.rpartition("@")[0]
    readings: list[tuple[bool, Orientation]] = list(product((False, True), ORIENTATIONS[::-1]))
    while readings:
        dense_targets, orientation = readings.pop(0)
        with IndexRows() as rows:
            index = _collect_rows(rows, source, name, dense_targets, orientation, on_event)
            for final in _possible_rows(objects, source, name, index, orientation):
                if _key_of(name, index, orientation, final) == key:
                    publish(objects, source, name, rows, index.left_out, orientation, final)
                    return True
            if not dense_targets and TARGETS not in index.left_out.counts:
                readings = [reading for reading in readings if not reading[0]]
            if not index.oriented_rows:
                readings = [reading for reading in readings if reading[0] != dense_targets]
    return False


def _possible_rows(objects: Objects, source: str, name: str, index: _Index, orientation: Orientation) -> Iterator[FinalRows]:
    """Yield the rows that a damaged dataset may have had: as walked, and as they continue each whole dataset of its name."""
    if not index.rows.count:
        return
    yield index.as_walked()
    for whole in versions_named(objects, name):
        with contextlib.suppress(EupeError):
            if (final := continued([whole], index.walk(source, orientation), allow_removed=True)) is not None:
                yield final


def _collect_rows(
    rows: IndexRows, source: str, name: str, dense_targets: bool, orientation: Orientation, on_event: Callable[[Event], None]
) -> _Index:
    index = _Index(rows, dense_targets=dense_targets)
    for results, done, total in walk_source(source, dense_targets, orientation):
        for result in results:
            index.add(result)
        on_event({"event": "progress", "stage": f"index {name}", "done": done, "total": total, "unit": "files", "images": rows.count})
    return index


def _report_orientation(oriented: int, name: str, orientation: Orientation, on_event: Callable[[Event], None]) -> None:
    if oriented:
        turned = "turned upright; --orientation stored leaves them as they are"
        unchanged = "left as they are; --orientation upright turns them as a viewer does"
        text = (
            f"{oriented:,} images of {name} carry an orientation other than 1 and are {turned if orientation == 'upright' else unchanged}"
        )
        on_event({"event": "note", "text": text})


def _check_bad_share(index: _Index, source: str, max_bad_share: float) -> None:
    seen, broken = index.seen, index.left_out.broken
    if not index.rows.count:
        broken_ones = [index.first_skipped] if broken else []
        lines = "; ".join([*broken_ones, *(line for line, _ in index.left_out.lines()[:5])])
        raise BadInput(
            f"no image was found in {source}" + (f" ({lines})" if lines else "") + "; give a folder of images, .tar or .parquet files"
        )
    if broken > max_bad_share * seen:
        raise BadInput(
            f"{broken} of {seen} samples in {source} are not usable images, more than the limit of {max_bad_share:.2%} "
            f"({index.first_skipped}); mend the source or raise --max-bad-share"
        )
