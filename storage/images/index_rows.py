"""Rows of an index under construction, on disk: a source may have more images than memory can hold rows.

Labels get their final numbers, and the dataset its digest, only after the last image, so the rows are written once to a file in the
temporary folder (some 150 bytes each; set TMPDIR to choose it) and read back from a memory map, a part of the index at a time. In memory
stay one block of rows, the names of files and labels, and the samples that were left out.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from .dataset import SCHEMA, ImageRow

_BLOCK_ROWS = 16_384
_LARGEST_GAP = 256  # between rows that are read together
_FILE_SCHEMA = pa.schema([pa.field(field.name, pa.string() if field.name == "container" else field.type) for field in SCHEMA])


class IndexRows:
    """Rows in the order of insertion; as a context manager it removes its file."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="eupe-index-")
        self._path = str(Path(self._folder.name, "rows.arrow"))
        self._writer = pa.ipc.new_file(self._path, _FILE_SCHEMA)
        self._block: list[ImageRow] = []
        self._table: pa.Table | None = None
        self.count = 0

    def __enter__(self) -> "IndexRows":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._writer.close()
        self._table = None
        self._folder.cleanup()

    def add(self, row: ImageRow) -> None:
        """Append a row, with its label's number by order of appearance."""
        self.count += 1
        self._block.append(row)
        if len(self._block) == _BLOCK_ROWS:
            self._flush()

    def _flush(self) -> None:
        columns = {name: [getattr(row, name) for row in self._block] for name in _FILE_SCHEMA.names}
        self._writer.write_table(pa.table(columns, schema=_FILE_SCHEMA))
        self._block.clear()

    def table(self) -> pa.Table:
        """Return all rows, with labels numbered by order of appearance; no row may be added after this."""
        if self._table is None:
            self._flush()
            self._writer.close()
            self._table = pa.ipc.open_file(pa.memory_map(self._path)).read_all()
        return self._table

    def tables(
        self, rows: int, label_numbers: NDArray[np.int32], order: NDArray[np.int64] | None = None, behind: pa.Table | None = None
    ) -> Iterator[pa.Table]:
        """Yield all rows in `SCHEMA`, `rows` a table, each label replaced by `label_numbers[label]`.

        With `order`, the rows of those numbers in this order; numbers beyond the last row are those of `behind`.
        """
        table = self.table() if behind is None else pa.concat_tables([self.table(), behind.cast(_FILE_SCHEMA)])
        for start in range(0, self.count if order is None else len(order), rows):
            part = table.slice(start, rows) if order is None else take(table, order[start : start + rows])
            part = part.combine_chunks()
            numbers = pa.array(label_numbers[part.column("label").to_numpy()])
            kinds = part.column("container").combine_chunks().dictionary_encode()
            container = pa.DictionaryArray.from_arrays(kinds.indices.cast(pa.int8()), kinds.dictionary)
            part = part.set_column(part.schema.get_field_index("label"), "label", numbers)
            part = part.set_column(part.schema.get_field_index("container"), "container", container)
            yield part.cast(SCHEMA)


def take(table: pa.Table, numbers: NDArray[np.int64]) -> pa.Table:
    """Return some rows of a table in any order; those that lie close together are read together."""
    gaps = np.diff(numbers)
    cuts = np.flatnonzero((gaps < 1) | (gaps > _LARGEST_GAP)) + 1
    runs = [run for run in np.split(numbers, cuts) if len(run)]
    parts = [table.slice(int(run[0]), int(run[-1] - run[0]) + 1).combine_chunks().take(run - run[0]) for run in runs]
    return pa.concat_tables(parts) if parts else table.slice(0, 0)


def rows_of(table: pa.Table) -> Iterator[ImageRow]:
    """Yield the rows of a table."""
    for start in range(0, len(table), _BLOCK_ROWS):
        for values in table.slice(start, _BLOCK_ROWS).to_pylist():
            yield ImageRow(**values)
