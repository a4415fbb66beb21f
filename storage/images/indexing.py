"""Build a dataset's index: read every image once, note its sha256, size and label, and publish the result under its digest.

Files of the source are walked in order by a few threads at once (hashing and header reading release the interpreter lock); the order of the
index does not depend on them. Rows wait on disk (`index_rows`): memory holds the names of the files and the rows of eight files, however
many images there are. Whatever is left out is counted and said (`left_out`); above a limit of broken images (0.1 %) the run stops,
because a source that is broken in a thousandth of its files is rarely the one that was meant. The same content found at another place
is the same dataset, which notes the place (`places`).
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
from ..sources.found import ClassNames, LeftOut, Skipped, SourceImage, TarEnd, shown
from ..sources.image_kinds import IMAGE_ENDINGS, ending_of, targets_among
from ..sources.locations import add_place, canonical_source
from ..sources.sources import list_files, open_source, walk
from .dataset import PART_IMAGES, ROW_GROUP, ImageDataset, ImageRow, dataset_digest, describe, parse_description, part_name
from .index_rows import IndexRows, rows_of
from .left_out import LeftOutCounts

MAX_BAD_SHARE = 0.001
_NUMBER = re.compile(r"-?\d+(\.\d+)?")
_THREADS = 4
_AHEAD = 2 * _THREADS  # files whose rows wait in memory for those before them
_TARGETS = "targets of dense tasks (.seg.png, .depth.png and so on) beside their image; --dense-targets takes them as images"


class Result(NamedTuple):
    """An image, what was left out, or the names of classes; of an image its label, and whether it carries an orientation other than 1."""

    item: ImageRow | Skipped | LeftOut | ClassNames
    label: str | None = None
    is_oriented: bool = False


@dataclass
class _Index:
    """The index under construction: its rows on disk, labels by first sight, what was left out."""

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
        """Take the names of the classes; raise `BadInput` when another file has named others."""
        known = self.classes or classes
        if known.names != classes.names:
            places = zip_longest(known.names, classes.names)
            number, (one, other) = next((number, pair) for number, pair in enumerate(places) if pair[0] != pair[1])
            raise BadInput(
                f"{known.path} and {classes.path} name other classes: number {number} is {one!r} in one and {other!r} in the other; "
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
        """Label names in their final order, and the final number of each number by first sight; the last is of −1.

        The order is that of a file's class names, where there are any; else numbers come first, as numbers. Raise `BadInput` for a label
        that is none of the class names.
        """
        if self.classes is not None and (stray := [text for text in self.labels if text not in self.classes.names]):
            raise BadInput(
                f"{self.classes.path} names {len(self.classes.names):,} classes, and other files have labels that are none of them: "
                f"{', '.join(stray[:5])}; give all files the same names, or index them apart"
            )
        names = list(self.classes.names) if self.classes else sorted(self.labels, key=_place_of_label)
        numbers = np.full(len(self.labels) + 1, -1, np.int32)
        places = {text: place for place, text in enumerate(names)}
        for text, number in self.labels.items():
            numbers[number] = places[text]
        return names, numbers


def _place_of_label(text: str) -> tuple[int, Decimal, str]:
    """Return where a label is sorted: numbers as numbers, negative ones and fractions too, then names."""
    return (0, Decimal(text), text) if _NUMBER.fullmatch(text) else (1, Decimal(0), text)


def _examine(found: SourceImage, orientation: Orientation) -> Result:
    try:
        header = image_header(found.data, where=found.image_id, orientation=orientation)
    except BadImage as error:
        return Result(Skipped(found.image_id, str(error).removeprefix(f"{found.image_id}: ")))
    sha256, length = hashlib.sha256(found.data).digest(), len(found.data)
    size_hw = header.height_px, header.width_px
    row = ImageRow(found.image_id, found.path, found.container, found.offset, length, sha256, *size_hw, -1)
    return Result(row, found.label, header.orientation != 1)


def _results(filesystem: Any, root: str, path: str, dense_targets: bool, orientation: Orientation) -> list[Result]:
    """Return what one file of the source holds, each image examined as it comes; a tar's labels and targets are known at its end."""
    results: list[Result] = []
    end = TarEnd()
    for found in walk(filesystem, root, path):
        if isinstance(found, TarEnd):
            end = found
        elif isinstance(found, SourceImage):
            results.append(_examine(found, orientation))
        else:
            results.append(Result(found))
    if dense_targets:
        end = TarEnd(end.labels)
    return [_settled(result, end) for result in results]


