"""Writers that are killed, that collide, or that the disk refuses: nothing partial is ever seen, nothing is lost (FAULTS 2, 5, 8, 9)."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eupe_pipeline.storage.core.errors import StoreUnavailable
from eupe_pipeline.storage.objects import atomic_files as atomic
from eupe_pipeline.storage.store import FeatureStore

from ..fault_log import Trials
from . import made_up_store
from .made_up_store import Made, build, commit, everything, files, plan, reopen, same

pytestmark = pytest.mark.fault
KILLS = 20


class Writers:
    """Processes that write a store, forked from one that has imported everything."""

    def __init__(self) -> None:
        command = [sys.executable, str(Path(made_up_store.__file__))]
        self._parent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def start(self, made: Made, seeds: Sequence[int]) -> list[int]:
        assert self._parent.stdin is not None
        self._parent.stdin.write(json.dumps([made.store.url, made.features.key, list(seeds)]) + "\n")
        self._parent.stdin.flush()
        return self._line()

    def wait(self) -> list[int]:
        """The exit statuses of those that were started last."""
        assert self._parent.stdin is not None
        self._parent.stdin.write("\n")
        self._parent.stdin.flush()
        return self._line()

    def _line(self) -> list[int]:
        assert self._parent.stdout is not None
        line: list[int] = json.loads(self._parent.stdout.readline())
        return line

    def close(self) -> None:
        self._parent.communicate()


@pytest.fixture(scope="module")
def writers() -> Iterator[Writers]:
    started = Writers()
    yield started
    started.close()


def committed_rows_are_right(made: Made) -> int:
    """Read every committed shard as a new process would; returns how many there are."""
    fresh, whole = reopen(made), 0
    for shard in sorted(fresh.features.group.committed()):
        first, last = fresh.features.group.shard_span(shard)
        found = fresh.features.read(np.arange(first, last))
        assert np.array_equal(found.patch, made_up_store.tokens(fresh.features, shard).patch)
        whole += 1
    return whole


def kill_some(writers: Writers, made: Made, seeds: Sequence[int], random: np.random.Generator) -> bool:
    """Start writers and kill them all, a moment after they have committed none to three more shards; True when one was still at work."""
    wanted = len(made.features.group.committed()) + int(random.integers(0, 4))
    started = writers.start(made, seeds)
    deadline = time.monotonic() + 20
    while len(made.features.group.committed()) <= min(wanted, made.features.shards - 2) and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(random.uniform(0, 0.004))
    for child in started:
        os.kill(child, signal.SIGKILL)
    return -signal.SIGKILL in writers.wait()


@pytest.mark.parametrize("seed", [4, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(5, 30))])
def test_killed_writers_leave_whole_shards_or_none_and_the_work_can_be_finished(writers: Writers, quick_disk: Path, seed: int) -> None:
    made, random, seen = plan(quick_disk, images=240), np.random.default_rng(seed), []
    killed = 0
    with Trials(2) as trials:
        for kill in range(KILLS):
            killed += kill_some(writers, made, [10 * kill + n for n in range(1 + kill % 4)], random)
            seen.append(committed_rows_are_right(made))
        assert seen == sorted(seen)
        made_up_store.write_missing(made.store.url, made.features.key, 1)
        uninterrupted = plan(quick_disk / "other", images=240)
        for shard in range(uninterrupted.features.shards):
            commit(uninterrupted, shard)
        assert same(everything(reopen(made)), everything(uninterrupted))
        assert published(made.folder) == published(uninterrupted.folder)
        trials.note("recovered", killed)


def published(folder: Path) -> dict[str, bytes]:
    """Every file that readers see, but for the datasets' (whose source lies elsewhere)."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in files(folder) if not path.name.startswith(".tmp-")}
    return {name: data for name, data in found.items() if not name.startswith("datasets/")}


COLLISIONS = [20, pytest.param(180, marks=pytest.mark.long)]


@pytest.mark.parametrize("times", COLLISIONS)
def test_four_writers_on_one_plan_lose_nothing_and_agree(writers: Writers, quick_disk: Path, times: int) -> None:
    empty = plan(quick_disk / "plan", images=16)
    alone = build(quick_disk / "alone", images=16)
    with Trials(5) as trials:
        for trial in range(times):
            shutil.copytree(empty.folder, quick_disk / "store")
            made = reopen(empty._replace(store=FeatureStore.open(str(quick_disk / "store"))))
            writers.start(made, range(4 * trial, 4 * trial + 4))
            assert writers.wait() == [0] * 4
            assert committed_rows_are_right(made) == 4
            assert not [path for path in files(made.folder) if path.name.startswith(".tmp-")]
            assert published(made.folder) == published(alone.folder)
            shutil.rmtree(quick_disk / "store")
            trials.note("right")


@contextmanager
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, str]]]:
    """Note the calls that make bytes and names durable, with the file that each is about."""
    calls: list[tuple[str, str]] = []

    def name_of(target: object) -> str:
        return os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else os.fspath(target)  # type: ignore[call-overload]

    def watch(name: str) -> None:
        real: Callable[..., Any] = getattr(os, name)

        def call(*args: Any, **options: Any) -> Any:
            calls.append((name, name_of(args[-1] if name == "link" else args[0])))
            return real(*args, **options)

        monkeypatch.setattr(os, name, call)

    for name in ("writev", "fsync", "link", "rename"):
        watch(name)
    yield calls
    monkeypatch.undo()


