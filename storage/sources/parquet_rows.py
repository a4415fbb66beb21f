"""One image out of a Parquet file: footers, open files and decoded groups are kept, so that an image costs the reading of its own bytes.

Parquet cannot read a single row: a row group is read and decompressed as a whole (some hold a hundred images, some a thousand). What was
decoded last is kept, so that images in order cost one reading of their group; images in random order cost a group each, for which stored
pixels (`extract-features --pixels`) or small groups help. Of the group the images' column alone is read: of a remote file by one request.
Groups above 64 MB are decoded in batches of rows, because Arrow cannot hold 2 GB of a struct in one and a column that repeats its images
may be a thousand times as large in memory as in the file; a batch costs the decoding of those before it in its group, unless they were
asked for in order.

A file that changed is read anew: one on this disk is looked at (`stat`) for each image, of a remote one the bytes are asked for under the
condition that it is still the version whose footer is kept (`RemoteFiles.read_version`). One reader of a file serves all threads: it reads
at positions, without a buffer of its own (`pre_buffer` would be one).
"""

import os
import resource
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as kinds
from fsspec.implementations.local import LocalFileSystem

from ..core.errors import BadInput
from ..core.forks import ForkSafeLock
from ..core.lru_cache import LruCache
from ..objects.s3_download import VersionGone
from .remote_files import Shortened

