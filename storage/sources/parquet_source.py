"""Images in Parquet files: raw bytes, or the Hugging Face struct {bytes, path}, one image a row.

Parquet cannot read a single row: a row group is read and decompressed as a whole (some hold a hundred images, some a thousand). The most
recent ones are cached, so that images in order cost one read of their group (80 ms an image became 2 in groups of 40 MB); images in random
order cost a group each, for which stored pixels (`extract-features --pixels`) or small groups help. A file's footer, which lists all
groups, is read once. Groups above a gigabyte are decoded in pieces, because Arrow cannot hold 2 GB of a struct in one.

Of a label column integers are class numbers whatever type holds them (1, 1.0, a decimal, a dictionary's entry), text is a name. Null, NaN
and −1 mean no label. A column that Hugging Face's `datasets` declares a ClassLabel holds indices into the class names in the file's
metadata. Columns of lists, structs, maps or dates are refused, because it is unclear which of their values is the class.
"""

import json
import math
from bisect import bisect_right
from collections.abc import Iterator
from decimal import Decimal
from itertools import accumulate
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as kinds

from ..core.errors import BadInput, EupeError
from ..core.lru_cache import LruCache
from .sample_labels import MINUS_ONE, UnusableLabel, label_text
from .source_items import ClassNames, LeftOut, Skipped, SourceImage, SourceItem

IMAGE_COLUMNS = ("image", "img", "jpg", "png", "jpeg", "webp")
LABEL_COLUMNS = ("label", "labels", "fine_label", "cls")
_KEPT_BYTES = 512 << 20
_KEPT_FOOTERS = 64
_BATCH_ROWS, _BATCH_BYTES = 256, 64 << 20
_MAX_UNSPLIT_BYTES = 1 << 30  # of a row group that is decoded in one piece
_TABLES = "tables without images beside a tar of the same name (img2dataset writes them)"
_NO_BYTES = "no image bytes"
_ONLY_A_PATH = "only the path of an image, not its bytes; write the table with the images in it"
_NOT_A_NUMBER = "labels of NaN, which stands for none"
_PLAIN = (
    *(kinds.is_integer, kinds.is_floating, kinds.is_boolean, kinds.is_decimal, kinds.is_null),
    *(kinds.is_string, kinds.is_large_string, kinds.is_string_view, kinds.is_binary, kinds.is_large_binary),
)
Column = Any  # pa.ChunkedArray, whose stubs want an element type


class ParquetLabels:
    """The labels of one column; raises `BadInput` for an unusable column or unusable class names."""

    def __init__(self, schema: pa.Schema, column: str, path: str) -> None:
        self._where = f"{path}, column {column}"
        kind = schema.field(column).type
        value = kind.value_type if kinds.is_dictionary(kind) else kind
        if not any(has_type(value) for has_type in _PLAIN):
            raise BadInput(f"{self._where}: labels of type {kind}, none of which is the class; write a number or a name a row")
        self.class_names = self._names(_declared_class_names(schema, column, self._where))

    def _names(self, declared: list[Any] | None) -> tuple[str, ...] | None:
        if declared is None:
            return None
        try:
            names = tuple(label_text(name) for name in declared)
        except UnusableLabel as error:
            raise BadInput(f"{self._where}: a class name in its metadata cannot be used ({error}); correct the metadata") from error
        duplicate = next((name for name in names if names.count(name) > 1), None)
        if duplicate is not None:
            raise BadInput(f"{self._where}: its metadata names the class {duplicate!r} twice; correct the metadata")
        return names

    def read(self, value: Any, row: int) -> tuple[str | None, str | None]:
        """Return a cell's label, or None and why it is not used (None for a null); raise `BadInput` for a class without a name."""
        if value is None:
            return None, None
        try:
            if isinstance(value, (float, Decimal)) and math.isnan(value):
                raise UnusableLabel(_NOT_A_NUMBER)
            text = label_text(value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value)
            if text == "-1":
                raise UnusableLabel(MINUS_ONE)
        except UnusableLabel as error:
            return None, str(error)
        return (text if self.class_names is None else self._named(text, value, row)), None

    def _named(self, text: str, value: Any, row: int) -> str:
        names = self.class_names or ()
        if isinstance(value, (str, bytes)) and text in names:
            return text
        number = int(value) if isinstance(value, bool) else int(text) if text.isdecimal() else -1
        if not 0 <= number < len(names):
            raise BadInput(f"{self._where}, row {row}: {text} is none of the {len(names):,} classes that its metadata names; correct one")
        return names[number]


def _declared_class_names(schema: pa.Schema, column: str, where: str) -> list[Any] | None:
    """Return the names of a ClassLabel in the metadata of Hugging Face's `datasets`; None when the column is not declared one."""
    metadata = (schema.metadata or {}).get(b"huggingface")
    if metadata is None:
        return None
    try:
        features = json.loads(metadata).get("info", {}).get("features", {})
        feature = features.get(column) or {}
        if feature.get("_type") != "ClassLabel":
            return None
        names = feature.get("names")
    except (ValueError, AttributeError, RecursionError) as error:
        raise BadInput(f"{where}: the metadata of Hugging Face cannot be read ({error}); write the file again") from error
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BadInput(f"{where}: the class names in its metadata are no list of names; correct the metadata")
    return names


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