def test_each_object_is_written_fsynced_linked_its_folder_fsynced_and_the_record_comes_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = plan(tmp_path)
    commit(made, 1)  # folders exist from here on
    made.views.commit_shard(0, made_up_store.drawn_with_digests(made.views, 0), {})
    folder = made.folder / "features" / made.features.key
    with traced(monkeypatch) as calls:
        made.features.commit_shard(0, made_up_store.tokens(made.features, 0), {}, "")
    objects = ["patch/c.0.0.0.0", "patch_scale/c.0.0.0.0", "cls/c.0.0", "commits/000000.json"]
    assert sorted(Path(name).relative_to(folder).as_posix() for call, name in calls if call == "link") == sorted(objects)
    with Trials(9) as trials:
        for published_name in objects:
            group = [(call, Path(name)) for call, name in calls if concerns(Path(name), folder / published_name)]
            assert [call for call, _ in group] == ["writev", "fsync", "link", "fsync"]
            assert group[0][1] == group[1][1]
            assert group[3][1] == (folder / published_name).parent
        assert len(calls) == 16
        assert all("commits" in name for _, name in calls[12:])  # the record's write begins when every object is durable
        trials.note("right")


def concerns(path: Path, published_name: Path) -> bool:
    """Whether a call was about this object: its folder, its temporary file or itself."""
    temporary = path.name.startswith(".tmp-") and path.name.endswith(published_name.name)
    return path in (published_name, published_name.parent) or (temporary and path.parent == published_name.parent)


@contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, name: str, number: int, after: int) -> Iterator[None]:
    """Let the `after`-th call of os.NAME from now on, and all later ones, be refused with an errno."""
    real: Callable[..., Any] = getattr(os, name)
    count = iter(range(1_000_000))

    def call(*args: Any, **options: Any) -> Any:
        if next(count) >= after:
            raise OSError(number, os.strerror(number))
        return real(*args, **options)

    monkeypatch.setattr(os, name, call)
    yield
    monkeypatch.undo()


REFUSED_CALLS = [("writev", n) for n in range(18)] + [("fsync", n) for n in range(0, 36, 2)] + [("link", n) for n in range(0, 18, 4)]


def test_a_full_disk_at_any_call_leaves_no_record_and_the_run_can_go_on(quick_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = plan(quick_disk / "plan", images=8)
    with Trials(8) as trials:
        for name, after in REFUSED_CALLS:
            shutil.copytree(empty.folder, quick_disk / "store")
            made = reopen(empty._replace(store=FeatureStore.open(str(quick_disk / "store"))))
            with failing(monkeypatch, name, errno.ENOSPC, after), pytest.raises(StoreUnavailable, match="bytes were needed"):
                [commit(made, shard) for shard in (0, 1)]
            assert not [path for path in files(made.folder) if path.name.startswith(".tmp-")]
            committed_rows_are_right(made)
            fresh = reopen(made)
            for shard in fresh.features.missing_shards():
                commit(fresh, shard)
            assert committed_rows_are_right(fresh) == 2
            shutil.rmtree(quick_disk / "store")
            trials.note("recovered")


def test_a_disk_that_fills_names_the_bytes_needed(tmp_path: Path) -> None:
    """The real refusal of the kernel: a file-size limit in a process of its own, at each of the shard's objects in turn."""
    made = plan(tmp_path, images=8)
    commit(made, 0)
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)\n"
        "from eupe_pipeline.storage.objects.atomic_files import create_exclusively\n"
        "from pathlib import Path\n"
        "create_exclusively(Path(sys.argv[2]), [bytes(70_000), bytes(30_000)])\n"
    )
    target = tmp_path / "new/object"
    done = subprocess.run([sys.executable, "-c", script, "80000", str(target)], capture_output=True, text=True, check=False)
    assert "StoreUnavailable" in done.stderr
    assert "100,000 bytes were needed" in done.stderr
    assert files(tmp_path / "new") == []


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS, errno.EDQUOT])
def test_a_refused_permission_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    made = plan(tmp_path)
    with (
        failing(monkeypatch, "open", number, 0),
        pytest.raises(StoreUnavailable, match=r"cannot (read|write) .*(crop|photos)"),
    ):
        made.views.commit_shard(0, made.views.draw_shard(0), {})


def test_a_read_only_folder_is_refused_on_creation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(StoreUnavailable, match="no permission"):
        FeatureStore.create(str(tmp_path / "new"))


def test_short_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network file system may take a part of what it is given; the file is whole nevertheless."""
    real = os.writev

    def seven(descriptor: int, buffers: Sequence[memoryview]) -> int:
        return os.write(descriptor, bytes(buffers[0][:7])) if len(buffers[0]) > 7 else real(descriptor, buffers[:1])

    monkeypatch.setattr(os, "writev", seven)
    parts = [os.urandom(size) for size in (0, 1, 100, 7, 0, 3)]
    assert atomic.create_exclusively(tmp_path / "x", parts)
    assert (tmp_path / "x").read_bytes() == b"".join(parts)
