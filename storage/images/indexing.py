"""Build a dataset's index: read every image once, record its sha256, size and label, and publish the result under its digest.

Files of the source are read by a few threads (hashing and header reading release the interpreter lock); the order of the index does not
depend on them. Rows are buffered on disk (`index_rows`): memory holds the names of the files and the rows of eight files, however many
images there are. Everything left out is counted and reported (`left_out`); above a limit of broken images (0.1 %) the run stops, because a
source with more is rarely the one that was meant. The same content found at another location is the same dataset, which stores the location
(`locations`).
"""

import hashlib
import io
import re
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from itertools import islice, product, zip_longest
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..core.choices import ORIENTATIONS, Orientation
from ..core.errors import BadInput
from ..core.events import Event
from ..core.identity import short
from ..objects.content_addressed import MARKER, MAX_IDENTITY_BYTES, check_name, parsing
from ..objects.damaged_files import read_and_check, read_or_flaw, replace_verified
from ..objects.objects import Objects
from ..sources.decode import BadImage, image_header
from ..sources.image_kinds import IMAGE_ENDINGS, ending_of, targets_among
from ..sources.locations import add_location, canonical_source
from ..sources.source_items import ClassNames, LeftOut, Skipped, SourceImage, TarEnd, printable
from ..sources.sources import list_files, open_source, walk
from .dataset import PART_IMAGES, ROW_GROUP, ImageDataset, ImageRow, dataset_digest, pack_description, parse_description, part_name
from .index_rows import IndexRows, rows_of
from .left_out import LeftOutCounts

MAX_BAD_SHARE = 0.001
_NUMBER = re.compile(r"-?\d+(\.\d+)?")
_THREADS = 4
_FILES_AHEAD = 2 * _THREADS  # files whose rows wait in memory for those before them
_TARGETS = "targets of dense tasks (.seg.png, .depth.png and so on) beside their image; --dense-targets takes them as images"


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
    oriented: int = 0
    classes: ClassNames | None = None

    def add(self, result: Result) -> None:
        item, label, is_oriented = result
        if isinstance(item, ClassNames):
            self._agree(item)
            return
        if not isinstance(item, ImageRow):
            self.left_out.add(item)
            return
        self.oriented += is_oriented
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
    return Result(LeftOut(name, _TARGETS)) if name in tar_end.targets else result._replace(label=tar_end.labels.get(name, result.label))


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
            return [Result(LeftOut(printable(path), _TARGETS))]
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
    on_event: Callable[[Event], None] = lambda event: None,
) -> ImageDataset:
    """Index `source` as `name`; equal content gives the same dataset. Raise `BadInput` for an empty or broken source.

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
        _report_orientation(index.oriented, name, orientation, on_event)
        dataset = ImageDataset(objects, _publish(objects, source, name, index, orientation))
        # Of this walk: where the dataset stood already, others may have been left out then, or nobody counted.
        dataset.oriented = index.oriented
        dataset.skipped, dataset.left_out = index.left_out.first, dict(index.left_out.counts)
        return dataset


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
            if rows.count and f"{name}@{short(_digests(index, orientation)[1])}" == key:
                _publish(objects, source, name, index, orientation)
                return True
            if not dense_targets and _TARGETS not in index.left_out.counts:
                readings = [reading for reading in readings if not reading[0]]
            if not index.oriented:
                readings = [reading for reading in readings if reading[0] != dense_targets]
    return False


def _collect_rows(
    rows: IndexRows, source: str, name: str, dense_targets: bool, orientation: Orientation, on_event: Callable[[Event], None]
) -> _Index:
    index = _Index(rows)
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


def _digests(index: _Index, orientation: Orientation) -> tuple[str, str]:
    """Return the sha256 of the contents and the digest of the dataset."""
    labels, numbers = index.final_labels()
    hasher = hashlib.sha256()
    for table in index.rows.tables(ROW_GROUP, numbers):
        for row in rows_of(table):
            hasher.update(row.content())
    content = hasher.hexdigest()
    # With nothing to turn, both readings are one, and older indexes are that one.
    return content, dataset_digest(content, labels, orientation if index.oriented else "stored")


def _publish(objects: Objects, source: str, name: str, index: _Index, orientation: Orientation) -> str:
    content_sha256, full_digest = _digests(index, orientation)
    labels, numbers = index.final_labels()
    key = f"{name}@{short(full_digest)}"
    where = f"datasets/{key}/identity.json"
    data, flaw = read_and_check(objects, where, partial(parse_description, prefix=f"datasets/{key}"), MAX_IDENTITY_BYTES)
    if data is not None and not flaw:
        described = parse_description(data, f"datasets/{key}")
        _repair_parts(objects, key, described, index.rows.tables(PART_IMAGES, numbers))
        add_location(objects, key, source, index.rows.tables(PART_IMAGES, numbers))
        return key
    # The index goes first: a dataset exists when its identity does.
    parts = [_publish_part(objects, key, table, number) for number, table in enumerate(index.rows.tables(PART_IMAGES, numbers))]
    described = {
        "kind": "dataset",
        "digest": full_digest,
        "source": source,
        "images": index.rows.count,
        "labels": labels,
        "skipped": index.left_out.first,
        "content_sha256": content_sha256,
        "index_sha256": parts,
    }
    if index.oriented:
        described |= {"orientation": orientation, "oriented": index.oriented}
    if index.left_out.counts:
        described["left_out"] = dict(index.left_out.counts)
    if _TARGETS in index.left_out.counts:
        described["without_targets"] = True
    if not objects.create(where, [pack_description(described)]) and flaw:
        replace_verified(objects, where, pack_description(described))
    return key


def _part_bytes(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=ROW_GROUP, write_page_checksum=True)
    return buffer.getvalue()


def _publish_part(objects: Objects, key: str, table: pa.Table, number: int) -> str:
    """Write one part of the index; return the sha256 of the stored file, ours or an equal one that a killed run left.

    The dataset has no identity that would vouch for another file, and its digest is that of our rows: what differs from them is replaced.
    """
    content, where = _part_bytes(table), f"datasets/{key}/{part_name(number)}"
    if objects.create(where, [content]):
        return hashlib.sha256(content).hexdigest()
    existing, flaw = read_and_check(objects, where, partial(_refuse_other_rows, table=table, where=where))
    if existing is None or flaw:
        replace_verified(objects, where, content)
        existing = content
    return hashlib.sha256(existing).hexdigest()


def _refuse_other_rows(data: bytes, table: pa.Table, where: str) -> None:
    with parsing(where):
        if not pq.read_table(io.BytesIO(data)).equals(table):
            raise ValueError("it has other rows")


def _repair_parts(objects: Objects, key: str, described: dict[str, Any], tables: Iterator[pa.Table]) -> None:
    """Rewrite damaged parts of an existing dataset, from the rows that its digest covers.

    Another version of Arrow may write the same rows in other bytes: the identity, written last, then names those.
    """
    sha256s = list(described["index_sha256"])
    for number, table in enumerate(tables):
        where = f"datasets/{key}/{part_name(number)}"
        existing, flaw = read_or_flaw(objects, where)
        if existing is None or flaw or hashlib.sha256(existing).hexdigest() != described["index_sha256"][number]:
            content = _part_bytes(table)
            replace_verified(objects, where, content)
            sha256s[number] = hashlib.sha256(content).hexdigest()
    if sha256s != described["index_sha256"]:
        replace_verified(objects, f"datasets/{key}/identity.json", pack_description({**described, "index_sha256": sha256s}))
