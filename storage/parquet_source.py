"""Images in Parquet files: raw bytes, or the Hugging Face struct {bytes, path}, a row an image.

Parquet gives no single row: a row group is read and decompressed as a whole (a hundred images here, a thousand there). The last few are
kept, whoever reads from them, so that images in order cost one reading of their group (80 ms an image became 2 in groups of 40 MB);
images at random cost a group each, for which stored pixels (`extract-features --pixels`) or small groups are the cure.
"""

import io
import threading
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .errors import BadInput

_KEPT_BYTES = 512 << 20
Cell = bytes | None
Column = Any  # pa.ChunkedArray, whose stubs want an element type


def parquet_columns(schema_names: list[str], path: str) -> tuple[str, str | None]:
    """The image and label columns of a Parquet file in the Hugging Face layout; raises `BadInput` naming the columns."""
    image = next((name for name in ("image", "img", "jpg", "png") if name in schema_names), None)
    if image is None:
        raise BadInput(f"{path} has no column named image, img, jpg or png; it has {', '.join(schema_names)}")
    return image, next((name for name in ("label", "labels", "fine_label", "cls") if name in schema_names), None)


def parquet_bytes(cell: Any) -> Cell:
    """The bytes in an image cell: raw binary, or the Hugging Face struct {bytes, path}."""
    value = cell.get("bytes") if isinstance(cell, dict) else cell
    return value if isinstance(value, bytes) else None


def parquet_rows(filesystem: Any, full: str, path: str) -> Iterator[tuple[Cell, Any]]:
    """(bytes or None, label or None) of every row in order; raises `BadInput` for a file that is not readable Parquet."""
    with filesystem.open(full, "rb") as file:
        try:
            parquet = pq.ParquetFile(file)
            image_column, label_column = parquet_columns(parquet.schema_arrow.names, path)
            columns = [image_column] + ([label_column] if label_column else [])
            for batch in parquet.iter_batches(batch_size=256, columns=columns):
                for cells in batch.to_pylist():
                    yield parquet_bytes(cells[image_column]), cells.get(label_column) if label_column else None
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise BadInput(f"{path} is not a readable Parquet file ({error})") from error


class _RowGroups:
    """The image columns of the row groups that were read last, up to so many bytes; each is read by one thread, others wait for it."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit, self._lock = limit_bytes, threading.Lock()
        self._kept: OrderedDict[tuple[Any, ...], Future[Column]] = OrderedDict()

    def get(self, key: tuple[Any, ...], parquet: pq.ParquetFile, group: int, column: str) -> Column:
        """The column of one row group."""
        with self._lock:
            future, mine = self._kept.get(key), key not in self._kept
            if future is None:
                future = self._kept[key] = Future()
            self._kept.move_to_end(key)
        if mine:
            try:
                future.set_result(parquet.read_row_group(group, columns=[column]).column(0))
            except BaseException as error:  # noqa: BLE001 - those who wait for it get it too
                with self._lock:
                    self._kept.pop(key, None)
                future.set_exception(error)
            self._evict()
        return future.result()

    def _evict(self) -> None:
        """Drop the oldest ones beyond the limit, but for the last."""
        with self._lock:
            sizes = {key: future.result().nbytes for key, future in self._kept.items() if future.done() and future.exception() is None}
            held = sum(sizes.values())
            for key, size in list(sizes.items())[:-1]:
                if held <= self._limit:
                    return
                self._kept.pop(key)
                held -= size


_GROUPS = _RowGroups(_KEPT_BYTES)


def parquet_row(filesystem: Any, full: str, row: int) -> bytes:
    """The bytes of one row's image; raises OSError when there is no such row. What comes is checked by its reader, so it may be kept."""
    with filesystem.open(full, "rb") as file:
        parquet = pq.ParquetFile(io.BytesIO(file.read()) if filesystem.protocol == "memory" else file)
        image_column, _ = parquet_columns(parquet.schema_arrow.names, full)
        first = 0
        for group in range(parquet.num_row_groups):
            count = parquet.metadata.row_group(group).num_rows
            if row < first + count:
                key = (type(filesystem).__name__, full, filesystem.ukey(full), group)  # a file that was edited has another one
                return parquet_bytes(_GROUPS.get(key, parquet, group, image_column)[row - first].as_py()) or b""
            first += count
    raise OSError(f"{full} has no row {row}")