def _settled(result: Result, end: TarEnd) -> Result:
    item = result.item
    if isinstance(item, (LeftOut, ClassNames)):
        return result
    name = item.id if isinstance(item, ImageRow) else item.name
    return Result(LeftOut(name, _TARGETS)) if name in end.targets else result._replace(label=end.labels.get(name, result.label))


def examined(url: str, dense_targets: bool = False, orientation: Orientation = "stored") -> Iterator[tuple[list[Result], int, int]]:
    """Results of each file of the source in order, with the number of files done and in all."""
    filesystem, root = open_source(url)
    files = list_files(filesystem, root)
    store = next((path for path in files if path.rsplit("/", 1)[-1] == MARKER), None)
    if store is not None:
        raise BadInput(f"{url} holds a feature store ({store}), whose own files are no images of yours; keep the two in folders apart")
    targets = set() if dense_targets else targets_among([path for path in files if ending_of(path) in IMAGE_ENDINGS])

    def one(path: str) -> list[Result]:
        if path in targets:
            return [Result(LeftOut(shown(path), _TARGETS))]
        return _results(filesystem, root, path, dense_targets, orientation)

    pool = ThreadPoolExecutor(_THREADS)
    try:
        ahead = deque(pool.submit(one, path) for path in files[:_AHEAD])
        for number in range(1, len(files) + 1):
            results = ahead.popleft().result()
            if number + _AHEAD <= len(files):
                ahead.append(pool.submit(one, files[number + _AHEAD - 1]))
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
    """Index `source` as `name`; the same content gives the same dataset. Raise `BadInput` for an empty or broken source.

    Images are turned upright, or taken as stored; where none carries an orientation the two are one dataset. Files such as `1.seg.png`
    beside `1.jpg` are no training images, unless `dense_targets` takes them. Where the dataset stands with a damaged identity or index,
    those are put right.
    """
    check_name("dataset", name)
    source = canonical_source(source)
    with IndexRows() as rows:
        index = _walked(rows, source, name, dense_targets, orientation, on_event)
        _check_yield(index, source, max_bad_share)
        _say_what_is_left_out(index, name, on_event)
        _say_how_images_are_turned(index.oriented, name, orientation, on_event)
        dataset = ImageDataset(objects, _publish(objects, source, name, index, orientation))
        # Of this walk: where the dataset stood already, others may have been left out then, or nobody counted.
        dataset.oriented = index.oriented
        dataset.skipped, dataset.left_out = index.left_out.first, dict(index.left_out.counts)
        return dataset


def _say_what_is_left_out(index: _Index, name: str, on_event: Callable[[Event], None]) -> None:
    """A line of all lost samples, and a line for each kind of what is left out."""
    left_out = index.left_out
    if left_out.broken:
        text = f"left out of {name}: {left_out.broken:,} of {index.seen:,} samples ({index.first_skipped})"
        on_event({"event": "warning", "text": text})
    for line, is_warning in left_out.lines():
        on_event({"event": "warning" if is_warning else "note", "text": f"left out of {name}: {line}"})


def restore_index(objects: Objects, key: str, source: str, on_event: Callable[[Event], None] = lambda event: None) -> bool:
    """Put a dataset's identity and index right from its images; False, and nothing is written, when `source` has other images.

    The identity may be what is lost, so every reading that it could name is tried: dense targets taken or not, images turned or not.
    """
    name = key.rpartition("@")[0]
    readings: list[tuple[bool, Orientation]] = list(product((False, True), ORIENTATIONS[::-1]))
    while readings:
        dense_targets, orientation = readings.pop(0)
        with IndexRows() as rows:
            index = _walked(rows, source, name, dense_targets, orientation, on_event)
            if rows.count and f"{name}@{short(_digests(index, orientation)[1])}" == key:
                _publish(objects, source, name, index, orientation)
                return True
            if not dense_targets and _TARGETS not in index.left_out.counts:
                readings = [one for one in readings if not one[0]]
            if not index.oriented:
                readings = [one for one in readings if one[0] != dense_targets]
    return False