def walk_parquet(filesystem: Any, full: str, path: str, is_source: bool = False) -> Iterator[SourceItem]:
    """Yield the images of a Parquet file in order, with their labels; a table of a tar's captions is counted and left out.

    Raise `BadInput` for a file that is not readable Parquet, or whose columns are no images and labels.
    """
    with filesystem.open(full, "rb") as file:
        try:
            yield from _rows(pq.ParquetFile(file), path)
        except NoImageColumn:
            if is_source or not filesystem.exists(f"{full[: -len('.parquet')]}.tar"):
                raise
            yield LeftOut(path, _TABLES, plain=True)
        except EupeError:
            raise
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise BadInput(f"{path} is not a readable Parquet file ({error})") from error


def _rows(parquet: pq.ParquetFile, path: str) -> Iterator[SourceItem]:
    schema = parquet.schema_arrow
    image = image_column(schema, path)
    column = next((name for name in LABEL_COLUMNS if name in schema.names and name != image), None)
    labels = None if column is None else ParquetLabels(schema, column, path)
    if labels is not None and labels.class_names is not None:
        yield ClassNames(path, labels.class_names)
    columns, row = [image] + ([column] if column else []), 0
    for batch in parquet.iter_batches(batch_size=_batch_rows(parquet.metadata), columns=columns):
        for cells in batch.to_pylist():
            yield from _sample(cells[image], cells.get(column) if column else None, labels, path, row)
            row += 1


def _sample(cell: Any, value: Any, labels: ParquetLabels | None, path: str, row: int) -> Iterator[SourceImage | Skipped | LeftOut]:
    name, data = f"{path}/{row}", _image_bytes(cell)
    if data is None:
        yield Skipped(name, _ONLY_A_PATH if isinstance(cell, dict) and cell.get("path") else _NO_BYTES)
        return
    label, why = (None, None) if labels is None else labels.read(value, row)
    if why is not None:
        yield LeftOut(name, why)
    yield SourceImage(name, path, "parquet", row, data, label)


def _batch_rows(footer: pq.FileMetaData) -> int:
    """Return how many rows to decode at a time: few where they are large, because Arrow cannot hold 2 GB of a struct."""
    groups = [footer.row_group(group) for group in range(footer.num_row_groups)]
    largest = max((group.total_byte_size // max(group.num_rows, 1) for group in groups), default=0)
    return max(1, min(_BATCH_ROWS, _BATCH_BYTES // max(largest, 1)))


def _image_bytes(cell: Any) -> bytes | None:
    value = cell.get("bytes") if isinstance(cell, dict) else cell
    return value if isinstance(value, bytes) else None


class _Footer(NamedTuple):
    """A file's row groups: the first row of each, and the column with the images."""

    metadata: pq.FileMetaData
    starts: list[int]
    column: str


# What was read last: a file of ten thousand row groups has a footer of megabytes, and a row group is read for one of its images.
_FOOTERS: LruCache[tuple[Any, ...], _Footer] = LruCache(_KEPT_FOOTERS)
_GROUPS: LruCache[tuple[Any, ...], Column] = LruCache(_KEPT_BYTES, lambda column: column.nbytes)


def _read_footer(filesystem: Any, full: str) -> _Footer:
    with filesystem.open(full, "rb") as file:
        parquet = pq.ParquetFile(file)
        counts = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
        return _Footer(parquet.metadata, [0, *accumulate(counts)], image_column(parquet.schema_arrow, full))


def _read_group(filesystem: Any, full: str, footer: _Footer, group: int) -> Column:
    with filesystem.open(full, "rb") as file:
        parquet = pq.ParquetFile(file, metadata=footer.metadata)
        if footer.metadata.row_group(group).total_byte_size <= _MAX_UNSPLIT_BYTES:
            return parquet.read_row_group(group, columns=[footer.column]).column(0)
        batches = parquet.iter_batches(batch_size=_batch_rows(footer.metadata), row_groups=[group], columns=[footer.column])
        return pa.chunked_array([batch.column(0) for batch in batches])


def parquet_row(filesystem: Any, full: str, row: int) -> bytes:
    """Return the bytes of one row's image; raise OSError when there is no such row. Cached unverified: readers check the sha256."""
    key = (type(filesystem).__name__, full, filesystem.ukey(full))  # a file that was edited has another one
    footer = _FOOTERS.get_or_make(key, lambda: _read_footer(filesystem, full))
    if not 0 <= row < footer.starts[-1]:
        raise OSError(f"{full} has no row {row}")
    group = bisect_right(footer.starts, row) - 1
    column = _GROUPS.get_or_make((*key, group), lambda: _read_group(filesystem, full, footer, group))
    return _image_bytes(column[row - footer.starts[group]].as_py()) or b""
