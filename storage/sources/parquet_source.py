"""Images in Parquet files: raw bytes, or the Hugging Face struct {bytes, path}, one image a row.

A file is walked in batches of rows, straight from its pages: nothing is read ahead, so that a file of any size is indexed in the memory of
a batch. How one image is read again: `parquet_rows`.

Of a label column integers are class numbers whatever type holds them (1, 1.0, a decimal, a dictionary's entry), text is a name. Null, NaN
and −1 mean no label. A column that Hugging Face's `datasets` declares a ClassLabel holds indices into the class names in the file's
metadata. Columns of lists, structs, maps or dates are refused, because it is unclear which of their values is the class.
"""

import json
import math
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as kinds

from ..core.errors import BadInput, EupeError
from .parquet_rows import NoImageColumn, image_bytes, image_column, rows_of_a_batch, stream_bytes
from .sample_labels import MINUS_ONE, UnusableLabel, label_text
from .source_items import ClassNames, LeftOut, Skipped, SourceImage, SourceItem

LABEL_COLUMNS = ("label", "labels", "fine_label", "cls")
_TABLES = "tables without images beside a tar of the same name (img2dataset writes them)"
_NO_BYTES = "no image bytes"
_ONLY_A_PATH = "only the path of an image, not its bytes; write the table with the images in it"
_NOT_A_NUMBER = "labels of NaN, which stands for none"
_PLAIN = (
    *(kinds.is_integer, kinds.is_floating, kinds.is_boolean, kinds.is_decimal, kinds.is_null),
    *(kinds.is_string, kinds.is_large_string, kinds.is_string_view, kinds.is_binary, kinds.is_large_binary),
)


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


def walk_parquet(filesystem: Any, full: str, path: str, is_source: bool = False) -> Iterator[SourceItem]:
    """Yield the images of a Parquet file in order, with their labels; a table of a tar's captions is counted and left out.

    Raise `BadInput` for a file that is not readable Parquet, or whose columns are no images and labels.
    """
    with filesystem.open(full, "rb") as file:
        try:
            parquet = pq.ParquetFile(file, pre_buffer=False)  # which would read the whole file ahead, and hold it
            if buffer_size := stream_bytes(parquet.metadata):
                parquet = pq.ParquetFile(file, metadata=parquet.metadata, pre_buffer=False, buffer_size=buffer_size)
            yield from _rows(parquet, path)
        except NoImageColumn:
            if is_source or not filesystem.exists(f"{full[: -len('.parquet')]}.tar"):
                raise
            yield LeftOut(path, _TABLES, plain=True)
        except EupeError:
            raise
        except pa.ArrowNotImplementedError as error:
            raise BadInput(
                f"{path} has rows that are too large together ({error}); write it with row groups below a gigabyte and images below 100 MB"
            ) from error
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
    for batch in parquet.iter_batches(batch_size=rows_of_a_batch(parquet.metadata, image), columns=columns):
        for cells in batch.to_pylist():
            yield from _sample(cells[image], cells.get(column) if column else None, labels, path, row)
            row += 1


def _sample(cell: Any, value: Any, labels: ParquetLabels | None, path: str, row: int) -> Iterator[SourceImage | Skipped | LeftOut]:
    name, data = f"{path}/{row}", image_bytes(cell)
    if data is None:
        yield Skipped(name, _ONLY_A_PATH if isinstance(cell, dict) and cell.get("path") else _NO_BYTES)
        return
    label, why = (None, None) if labels is None else labels.read(value, row)
    if why is not None:
        yield LeftOut(name, why)
    yield SourceImage(name, path, "parquet", row, data, label)
