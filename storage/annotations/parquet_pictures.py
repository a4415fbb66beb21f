"""Questions in Parquet files of the Hub: the picture stands in the row, encoded, under `image.bytes`; it is read when it is needed."""

from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from ..core.errors import BadInput

_COLUMNS = ("image", "question", "answer")


class ParquetPicture(NamedTuple):
    """A row's picture."""

    file: Path
    row: int

    def read(self) -> bytes:
        """Return the encoded picture; raise `BadInput` where there is none."""
        group, row = _place(self.file, self.row)
        value = _images(self.file, group)[row].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise BadInput(f"{self.file}: row {self.row} holds no encoded picture under image.bytes")
        return data


class QuestionRow(NamedTuple):
    """A row without its picture."""

    picture: ParquetPicture
    question: str
    answer: str


def parquet_rows(file: Path) -> list[QuestionRow]:
    """Return the rows of a file; raise `BadInput` for another layout."""
    try:
        opened = pq.ParquetFile(file)
        if lacking := [name for name in _COLUMNS if name not in opened.schema_arrow.names]:
            raise BadInput(f"{file} has no column {' or '.join(lacking)}; it has {', '.join(opened.schema_arrow.names)}")
        table = opened.read(columns=["question", "answer"])
    except (OSError, pa.ArrowException) as error:
        raise BadInput(f"{file} is no Parquet file ({error})") from error
    pairs = zip(table.column("question").to_pylist(), table.column("answer").to_pylist(), strict=True)
    return [QuestionRow(ParquetPicture(file, row), str(question), str(answer)) for row, (question, answer) in enumerate(pairs)]


def _place(file: Path, row: int) -> tuple[int, int]:
    """Return the row group of a row, and its number there."""
    metadata = pq.ParquetFile(file).metadata
    for group in range(metadata.num_row_groups):
        count = metadata.row_group(group).num_rows
        if row < count:
            return group, row
        row -= count
    raise BadInput(f"{file} has no row {row} more than it had; read its questions again")


@lru_cache(maxsize=2)
def _images(file: Path, group: int) -> Any:
    return pq.ParquetFile(file).read_row_group(group, columns=["image"]).column("image")
