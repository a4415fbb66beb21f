"""The contract of a place for objects: one class of tests that the local and the in-memory one both run."""

import os
import uuid
from pathlib import Path

import pytest
from eupe_pipeline.storage.core.errors import BadInput, CacheDamaged, StoreUnavailable
from eupe_pipeline.storage.objects.objects import LocalObjects, Objects, open_objects, skip_bytes


@pytest.fixture(params=["local", "memory"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> Objects:
    return open_objects(str(tmp_path) if request.param == "local" else f"memory://{uuid.uuid4().hex}")


class TestObjects:
    def test_what_was_created_is_read(self, objects: Objects) -> None:
        assert objects.create("a/b", [b"one", memoryview(b" two")])
        assert objects.read("a/b") == b"one two"
        assert objects.size("a/b") == 7

    def test_nothing_is_ever_replaced(self, objects: Objects) -> None:
        assert objects.create("a", [b"first"])
        assert not objects.create("a", [b"second"])
        assert objects.read("a") == b"first"

    def test_what_is_absent_is_absent(self, objects: Objects) -> None:
        assert objects.size("no/such") is None
        assert objects.names("no") == []
        with pytest.raises(FileNotFoundError):
            objects.read("no/such")
        with pytest.raises(FileNotFoundError):
            objects.open("no/such")
        objects.remove("no/such")

    def test_names_are_sorted_and_direct(self, objects: Objects) -> None:
        for key in ("x/b", "x/a", "x/c/d", "y"):
            objects.create(key, [b"."])
        assert objects.names("x") == ["a", "b", "c"]
        assert objects.names("") == ["x", "y"]

    def test_a_range_fills_the_callers_buffers(self, objects: Objects) -> None:
        objects.create("a", [bytes(range(200))])
        parts = [memoryview(bytearray(size)) for size in (3, 0, 5)]
        opened = objects.open("a")
        assert opened.size == 200
        opened.read_into(parts, 10)
        assert [bytes(part) for part in parts] == [bytes(range(10, 13)), b"", bytes(range(13, 18))]
        with pytest.raises(CacheDamaged):
            opened.read_into([memoryview(bytearray(10))], 195)
        opened.close()

    def test_what_was_removed_can_be_created_again(self, objects: Objects) -> None:
        objects.create("a", [b"old"])
        objects.open("a").close()
        objects.remove("a")
        assert objects.names("") == []
        assert objects.create("a", [b"new!"])
        fresh, out = objects.open("a"), bytearray(4)
        fresh.read_into([memoryview(out)], 0)
        assert out == b"new!"

    def test_a_file_above_the_limit_is_not_read(self, objects: Objects) -> None:
        objects.create("a", [b"0123456789"])
        assert objects.read("a", 10) == b"0123456789"
        with pytest.raises(CacheDamaged, match="10 bytes"):
            objects.read("a", 9)


def test_unfinished_files_are_not_listed(tmp_path: Path) -> None:
    (tmp_path / ".tmp-77-abc-x").write_bytes(b"half")
    (tmp_path / "x").write_bytes(b"whole")
    assert LocalObjects(tmp_path).names("") == ["x"]


def test_more_open_files_than_descriptors_are_fine(tmp_path: Path) -> None:
    objects = LocalObjects(tmp_path)
    opened = []
    for n in range(1500):
        (tmp_path / str(n)).write_bytes(n.to_bytes(4, "little"))
        opened.append(objects.open(str(n)))
    out = bytearray(4)
    for n in (0, 1499, 700, 0):
        opened[n].read_into([memoryview(out)], 0)
        assert int.from_bytes(out, "little") == n
    assert len(os.listdir("/proc/self/fd")) < 1200


def test_a_file_that_was_replaced_under_a_reader_is_found(tmp_path: Path) -> None:
    objects = LocalObjects(tmp_path)
    objects.create("x", [b"old!"])
    reader = objects.open("x")
    reader.close()
    (tmp_path / "keep").hardlink_to(tmp_path / "x")  # keeps the inode, so that the new file cannot get the same number
    objects.remove("x")
    objects.create("x", [b"new!"])
    with pytest.raises(CacheDamaged, match="replaced"):
        reader.read_into([memoryview(bytearray(4))], 0)
    objects.remove("x")
    reader.close()
    with pytest.raises(CacheDamaged, match="removed"):
        reader.read_into([memoryview(bytearray(4))], 0)


def test_refused_reads_say_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = LocalObjects(tmp_path)
    objects.create("x", [b"secret"])

    def refuse(*_: object, **__: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(StoreUnavailable, match=r"cannot read .*x: Permission denied"):
        objects.open("x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StoreUnavailable, match="cannot read"):
        objects.read("folder")


def test_unusable_urls_are_errors_that_the_user_can_correct(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot use the URL"):
        open_objects("nosuchprotocol://x")
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="is a file"):
        open_objects(str(tmp_path / "file"))


@pytest.mark.parametrize(("done", "left"), [(0, [2, 3]), (1, [1, 3]), (2, [3]), (4, [1]), (5, [])])
def test_buffers_after_a_short_read(done: int, left: list[int]) -> None:
    assert [len(part) for part in skip_bytes([memoryview(b"ab"), memoryview(b"cde")], done)] == left
