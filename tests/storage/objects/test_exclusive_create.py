"""A name is given once, on file systems with hard links and on those without; where that cannot be, nothing is written."""

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from eupe_pipeline.storage.core.errors import StoreUnavailable
from eupe_pipeline.storage.objects import exclusive_create as exclusive
from eupe_pipeline.storage.objects.atomic_files import create_exclusively, fsync_folder, translate_os_errors, write_atomically
from eupe_pipeline.storage.objects.exclusive_create import rename_exclusively

from ..made_up_store import Made, commit, everything, plan, reopen

WITHOUT_LINKS = [errno.EPERM, errno.ENOSYS, errno.EXDEV, errno.EMLINK, errno.EIO, errno.EOPNOTSUPP]


def refuse_links(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)


@pytest.mark.parametrize("number", WITHOUT_LINKS, ids=lambda number: errno.errorcode[number])
class TestWithoutHardLinks:
    def test_a_file_is_published_whole_and_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
        refuse_links(monkeypatch, number)
        assert create_exclusively(tmp_path / "x", [b"first"])
        assert not create_exclusively(tmp_path / "x", [b"second"])
        assert (tmp_path / "x").read_bytes() == b"first"
        assert os.listdir(tmp_path) == ["x"]

    def test_where_there_is_no_exclusive_rename_either_it_is_refused_with_the_reason(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
    ) -> None:
        refuse_links(monkeypatch, number)

        def refuse(old: Path, new: Path) -> None:
            raise OSError(errno.EINVAL, "Invalid argument")

        monkeypatch.setattr(exclusive, "rename_exclusively", refuse)
        with pytest.raises(StoreUnavailable, match=r"neither hard links .* nor an exclusive rename"):
            create_exclusively(tmp_path / "x", [b"first"])
        assert os.listdir(tmp_path) == []


def test_an_exclusive_rename_never_replaces(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "b").write_bytes(b"b")
    with pytest.raises(FileExistsError):
        rename_exclusively(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"b"
    rename_exclusively(tmp_path / "a", tmp_path / "c")
    assert sorted(os.listdir(tmp_path)) == ["b", "c"]


def test_of_many_writers_without_links_one_wins_and_its_bytes_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_links(monkeypatch, errno.EPERM)
    won: list[int] = []
    together = threading.Barrier(8)

    def write(n: int) -> None:
        together.wait()
        if create_exclusively(tmp_path / "x", [b"%d" % n * 1000]):
            won.append(n)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert (tmp_path / "x").read_bytes() == b"%d" % won[0] * 1000
    assert os.listdir(tmp_path) == ["x"]


def test_a_whole_store_is_made_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pristine: Made) -> None:
    refuse_links(monkeypatch, errno.EPERM)
    made = plan(tmp_path)
    for shard in range(made.features.shards):
        commit(made, shard)
        commit(made, shard)
    assert reopen(made).features.complete
    for ours, theirs in zip(everything(reopen(made)), everything(pristine), strict=True):
        assert ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EREMOTEIO], ids=lambda number: errno.errorcode[number])
class TestAFailingFsync:
    def fail(self, monkeypatch: pytest.MonkeyPatch, number: int, folders: bool) -> None:
        real = os.fsync

        def fsync(descriptor: int) -> None:
            if os.path.isdir(f"/proc/self/fd/{descriptor}") == folders:
                raise OSError(number, os.strerror(number))
            real(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)

    @pytest.mark.parametrize("folders", [False, True], ids=["of the file", "of the folder"])
    def test_publishes_nothing_and_names_the_path(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, folders: bool
    ) -> None:
        with monkeypatch.context() as failing:
            self.fail(failing, number, folders)
            with pytest.raises(StoreUnavailable, match=str(tmp_path)):
                create_exclusively(tmp_path / "x", [b"content"])
        assert os.listdir(tmp_path) == []
        assert create_exclusively(tmp_path / "x", [b"content"])

    def test_of_a_replaced_file_leaves_the_old_one(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
        (tmp_path / "x").write_bytes(b"old")
        self.fail(monkeypatch, number, folders=False)
        with pytest.raises(StoreUnavailable, match=str(tmp_path)):
            write_atomically(tmp_path / "x", b"new")
        assert (tmp_path / "x").read_bytes() == b"old"

    def test_leaves_the_shard_uncommitted(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
        made = plan(tmp_path)
        with monkeypatch.context() as failing:
            self.fail(failing, number, folders=False)
            with pytest.raises(StoreUnavailable):
                commit(made, 0)
        assert 0 in reopen(made).features.missing_shards()
        commit(reopen(made), 0)
        assert 0 not in reopen(made).features.missing_shards()


def test_a_folder_that_knows_no_fsync_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", fsync)
    fsync_folder(tmp_path)


def test_our_own_errors_pass_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match=r"^mine$"), translate_os_errors(tmp_path, 0):
        raise StoreUnavailable("mine")
