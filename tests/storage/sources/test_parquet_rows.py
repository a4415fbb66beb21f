"""Row groups are read once for the images in them, by any number of threads, and never of a file that is not there any more."""

import io
import multiprocessing
import os
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.core.lru_cache import LruCache
from eupe_pipeline.storage.objects.remote import RemoteObjects
from eupe_pipeline.storage.sources import parquet_rows, parquet_source
from eupe_pipeline.storage.sources.parquet_rows import parquet_row
from eupe_pipeline.storage.sources.source_items import SourceImage
from eupe_pipeline.storage.sources.sources import open_source, read_bytes, walk

from ..faulty_s3 import FaultyServer
from ..web_site import running_site

LOCAL = fsspec.filesystem("file")
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write(path: Path, cells: list[bytes], rows_a_group: int, **options: Any) -> str:
    pq.write_table(pa.table({"image": [{"bytes": cell, "path": "x"} for cell in cells]}), path, row_group_size=rows_a_group, **options)
    return str(path)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The row groups that are really read, in order; nothing is kept from other tests."""
    seen: list[int] = []
    real = parquet_rows._read_group

    def read_group(file: Any, footer: Any, group: int) -> Any:
        seen.append(group)
        return real(file, footer, group)

    monkeypatch.setattr(parquet_rows, "_read_group", read_group)
    monkeypatch.setattr(parquet_rows, "_GROUPS", LruCache[Any, Any](2000, lambda column: column.nbytes))
    return seen


def test_images_in_order_cost_one_reading_of_their_group(tmp_path: Path, reads: list[int]) -> None:
    cells = [bytes([n]) * 20 for n in range(12)]
    full = write(tmp_path / "a.parquet", cells, 4)
    assert [parquet_row(LOCAL, full, row) for row in range(12)] == cells
    assert reads == [0, 1, 2]


def test_several_threads_that_want_one_group_read_it_once(tmp_path: Path, reads: list[int]) -> None:
    full = write(tmp_path / "a.parquet", [bytes([n]) for n in range(64)], 64)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda row: parquet_row(LOCAL, full, row), range(64)))
    assert found == [bytes([n]) for n in range(64)]
    assert reads == [0]


def test_kept_groups_stay_within_their_bytes(tmp_path: Path, reads: list[int]) -> None:
    full = write(tmp_path / "a.parquet", [bytes([n]) * 400 for n in range(12)], 2)
    for row in (0, 3, 1, 2, 5, 7, 0):
        assert parquet_row(LOCAL, full, row) == bytes([row]) * 400
    assert reads == [0, 1, 2, 3, 0]


def test_an_edited_file_is_read_anew_and_a_missing_one_is_missing(tmp_path: Path, reads: list[int]) -> None:
    full = write(tmp_path / "a.parquet", [b"old", b"too"], 2)
    assert parquet_row(LOCAL, full, 0) == b"old"
    Path(full).unlink()
    with pytest.raises(FileNotFoundError):
        parquet_row(LOCAL, full, 0)
    write(tmp_path / "a.parquet", [b"new"], 1)
    assert parquet_row(LOCAL, full, 0) == b"new"
    with pytest.raises(OSError, match="no row 1"):
        parquet_row(LOCAL, full, 1)


def test_a_file_of_the_same_length_and_time_in_anothers_place_is_noticed(tmp_path: Path) -> None:
    full = write(tmp_path / "a.parquet", [b"old"] * 4, 2)
    before = os.stat(full)
    assert {parquet_row(LOCAL, full, row) for row in range(4)} == {b"old"}
    write(tmp_path / "b.parquet", [b"new"] * 4, 2)
    os.utime(tmp_path / "b.parquet", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert os.stat(tmp_path / "b.parquet").st_size == before.st_size
    os.replace(tmp_path / "b.parquet", full)
    assert [parquet_row(LOCAL, full, row) for row in range(4)] == [b"new"] * 4
    Path(full).write_bytes(Path(full).read_bytes().replace(b"new", b"NEW"))  # in place: the same inode
    os.utime(full, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert [parquet_row(LOCAL, full, row) for row in range(4)] == [b"NEW"] * 4


def test_a_reading_that_failed_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = write(tmp_path / "a.parquet", [b"x"], 1)
    with monkeypatch.context() as broken:
        broken.setattr(parquet_rows, "_read_group", lambda *_: (_ for _ in ()).throw(OSError("unplugged")))
        with pytest.raises(OSError, match="unplugged"):
            parquet_row(LOCAL, full, 0)
    assert parquet_row(LOCAL, full, 0) == b"x"


def test_a_file_that_is_no_parquet_any_more_is_an_error_of_the_operating_system(tmp_path: Path) -> None:
    full = write(tmp_path / "a.parquet", [b"x"], 1)
    assert parquet_row(LOCAL, full, 0) == b"x"
    Path(full).write_bytes(b"PAR1 no more")
    with pytest.raises(OSError, match=r"a\.parquet is not a readable Parquet file .*was it changed"):
        parquet_row(LOCAL, full, 0)


@pytest.mark.parametrize("batch_bytes", [64 << 20, 700])
def test_threads_and_a_fork_read_any_rows_of_one_open_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_bytes: int) -> None:
    monkeypatch.setattr(parquet_rows, "_GROUPS", LruCache[Any, Any](1, lambda column: column.nbytes))
    monkeypatch.setattr(parquet_rows, "_BATCH_BYTES", batch_bytes)
    cells = [os.urandom(200 + n) for n in range(100)]
    full = write(tmp_path / "a.parquet", cells, 7)

    def wrong() -> list[int]:
        rows = [(7 * n + 3) % 100 for n in range(400)]
        with ThreadPoolExecutor(8) as pool:
            return [
                row
                for row, found in zip(rows, pool.map(lambda row: parquet_row(LOCAL, full, row), rows), strict=True)
                if found != cells[row]
            ]

    assert wrong() == []
    child = multiprocessing.get_context("fork").Process(target=lambda: os._exit(len(wrong())))
    child.start()
    child.join(60)
    assert child.exitcode == 0


def test_a_large_group_is_decoded_once_for_images_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_rows, "_GROUPS", LruCache[Any, Any](3000, lambda column: column.nbytes))
    monkeypatch.setattr(parquet_rows, "_BATCH_BYTES", 1000)
    streams: list[str] = []
    real = parquet_rows._LocalFile.batches

    def batches(self: Any, footer: Any, group: int) -> Iterator[pa.RecordBatch]:
        streams.append(self.full)
        return real(self, footer, group)

    monkeypatch.setattr(parquet_rows._LocalFile, "batches", batches)
    cells = [bytes([n]) * 300 for n in range(40)]
    full = write(tmp_path / "a.parquet", cells, 40, use_dictionary=False)
    assert [parquet_row(LOCAL, full, row) for row in range(40)] == cells
    assert len(streams) == 1
    assert [parquet_row(LOCAL, full, row) for row in (39, 38, 37)] == cells[39:36:-1]
    assert len(streams) == 1, "the last batches are kept"
    assert parquet_row(LOCAL, full, 0) == cells[0]
    assert len(streams) == 2


def test_a_walk_does_not_hold_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_rows, "_BATCH_BYTES", 2 << 20)
    write(tmp_path / "a.parquet", [os.urandom(1 << 20) for _ in range(32)], 2)
    before, most = pa.total_allocated_bytes(), 0
    for item in walk(LOCAL, str(tmp_path), "a.parquet"):
        assert isinstance(item, SourceImage)
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < 12 << 20


@pytest.fixture(scope="module")
def repeated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[bytes]]:
    """Two images in turn, 2.2 GB in one row group that takes a megabyte on the disk: its pages name entries of a dictionary."""
    images, rows = [b"a" * 500_000, b"b" * 400_000], 4900
    folder = tmp_path_factory.mktemp("repeated")
    entries = pa.DictionaryArray.from_arrays(pa.array([n % 2 for n in range(rows)], pa.int32()), pa.array(images, pa.binary()))
    table = pa.table({"image": pa.StructArray.from_arrays([entries, pa.array(["x"] * rows)], ["bytes", "path"])})
    pq.write_table(table, folder / "a.parquet", row_group_size=rows, store_schema=False)
    metadata = pq.ParquetFile(folder / "a.parquet").metadata
    assert (metadata.num_row_groups, sum(map(len, images)) * rows // 2 > 2 << 30) == (1, True)
    assert pq.ParquetFile(folder / "a.parquet").schema_arrow.field("image").type == STRUCT
    return folder, images


def test_images_that_repeat_past_two_gigabytes_are_read(repeated: tuple[Path, list[bytes]]) -> None:
    folder, images = repeated
    before = pa.total_allocated_bytes()
    for row in (1, 0, 2500, 4899):
        assert read_bytes(str(folder), "a.parquet", "parquet", row, 0) == images[row % 2]
    assert pa.total_allocated_bytes() - before < 1200 << 20


@pytest.mark.long
def test_images_that_repeat_past_two_gigabytes_are_walked(repeated: tuple[Path, list[bytes]]) -> None:
    folder, images = repeated
    rows = []
    for item in walk(LOCAL, str(folder), "a.parquet"):
        assert isinstance(item, SourceImage)
        assert item.data == images[item.offset % 2]
        rows.append(item.offset)
    assert rows == list(range(4900))


def test_rows_that_arrow_cannot_hold_are_refused_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.parquet", [b"x"], 1)
    refusal = pa.ArrowNotImplementedError("Nested data conversions not implemented for chunked array outputs")
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *_, **__: (_ for _ in ()).throw(refusal))
    with pytest.raises(BadInput, match=r"a\.parquet has rows that are too large together .*; write it with row groups below a gigabyte"):
        list(parquet_source.walk_parquet(LOCAL, str(tmp_path / "a.parquet"), "a.parquet"))


@pytest.fixture
def bucket(server: FaultyServer) -> tuple[FaultyServer, str]:
    """The server and a folder in it."""
    return server, f"s3://bucket/{uuid.uuid4().hex}"


def put(url: str, cells: list[bytes], rows_a_group: int) -> int:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"image": [{"bytes": cell, "path": "x"} for cell in cells]}), buffer, row_group_size=rows_a_group)
    RemoteObjects("s3://bucket")._filesystem.pipe_file(url.removeprefix("s3://"), buffer.getvalue())
    return len(buffer.getvalue())


def asked(server: FaultyServer, url: str, name: str, row: int) -> tuple[bytes, list[str], int]:
    """Return an image, the methods of the requests that it took, and the bytes that were sent for it."""
    server.seen.clear()
    server.sent = 0
    data = read_bytes(url, name, "parquet", row, 0)
    return data, [method for method, _ in server.seen], server.sent


@pytest.mark.fault
@pytest.mark.parametrize("is_file", [False, True], ids=["a folder", "a file that is the whole source"])
def test_an_image_on_s3_is_one_request_beside_the_footers(bucket: tuple[FaultyServer, str], is_file: bool) -> None:
    server, folder = bucket
    cells = [os.urandom(100_000) for _ in range(40)]
    put(f"{folder}/a.parquet", cells, 2)
    url = f"{folder}/a.parquet" if is_file else folder
    data, methods, _ = asked(server, url, "a.parquet", 17)
    assert (data, methods) == (cells[17], ["HEAD", "GET", "GET"])
    for row in (3, 38, 22):
        data, methods, sent = asked(server, url, "a.parquet", row)
        assert (data, methods) == (cells[row], ["GET"])
        assert 200_000 < sent < 201_000, "its group's images, and nothing that lies behind them"
    assert asked(server, url, "a.parquet", 2) == (cells[2], ["HEAD"], 0), "its group is kept; is it still the file?"


@pytest.mark.fault
def test_a_file_on_s3_that_was_replaced_is_read_anew(bucket: tuple[FaultyServer, str]) -> None:
    server, folder = bucket
    size = put(f"{folder}/a.parquet", [b"old"] * 6, 2)
    assert asked(server, folder, "a.parquet", 0)[0] == b"old"
    assert put(f"{folder}/a.parquet", [b"new"] * 6, 2) == size
    assert asked(server, folder, "a.parquet", 1)[0] == b"new", "of a group that was kept"
    assert put(f"{folder}/a.parquet", [b"NEW"] * 6, 2) == size
    assert asked(server, folder, "a.parquet", 5)[0] == b"NEW", "of a group that was not"
    put(f"{folder}/a.parquet", [b"short"], 1)
    with pytest.raises(OSError, match="no row 5"):
        read_bytes(folder, "a.parquet", "parquet", 5, 0)
    RemoteObjects("s3://bucket")._filesystem.rm_file(f"{folder.removeprefix('s3://')}/a.parquet")
    with pytest.raises(FileNotFoundError):
        read_bytes(folder, "a.parquet", "parquet", 0, 0)


@pytest.mark.fault
def test_a_large_group_on_s3_is_streamed(bucket: tuple[FaultyServer, str], monkeypatch: pytest.MonkeyPatch) -> None:
    server, folder = bucket
    monkeypatch.setattr(parquet_rows, "_BATCH_BYTES", 30_000)
    monkeypatch.setattr(parquet_rows, "_STREAM_BYTES", 100_000)
    cells = [os.urandom(10_000) for _ in range(40)]
    put(f"{folder}/a.parquet", cells, 40)
    assert asked(server, folder, "a.parquet", 0)[0] == cells[0]
    _, methods, sent = asked(server, folder, "a.parquet", 1)
    assert (methods, sent) == (["HEAD"], 0)
    for row in (2, 39, 20, 5):
        data, _, sent = asked(server, folder, "a.parquet", row)
        assert data == cells[row]
        assert sent < 420_000


@pytest.mark.parametrize("has_ranges", [True, False])
def test_files_on_a_web_server_and_in_memory_are_read_anew(tmp_path: Path, has_ranges: bool) -> None:
    name, memory = uuid.uuid4().hex, fsspec.filesystem("memory")

    def place(*cells: bytes) -> None:
        memory.pipe_file(f"/{name}/a.parquet", Path(write(tmp_path / "a.parquet", list(cells), 1)).read_bytes())

    with running_site(tmp_path) as site:
        site.has_ranges = has_ranges
        for cells in ([b"old", b"two"], [os.urandom(3000), b"x", b"new"], [b"1", b"2"]):
            place(*cells)
            for row in reversed(range(len(cells))):
                assert read_bytes(f"memory://{name}", "a.parquet", "parquet", row, 0) == cells[row]
                assert read_bytes(site.url, "a.parquet", "parquet", row, 0) == cells[row]


def test_a_source_is_opened_as_before(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [b"x"], 1)
    for url in (str(tmp_path), f"file://{tmp_path}", f"{tmp_path}/a.parquet"):
        filesystem, root = open_source(url)
        assert filesystem.exists(root)
        assert read_bytes(url, "a.parquet", "parquet", 0, 0) == b"x"
