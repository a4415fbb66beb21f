"""Row groups are read once for the images in them, by any number of threads, and never of a file that is not there any more."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from eupe_pipeline.storage.core.lru_cache import LruCache
from eupe_pipeline.storage.sources import parquet_source
from eupe_pipeline.storage.sources.parquet_source import parquet_row


def write(path: Path, cells: list[bytes], rows_a_group: int) -> str:
    pq.write_table(pa.table({"image": [{"bytes": cell, "path": "x"} for cell in cells]}), path, row_group_size=rows_a_group)
    return str(path)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The row groups that are really read, in order; nothing is kept from other tests."""
    seen: list[int] = []
    real = pq.ParquetFile.read_row_group

    def read_row_group(self: Any, group: int, **values: Any) -> Any:
        seen.append(group)
        return real(self, group, **values)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", read_row_group)
    monkeypatch.setattr(parquet_source, "_GROUPS", LruCache[Any, Any](1000, lambda column: column.nbytes))
    return seen


def test_images_in_order_cost_one_reading_of_their_group(tmp_path: Path, reads: list[int]) -> None:
    cells = [bytes([n]) * 20 for n in range(12)]
    full, local = write(tmp_path / "a.parquet", cells, 4), fsspec.filesystem("file")
    assert [parquet_row(local, full, row) for row in range(12)] == cells
    assert reads == [0, 1, 2]


def test_several_threads_that_want_one_group_read_it_once(tmp_path: Path, reads: list[int]) -> None:
    full, local = write(tmp_path / "a.parquet", [bytes([n]) for n in range(64)], 64), fsspec.filesystem("file")
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda row: parquet_row(local, full, row), range(64)))
    assert found == [bytes([n]) for n in range(64)]
    assert reads == [0]


def test_kept_groups_stay_within_their_bytes(tmp_path: Path, reads: list[int]) -> None:
    full, local = write(tmp_path / "a.parquet", [bytes([n]) * 400 for n in range(6)], 1), fsspec.filesystem("file")
    for row in (0, 1, 0, 1, 2, 3, 0):
        assert parquet_row(local, full, row) == bytes([row]) * 400
    assert reads == [0, 1, 2, 3, 0]


def test_an_edited_file_is_read_anew_and_a_missing_one_is_missing(tmp_path: Path, reads: list[int]) -> None:
    local = fsspec.filesystem("file")
    full = write(tmp_path / "a.parquet", [b"old"], 1)
    assert parquet_row(local, full, 0) == b"old"
    Path(full).unlink()
    with pytest.raises(FileNotFoundError):
        parquet_row(local, full, 0)
    write(tmp_path / "a.parquet", [b"new"], 1)
    assert parquet_row(local, full, 0) == b"new"
    with pytest.raises(OSError, match="no row 1"):
        parquet_row(local, full, 1)


def test_a_reading_that_failed_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full, local = write(tmp_path / "a.parquet", [b"x"], 1), fsspec.filesystem("file")
    with monkeypatch.context() as broken:
        broken.setattr(pq.ParquetFile, "read_row_group", lambda *_, **__: (_ for _ in ()).throw(OSError("unplugged")))
        with pytest.raises(OSError, match="unplugged"):
            parquet_row(local, full, 0)
    assert parquet_row(local, full, 0) == b"x"