IMAGE_COLUMNS = ("image", "img", "jpg", "png", "jpeg", "webp")
_BATCH_ROWS, _BATCH_BYTES = 256, 64 << 20
_MOST_BYTES = 1 << 30  # of images that are decoded at once, whatever the file says of them
_LARGE_IMAGES_ROWS = 16  # of 100 MB, the most that an image may have, stay below Arrow's 2 GB
_STREAM_BYTES = 16 << 20  # of a large group that are read at a time
_KEPT_BYTES = 512 << 20
_KEPT_FOOTER_BYTES, _PARSED = 1 << 30, 20  # a parsed footer takes some twenty times its length in the file
_KEPT_FILES = max(64, min(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[0]) // 4)  # that are open
_KEPT_BATCHES = 4
Images = Any  # an array of pyarrow, or several chunks of one
_UNKNOWN = 1 << 62  # more than the number of any batch: begin again
Version = Any  # of a file: what differs when it was written again


class NoImageColumn(BadInput):
    """A table has no column of images."""


def _holds_bytes(kind: pa.DataType) -> bool:
    if kinds.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_bytes(kind.field("bytes").type)
    return any(is_one(kind) for is_one in (kinds.is_binary, kinds.is_large_binary, kinds.is_binary_view, kinds.is_fixed_size_binary))


def image_column(schema: pa.Schema, path: str) -> str:
    """Return the image column of a Parquet file; raise `NoImageColumn` with the columns, or the type of the one without bytes."""
    candidates = [name for name in IMAGE_COLUMNS if name in schema.names]
    usable = [name for name in candidates if _holds_bytes(schema.field(name).type)]
    if usable:
        return usable[0]
    if candidates:
        raise NoImageColumn(
            f"{path}: its column {candidates[0]} is of type {schema.field(candidates[0]).type}, not the bytes of an image "
            "(binary, or Hugging Face's struct of bytes and path); write the table with the images in it"
        )
    raise NoImageColumn(f"{path} has no column of images ({', '.join(IMAGE_COLUMNS)}); it has {', '.join(schema.names)}")


def image_bytes(cell: Any) -> bytes | None:
    """Return the bytes in a cell of an image column, None when it has none."""
    value = cell.get("bytes") if isinstance(cell, dict) else cell
    return value if isinstance(value, bytes) else None


def _leaf(metadata: pq.FileMetaData, column: str) -> int:
    """Return the number of the Parquet column that holds the bytes of an image column."""
    paths = [metadata.schema.column(number).path for number in range(metadata.num_columns)]
    return next(number for number, path in enumerate(paths) if path in (column, f"{column}.bytes") or path.startswith(f"{column}.bytes."))


def _batch_rows(chunk: pq.ColumnChunkMetaData) -> int:
    """Return how many rows of a group's images to decode at a time, so that Arrow can hold them whatever their sizes are."""
    size, rows = max(1, chunk.total_uncompressed_size), max(1, chunk.num_values)
    most = min(_BATCH_ROWS, _BATCH_BYTES * rows // size)
    if chunk.has_dictionary_page:  # each row may be the largest entry of the dictionary
        most = min(most, _MOST_BYTES // size)
    elif size > _MOST_BYTES:
        most = min(most, _LARGE_IMAGES_ROWS)
    return max(1, most)


def _rows_at_once(chunk: pq.ColumnChunkMetaData) -> int:
    """Return how many rows are decoded and kept in one: the group's, or those of a batch."""
    size, rows = chunk.total_uncompressed_size, chunk.num_values
    if size <= _BATCH_BYTES and (not chunk.has_dictionary_page or size * rows <= _MOST_BYTES):
        return max(1, rows)
    return _batch_rows(chunk)


def rows_of_a_batch(metadata: pq.FileMetaData, column: str) -> int:
    """Return how many rows of a file can be decoded at a time: few where images are large or repeated."""
    leaf = _leaf(metadata, column)
    return min((_batch_rows(metadata.row_group(group).column(leaf)) for group in range(metadata.num_row_groups)), default=_BATCH_ROWS)


def stream_bytes(metadata: pq.FileMetaData) -> int:
    """Return how much of a file to read at a time (pyarrow's `buffer_size`): 0, a group's column at once, where groups are small."""
    largest = max((metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups)), default=0)
    return _STREAM_BYTES if largest > _BATCH_BYTES else 0


class _NoRow(OSError):
    """A file has fewer rows than were asked for."""


@dataclass
class _Footer:
    """A file's row groups: the first row of each, and the column with the images."""

    version: Version
    size: int
    metadata: pq.FileMetaData
    starts: list[int]
    column: str
    leaf: int
    reader: pq.ParquetFile | None = None  # of a file on this disk, which stays open
    at_once: dict[int, int] = field(default_factory=dict)  # rows by group, as they are asked for

    @property
    def weight(self) -> int:
        """Return the bytes of memory, and for an open file at least its share of those that may be open."""
        parsed = self.metadata.serialized_size * _PARSED
        return parsed if self.reader is None else max(parsed, _KEPT_FOOTER_BYTES // _KEPT_FILES)

    def chunk(self, group: int) -> pq.ColumnChunkMetaData:
        """Return where a group's images lie."""
        return self.metadata.row_group(group).column(self.leaf)

    def rows_at_once(self, group: int) -> int:
        """Return how many of a group's rows are decoded in one."""
        if group not in self.at_once:
            self.at_once[group] = _rows_at_once(self.chunk(group))
        return self.at_once[group]


class _Batches:
    """The batches of one large group, which are decoded in order; `start` begins again."""

    def __init__(self, start: Callable[[], Iterator[Images]]) -> None:
        self._start, self._lock = start, ForkSafeLock()
        self._batches: Iterator[Images] = iter(())
        self._next = _UNKNOWN

    def take(self, number: int, keep: Callable[[int, Images], None]) -> Images:
        """Return a batch; `keep` is given those that were passed on the way."""
        with self._lock:
            if number < self._next:
                self._batches, self._next = self._start(), 0
            try:
                for current in range(self._next, number):
                    keep(current, next(self._batches))
                images = next(self._batches)
            except BaseException:
                self._next = _UNKNOWN  # nobody knows how far it came
                raise
            self._next = number + 1
            return images


# What was read last, of all files of the process. The keys begin with the kind of file system and the path.
_FOOTERS: LruCache[tuple[Any, ...], _Footer] = LruCache(_KEPT_FOOTER_BYTES, lambda footer: footer.weight)
_GROUPS: LruCache[tuple[Any, ...], Images] = LruCache(_KEPT_BYTES, lambda images: images.nbytes)
_BATCHES: LruCache[tuple[Any, ...], _Batches] = LruCache(_KEPT_BATCHES)


class _LocalFile:
    """A Parquet file on this disk."""

    def __init__(self, filesystem: Any, full: str) -> None:
        self.full, self.key = full, ("file", full)
        status = os.stat(full)
        self.version: Version = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    def footer(self) -> _Footer:
        """Return the kept footer, or read it."""
        footer = _FOOTERS.get(self.key)
        if footer is not None and footer.version == self.version:
            return footer
        _FOOTERS.pop(self.key)
        return _FOOTERS.get_or_make(self.key, self._read_footer)

    def _read_footer(self) -> _Footer:
        reader = self._open()
        return replace(_read_footer(reader, self.full, self.version, self.version[1]), reader=reader)

    def is_current(self, footer: _Footer) -> bool:
        """Return whether a footer is still the file's."""
        return bool(footer.version == self.version)

    def read_group(self, footer: _Footer, group: int) -> pa.Table:
        """Return the images of a group; the reader serves all threads."""
        assert footer.reader is not None
        return _group_of(footer.reader, footer, group)

    def batches(self, footer: _Footer, group: int) -> Iterator[pa.RecordBatch]:
        """Yield the images of a large group, read by some megabytes."""
        yield from _batches_of(self._open(metadata=footer.metadata, buffer_size=_STREAM_BYTES), footer, group)

    def _open(self, **options: Any) -> pq.ParquetFile:
        parquet = pq.ParquetFile(pa.OSFile(self.full, "rb"), pre_buffer=False, **options)
        if type(self)(None, self.full).version != self.version:
            raise VersionGone(f"{self.full} was replaced while it was opened")
        return parquet


class _RemoteFile:
    """A Parquet file behind a URL (`remote_files.RemoteFiles`)."""

    def __init__(self, files: Any, full: str) -> None:
        self.files, self.full, self.key = files, full, (type(files).__name__, files.url, full)

    def footer(self) -> _Footer:
        """Return the kept footer, or read it; whether it is still the file's shows when its bytes are asked for."""
        return _FOOTERS.get_or_make(self.key, self._read_footer)

    def _read_footer(self) -> _Footer:
        version, size = self.files.version(self.full)
        with self.files.open_version(self.full, size, version) as source:
            return _read_footer(pq.ParquetFile(source, pre_buffer=False), self.full, version, size)

    def is_current(self, footer: _Footer) -> bool:
        """Return whether a footer is still the file's, by one request where that is one."""
        return bool(self.files.ukey(self.full) == footer.version)

    def read_group(self, footer: _Footer, group: int) -> pa.Table:
        """Return the images of a group, whose bytes are asked for by one request."""
        chunk = footer.chunk(group)
        start = min(chunk.data_page_offset, chunk.dictionary_page_offset or chunk.data_page_offset)
        span = (start, start + chunk.total_compressed_size)
        with self.files.open_version(self.full, footer.size, footer.version, span) as source:
            return _group_of(pq.ParquetFile(source, metadata=footer.metadata, pre_buffer=False), footer, group)

    def batches(self, footer: _Footer, group: int) -> Iterator[pa.RecordBatch]:
        """Yield the images of a large group, by requests of some megabytes."""
        with self.files.open_version(self.full, footer.size, footer.version) as source:
            parquet = pq.ParquetFile(source, metadata=footer.metadata, buffer_size=_STREAM_BYTES, pre_buffer=False)
            yield from _batches_of(parquet, footer, group)


def _group_of(parquet: pq.ParquetFile, footer: _Footer, group: int) -> pa.Table:
    # The number of the column, because looking up its name takes a tenth of the time of an image.
    return parquet.reader.read_row_group(group, column_indices=[footer.leaf], use_threads=False)


def _batches_of(parquet: pq.ParquetFile, footer: _Footer, group: int) -> Iterator[pa.RecordBatch]:
    return parquet.iter_batches(footer.rows_at_once(group), row_groups=[group], columns=[footer.column], use_threads=False)


def _read_footer(parquet: pq.ParquetFile, full: str, version: Version, size: int) -> _Footer:
    metadata, column = parquet.metadata, image_column(parquet.schema_arrow, full)
    counts = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    is_struct = kinds.is_struct(parquet.schema_arrow.field(column).type)
    return _Footer(version, size, metadata, [0, *accumulate(counts)], f"{column}.bytes" if is_struct else column, _leaf(metadata, column))


def parquet_row(filesystem: Any, full: str, row: int) -> bytes:
    """Return the bytes of one row's image; raise OSError when there is no such row. Kept unverified: readers check the sha256."""
    file = (_LocalFile if isinstance(filesystem, LocalFileSystem) else _RemoteFile)(filesystem, full)
    try:
        return _cell(file, row)
    except (OSError, pa.ArrowException) as error:
        if not _may_have_changed(error):
            raise
        _FOOTERS.pop(file.key)  # what is kept of it counts no more
    try:
        return _cell(type(file)(filesystem, full), row)
    except pa.ArrowException as error:
        raise OSError(f"{full} is not a readable Parquet file ({error}); was it changed?") from error


def _may_have_changed(error: Exception) -> bool:
    """Return whether a file that was written again is read like this; Arrow says of damage that it is an OSError, without a number."""
    return isinstance(error, (VersionGone, Shortened, _NoRow, pa.ArrowException)) or (type(error) is OSError and error.errno is None)


def _cell(file: "_LocalFile | _RemoteFile", row: int) -> bytes:
    footer = file.footer()
    starts = footer.starts
    if not 0 <= row < starts[-1]:
        raise _NoRow(f"{file.full} has no row {row}")
    group = bisect_right(starts, row) - 1
    first = starts[group]
    rows = starts[group + 1] - first
    if rows == 1:  # nothing to keep for other rows
        return image_bytes(_read_group(file, footer, group)[0].as_py()) or b""
    at_once = footer.rows_at_once(group)
    number, within = divmod(row - first, at_once)
    key = (*file.key, footer.version, group, number)
    images = _GROUPS.get(key)
    if images is None:
        images = _GROUPS.get_or_make(key, lambda: _decode(file, footer, group, number if at_once < rows else None))
    elif not file.is_current(footer):
        raise VersionGone(f"{file.full} is another file by now")
    return image_bytes(images[within].as_py()) or b""


def _decode(file: "_LocalFile | _RemoteFile", footer: _Footer, group: int, number: int | None) -> Images:
    """Return the images of a group, or of one batch of it."""
    if number is None:
        return _read_group(file, footer, group)
    key = (*file.key, footer.version, group)
    batches = _BATCHES.get_or_make((os.getpid(), *key), lambda: _Batches(partial(_even_batches, file, footer, group)))
    return batches.take(number, lambda passed, images: _GROUPS.put((*key, passed), images))


def _read_group(file: "_LocalFile | _RemoteFile", footer: _Footer, group: int) -> Images:
    column = file.read_group(footer, group).column(0)
    return _images([column.chunk(0)] if column.num_chunks == 1 else column.chunks)


def _even_batches(file: "_LocalFile | _RemoteFile", footer: _Footer, group: int) -> Iterator[Images]:
    """Yield a group's images in arrays of equally many rows, the last one shorter."""
    rows, parts, count = footer.rows_at_once(group), list[Any](), 0
    for batch in file.batches(footer, group):
        parts.append(batch.column(0))
        count += len(batch)
        if count >= rows:
            yield _images(parts)
            parts, count = [], 0
    if parts:
        yield _images(parts)


def _images(columns: list[Any]) -> Images:
    """Return the bytes of parts of an image column in one array."""
    parts = [part.field(0) if isinstance(part, pa.StructArray) else part for part in columns]
    return parts[0] if len(parts) == 1 else pa.chunked_array(parts)
