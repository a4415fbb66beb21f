"""Shards that will be read soon, opened before they are asked for, where opening a shard means fetching it.

A reader says which shards come next (`expect`), or is seen to go from shard to shard (`after`). They are opened by a few threads, in that
order, and who then wants one waits for the thread that is at it, or takes it over while it still stands in the queue. So one request a
shard is made, and latencies overlap: an object store gives one connection a tenth of what it gives ten. The threads are daemons: what
stands in the queue when the process ends is dropped, not worked off. An error is not kept: it comes again where the shard is read.
"""

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from functools import partial
from queue import SimpleQueue

from ..core.errors import EupeError
from ..core.forks import renewed_after_fork

Call = Callable[[], None]


class Fetchers:
    """Threads that run calls in the order of their coming; started when there is something to do.

    `room_bytes` is how much may be fetched ahead of a reader that goes from shard to shard.
    """

    def __init__(self, count: int, room_bytes: int) -> None:
        self.count, self.room_bytes = count, room_bytes
        self.after_fork()
        renewed_after_fork(self)

    def after_fork(self) -> None:
        """Begin with an empty queue and no thread."""
        self._calls: SimpleQueue[tuple[Future[None], Call]] = SimpleQueue()
        self._lock = threading.Lock()
        self._started = 0

    def submit(self, call: Call) -> Future[None]:
        """Run `call` when its turn comes, unless the future is cancelled before; the future gives None when it is over."""
        future: Future[None] = Future()
        self._calls.put((future, call))
        with self._lock:
            if self._started < self.count:
                self._started += 1
                threading.Thread(target=self._work, name=f"fetch-{self._started}", daemon=True).start()
        return future

    def _work(self) -> None:
        while True:
            future, call = self._calls.get()
            if future.set_running_or_notify_cancel():
                with suppress(EupeError, OSError):
                    call()
                future.set_result(None)


class ReadAhead:
    """What is under way of one group's shards; `fetch(shard, names)` opens arrays of one, safely from several threads."""

    def __init__(self, fetch: Callable[[int, Sequence[str]], None], fetchers: Fetchers, shards: int, shard_bytes: int) -> None:
        self._fetch, self._fetchers, self._shards = fetch, fetchers, shards
        self._depth = max(1, min(fetchers.count, fetchers.room_bytes // max(1, shard_bytes)))
        self.after_fork()
        renewed_after_fork(self)

    def after_fork(self) -> None:
        """Begin with nothing under way: a child would wait for ever for its parent's threads."""
        self._lock = threading.Lock()
        self._coming: dict[int, Future[None]] = {}
        self._last = self._asked = -1

    def expect(self, shards: Iterable[int], names: Sequence[str]) -> None:
        """These arrays of these shards will be read, in about this order."""
        with self._lock:
            for shard in shards:
                if shard not in self._coming:
                    self._coming[shard] = self._fetchers.submit(partial(self._open, shard, names))

    def _open(self, shard: int, names: Sequence[str]) -> None:
        try:
            self._fetch(shard, names)
        finally:
            with self._lock:  # not before `expect` has put it there
                del self._coming[shard]

    def settle(self, shard: int) -> None:
        """Come back when nobody is at this shard any more; one that is still waiting for its turn is the caller's."""
        with self._lock:
            future = self._coming.get(shard)
            if future is None:
                return
            if future.cancel():
                del self._coming[shard]
                return
        wait([future])

    def after(self, shard: int, names: Sequence[str]) -> None:
        """A shard is being read: expect those behind it, when it came behind the one before."""
        with self._lock:
            last, self._last = self._last, shard
            if shard != last + 1:
                self._asked = self._asked if shard == last else shard
                return
            first = max(self._asked, shard) + 1
            self._asked = min(shard + self._depth, self._shards - 1)
            following = range(first, self._asked + 1)
        self.expect(following, names)
