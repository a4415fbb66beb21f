"""Shards opened ahead: once each, in order, never twice at a time, taken over when they are wanted first, dropped when the process ends."""

import subprocess
import sys
import threading
import time
from collections.abc import Sequence

import pytest
from eupe_pipeline.storage.core.errors import StoreUnavailable
from eupe_pipeline.storage.objects.read_ahead import Fetchers, ReadAhead

PATIENCE_S = 20.0


class Remote:
    """Opens shards when the gate is open, and remembers which."""

    def __init__(self, fail: Sequence[int] = ()) -> None:
        self.gate, self.lock, self.fail = threading.Event(), threading.Lock(), set(fail)
        self.begun: list[int] = []
        self.opened: list[int] = []

    def fetch(self, shard: int, names: Sequence[str]) -> None:
        assert tuple(names) == ("patch",)
        with self.lock:
            self.begun.append(shard)
        assert self.gate.wait(PATIENCE_S)
        if shard in self.fail:
            raise StoreUnavailable("gone")
        with self.lock:
            self.opened.append(shard)

    def await_begun(self, count: int) -> None:
        end = time.monotonic() + PATIENCE_S
        while len(self.begun) < count:
            assert time.monotonic() < end, f"{self.begun} after {PATIENCE_S} s"
            time.sleep(0.001)


def ahead(remote: Remote, threads: int = 2, shards: int = 100, room: int = 1000, shard_bytes: int = 100) -> ReadAhead:
    return ReadAhead(remote.fetch, Fetchers(threads, room), shards, {"patch": shard_bytes})


def test_what_is_expected_is_opened_once_in_order_by_few_threads() -> None:
    remote = Remote()
    reading = ahead(remote)
    reading.prefetch([5, 3, 9], ("patch",))
    reading.prefetch([9, 3, 7], ("patch",))
    remote.await_begun(2)
    assert remote.begun == [5, 3]
    remote.gate.set()
    for shard in (5, 3, 9, 7):
        reading.wait_for(shard)
    assert sorted(remote.opened) == sorted({5, 3, *remote.begun})
    assert len(remote.begun) == len(set(remote.begun))


def test_one_that_waits_for_its_turn_is_its_readers_who_does_not_wait_in_the_queue() -> None:
    remote = Remote()
    reading = ahead(remote, threads=1)
    reading.prefetch([1, 2, 3], ("patch",))
    remote.await_begun(1)
    start = time.monotonic()
    reading.wait_for(3)
    assert time.monotonic() - start < PATIENCE_S / 2
    remote.gate.set()
    reading.wait_for(1)
    remote.await_begun(2)
    reading.wait_for(2)
    assert remote.begun == [1, 2], "the reader of 3 opens it itself"
    reading.prefetch([3], ("patch",))
    remote.await_begun(3)


def test_a_reader_waits_for_the_thread_that_is_at_its_shard() -> None:
    remote = Remote()
    reading = ahead(remote)
    reading.prefetch([1], ("patch",))
    remote.await_begun(1)
    waiting = threading.Thread(target=reading.wait_for, args=(1,))
    waiting.start()
    waiting.join(0.05)
    assert waiting.is_alive()
    remote.gate.set()
    waiting.join(PATIENCE_S)
    assert not waiting.is_alive()
    assert remote.opened == [1]


def test_an_error_ends_neither_the_thread_nor_the_reader() -> None:
    remote = Remote(fail=[1])
    remote.gate.set()
    reading = ahead(remote, threads=1)
    reading.prefetch([1, 2], ("patch",))
    remote.await_begun(2)
    reading.wait_for(1)
    reading.wait_for(2)
    assert remote.opened == [2]
    reading.prefetch([1], ("patch",))
    remote.await_begun(3)


@pytest.mark.parametrize(("room", "expected"), [(1000, [0, 1, 2, 3]), (200, [0, 1, 2]), (10, [0, 1])])
def test_a_walk_from_shard_to_shard_is_followed_as_far_as_threads_and_room_allow(room: int, expected: list[int]) -> None:
    remote = Remote()
    remote.gate.set()
    reading = ahead(remote, threads=3, room=room)
    reading.note_read(0, ("patch",))
    remote.await_begun(len(expected))
    for shard in expected:
        reading.wait_for(shard)
    assert remote.begun == expected
    reading.note_read(1, ("patch",))
    remote.await_begun(len(expected) + 1)
    assert remote.begun[-1] == expected[-1] + 1


def test_jumps_are_not_followed_and_the_last_shard_is_the_end() -> None:
    remote = Remote()
    remote.gate.set()
    reading = ahead(remote, threads=3, shards=10)
    for shard in (4, 9, 2, 2, 7):
        reading.note_read(shard, ("patch",))
    assert remote.begun == []
    reading.note_read(8, ("patch",))
    remote.await_begun(2)
    reading.wait_for(9)
    assert remote.begun == [8, 9]


def test_a_call_that_fails_in_any_way_neither_blocks_its_reader_nor_ends_its_thread() -> None:
    remote = Remote()
    remote.gate.set()

    def fetch(shard: int, names: Sequence[str]) -> None:
        if shard == 1:
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")
        remote.fetch(shard, names)

    reading = ReadAhead(fetch, Fetchers(1, 1000), 10, {"patch": 100})
    reading.prefetch([1, 2], ("patch",))
    remote.await_begun(1)
    reading.wait_for(1)
    reading.wait_for(2)
    assert remote.opened == [2]


def test_readers_in_order_share_the_memory_that_they_read_from() -> None:
    fetchers = Fetchers(8, 900, held_bytes=1200)
    one, other = (ReadAhead(Remote().fetch, fetchers, 50, {"patch": 100, "cls": 20}) for _ in range(2))
    assert one.depth == 900 // 120, "before anything is read, for all arrays"
    one.note_read(0, ("patch",))
    assert one.depth == 8
    other.note_read(0, ("patch",))
    assert one.depth == other.depth == 4, "half of what is ahead; in memory are twice two more"
    one.note_read(0, ("cls",))
    assert (one.depth, one.fits(("patch",))) == (1200 // 220 - 2, True)
    other.note_read(49, ("patch",))
    assert one.depth == 900 // 120, "the other has come to its end"
    one.begin()
    one.note_read(0, ("cls",))
    assert one.depth == 8


def test_sets_that_do_not_fit_side_by_side_are_not_held() -> None:
    fetchers = Fetchers(8, 900, held_bytes=1200)
    one, other, large = (ReadAhead(Remote().fetch, fetchers, 50, {"patch": size}) for size in (700, 600, 1300))
    one.note_read(3, ("patch",))
    assert (one.depth, one.fits(("patch",)), other.fits(("patch",)), large.fits(("patch",))) == (0, True, False, False)


def test_a_reader_that_has_stopped_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    fetchers = Fetchers(8, 900, held_bytes=1200)
    one, other = (ReadAhead(Remote().fetch, fetchers, 50, {"patch": 700}) for _ in range(2))
    one.note_read(3, ("patch",))
    assert not other.fits(("patch",))
    now = 61.0
    assert other.fits(("patch",))


def test_a_process_that_ends_does_not_work_off_what_was_expected() -> None:
    script = (
        "import time; from eupe_pipeline.storage.objects.read_ahead import Fetchers\n"
        "fetchers = Fetchers(1, 0)\n"
        "for _ in range(100): fetchers.submit(lambda: time.sleep(5))\n"
    )
    subprocess.run([sys.executable, "-c", script], timeout=PATIENCE_S, check=True)
