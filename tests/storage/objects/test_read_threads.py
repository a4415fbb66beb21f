"""Reads by several threads: the same rows, every error, and memory that nobody writes to any more when the read has come back."""

import multiprocessing
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from eupe_pipeline.storage.core.errors import CacheDamaged
from eupe_pipeline.storage.objects.read_threads import both, run_parallel, threads_for_files

from ..made_up_store import build, reopen


@pytest.mark.parametrize("at_once", [1, 2, 3, 7, 16])
def test_any_number_of_threads_reads_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    made = build(tmp_path, images=20)
    whole = made.features.read(np.arange(40), threads=1)
    features = reopen(made).features
    monkeypatch.setattr(features.group.objects, "threads_for", lambda size: at_once)
    for rows in (np.arange(40), np.random.default_rng(0).integers(0, 40, 100), np.array([7]), np.empty(0, np.int64)):
        found = features.read(rows)
        for got, expected in zip(found, whole, strict=True):
            if expected is not None:
                np.testing.assert_array_equal(got, expected[rows])


def test_damage_that_another_thread_finds_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = build(tmp_path, images=20)
    path = next((tmp_path / "store/features").rglob("patch/c.4.*"))
    data = bytearray(path.read_bytes())
    data[10] ^= 1
    path.write_bytes(data)
    features = reopen(made).features
    monkeypatch.setattr(features.group.objects, "threads_for", lambda size: 4)
    with pytest.raises(CacheDamaged, match="shard 4"):
        features.read(np.arange(40))
    features.read(np.arange(32))


def test_files_take_threads_by_the_megabyte() -> None:
    assert [threads_for_files(size) for size in (0, 1 << 20, 3 << 20)] == [1, 1, 1]
    assert 1 <= threads_for_files(1 << 30) <= 4


def test_nobody_is_at_work_when_an_error_comes_back() -> None:
    done = []

    def slow() -> None:
        time.sleep(0.05)
        done.append(threading.current_thread().name)

    def fail() -> None:
        raise CacheDamaged("first")

    with pytest.raises(CacheDamaged, match="first"):
        run_parallel([fail, slow, slow])
    assert len(done) == 2
    with pytest.raises(CacheDamaged, match="first"):
        run_parallel([slow, fail, slow])
    assert len(done) == 4


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_reads_with_threads_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = build(tmp_path, images=20)
    monkeypatch.setattr(made.features.group.objects, "threads_for", lambda size: 4)
    wanted = made.features.read(np.arange(40)).patch
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        same = np.array_equal(made.features.read(np.arange(40)).patch, wanted)
        os.write(writer, b"same" if same else b"else")
        os._exit(0)
    os.close(writer)
    assert os.read(reader, 4) == b"same"
    os.waitpid(child, 0)
    os.close(reader)


def test_two_calls_give_their_results_at_once_or_one_after_the_other() -> None:
    met = threading.Barrier(2, timeout=20)
    assert both(met.wait, met.wait, at_once=True) in ((0, 1), (1, 0))
    assert both(lambda: 1, lambda: 2, at_once=False) == (1, 2)


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_of_either_call_is_the_callers(failing: int, at_once: bool) -> None:
    calls = []

    def call(number: int) -> None:
        calls.append(number)
        if number == failing:
            raise RuntimeError("not a thread's")

    with pytest.raises(RuntimeError, match="not a thread's"):
        both(lambda: call(0), lambda: call(1), at_once=at_once)
    assert len(calls) == len(set(calls)), "no call is made twice"


def test_without_a_thread_one_call_follows_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert both(lambda: 1, lambda: 2, at_once=True) == (1, 2)


def test_a_program_does_not_wait_for_a_call_when_it_ends() -> None:
    script = (
        "import threading, time; from eupe_pipeline.storage.objects.read_threads import both\n"
        "threading.Thread(target=both, args=(lambda: time.sleep(60), lambda: 1), kwargs={'at_once': True}, daemon=True).start()\n"
        "time.sleep(0.2)\n"
    )
    subprocess.run([sys.executable, "-c", script], timeout=30, check=True)