def _walked(
    rows: IndexRows, source: str, name: str, dense_targets: bool, orientation: Orientation, on_event: Callable[[Event], None]
) -> _Index:
    index = _Index(rows)
    for results, done, total in examined(source, dense_targets, orientation):
        for result in results:
            index.add(result)
        on_event({"event": "progress", "stage": f"index {name}", "done": done, "total": total, "unit": "files", "images": rows.count})
    return index


def _say_how_images_are_turned(oriented: int, name: str, orientation: Orientation, on_event: Callable[[Event], None]) -> None:
    if oriented:
        done = "turned upright; --orientation stored leaves them as they are"
        left = "left as they are; --orientation upright turns them as a viewer does"
        text = f"{oriented:,} images of {name} carry an orientation other than 1 and are {done if orientation == 'upright' else left}"
        on_event({"event": "note", "text": text})


def _check_yield(index: _Index, source: str, max_bad_share: float) -> None:
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
    """Of the contents, and of the dataset."""
    labels, numbers = index.final_labels()
    hasher = hashlib.sha256()
    for table in index.rows.tables(ROW_GROUP, numbers):
        for row in rows_of(table):
            hasher.update(row.content())
    content = hasher.hexdigest()
    # With nothing to turn, both readings are one, and older indexes are that one.
    return content, dataset_digest(content, labels, orientation if index.oriented else "stored")


def _publish(objects: Objects, source: str, name: str, index: _Index, orientation: Orientation) -> str:
    content_sha256, full = _digests(index, orientation)
    labels, numbers = index.final_labels()
    key = f"{name}@{short(full)}"
    where = f"datasets/{key}/identity.json"
    data, flaw = read_and_check(objects, where, partial(parse_description, prefix=f"datasets/{key}"), MAX_IDENTITY_BYTES)
    if data is not None and not flaw:
        described = parse_description(data, f"datasets/{key}")
        _mend_parts(objects, key, described, index.rows.tables(PART_IMAGES, numbers))
        add_place(objects, key, source, index.rows.tables(PART_IMAGES, numbers))
        return key
    # The index goes first: a dataset exists when its identity does.
    parts = [_publish_part(objects, key, table, number) for number, table in enumerate(index.rows.tables(PART_IMAGES, numbers))]
    described = {
        "kind": "dataset",
        "digest": full,
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
    if not objects.create(where, [describe(described)]) and flaw:
        replace_verified(objects, where, describe(described))
    return key


def _part_bytes(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=ROW_GROUP, write_page_checksum=True)
    return buffer.getvalue()


def _publish_part(objects: Objects, key: str, table: pa.Table, number: int) -> str:
    """Write one part of the index; return the sha256 of the file that stands there, ours or one that a killed run left.

    The dataset has no identity that would vouch for another file, and its digest is that of our rows: what differs from them is replaced.
    """
    ours, where = _part_bytes(table), f"datasets/{key}/{part_name(number)}"
    if objects.create(where, [ours]):
        return hashlib.sha256(ours).hexdigest()
    standing, flaw = read_and_check(objects, where, partial(_refuse_other_rows, table=table, where=where))
    if standing is None or flaw:
        replace_verified(objects, where, ours)
        standing = ours
    return hashlib.sha256(standing).hexdigest()


def _refuse_other_rows(data: bytes, table: pa.Table, where: str) -> None:
    with parsing(where):
        if not pq.read_table(io.BytesIO(data)).equals(table):
            raise ValueError("it has other rows")


def _mend_parts(objects: Objects, key: str, described: dict[str, Any], tables: Iterator[pa.Table]) -> None:
    """Put damaged parts of a standing dataset right, from the rows that its digest covers.

    Another version of Arrow may write the same rows in other bytes: the identity, written last, then names those.
    """
    known = list(described["index_sha256"])
    for number, table in enumerate(tables):
        where = f"datasets/{key}/{part_name(number)}"
        standing, flaw = read_or_flaw(objects, where)
        if standing is None or flaw or hashlib.sha256(standing).hexdigest() != described["index_sha256"][number]:
            ours = _part_bytes(table)
            replace_verified(objects, where, ours)
            known[number] = hashlib.sha256(ours).hexdigest()
    if known != described["index_sha256"]:
        replace_verified(objects, f"datasets/{key}/identity.json", describe({**described, "index_sha256": known}))
