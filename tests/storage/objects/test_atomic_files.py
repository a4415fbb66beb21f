"""Files and folders that are wholly there or not at all."""

import os
import time
from pathlib import Path

import pytest
from eupe_pipeline.storage.core.errors import StoreUnavailable
from eupe_pipeline.storage.objects.atomic_files import create_exclusively, make_folder, replace_folder, sweep, write_atomically


def test_the_newest_write_wins_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    for data in (b"one", b"two", b""):
        write_atomically(tmp_path / "a/b/file", data)
        assert (tmp_path / "a/b/file").read_bytes() == data
    assert os.listdir(tmp_path / "a/b") == ["file"]


def test_an_exclusive_create_never_replaces(tmp_path: Path) -> None:
    assert create_exclusively(tmp_path / "x", [b"first", bytearray(b" one")])
    assert not create_exclusively(tmp_path / "x", [b"second"])
    assert (tmp_path / "x").read_bytes() == b"first one"
    assert os.listdir(tmp_path) == ["x"]


def test_more_buffers_than_one_call_takes_are_written(tmp_path: Path) -> None:
    assert create_exclusively(tmp_path / "x", [bytes([n % 256]) for n in range(3000)])
    assert (tmp_path / "x").read_bytes() == bytes(n % 256 for n in range(3000))


def test_a_folder_is_replaced_when_the_block_ends_well(tmp_path: Path) -> None:
    for content in ("old", "new"):
        with replace_folder(tmp_path / "checkpoint") as folder:
            (folder / "inner").mkdir()
            (folder / "inner/file").write_text(content)
        assert (tmp_path / "checkpoint/inner/file").read_text() == content
    assert os.listdir(tmp_path) == ["checkpoint"]


def test_a_folder_stays_as_it_was_when_the_block_fails(tmp_path: Path) -> None:
    with replace_folder(tmp_path / "checkpoint") as folder:
        (folder / "file").write_text("good")

    def fail_half_way() -> None:
        with replace_folder(tmp_path / "checkpoint") as folder:
            (folder / "file").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert (tmp_path / "checkpoint/file").read_text() == "good"
    assert os.listdir(tmp_path) == ["checkpoint"]


def test_the_old_folder_outlives_a_kill_between_the_renames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with replace_folder(tmp_path / "checkpoint") as folder:
        (folder / "file").write_text("old")
    real, count = Path.rename, iter(range(9))

    def rename(self: Path, target: Path) -> Path:
        if next(count) == 1:
            raise KeyboardInterrupt
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(KeyboardInterrupt), replace_folder(tmp_path / "checkpoint") as folder:
        (folder / "file").write_text("new")
    (left,) = tmp_path.iterdir()
    assert (left / "file").read_text() == "old"


def test_a_file_in_the_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    for folder in (tmp_path / "x", tmp_path / "x/y"):
        with pytest.raises(StoreUnavailable, match=r"in the way|is a file"):
            make_folder(folder)


def aged(path: Path, days: float) -> Path:
    """A file that was last written to so many days ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"half")
    os.utime(path, (time.time() - 86_400 * days,) * 2)
    return path


def test_a_sweep_takes_old_unfinished_files_and_nothing_else(tmp_path: Path) -> None:
    left = [aged(tmp_path / "set/patch/.tmp-1-aa-c.0", 2), aged(tmp_path / "set/.tmp-2-bb-zarr.json", 1.1)]
    kept = [aged(tmp_path / "set/patch/.tmp-3-cc-c.1", 0.9), aged(tmp_path / "set/patch/c.0", 9), aged(tmp_path / "other/.tmp-4-dd-x", 9)]
    assert sweep(tmp_path / "set") == len(left)
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in kept)
    assert sweep(tmp_path / "absent") == 0
