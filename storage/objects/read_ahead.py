"""Open shards before they are read, where opening a shard means downloading it.

A reader announces the shards it will read (`prefetch`), or is observed to go from shard to shard (`note_read`). A few threads open them in
that order; a reader that needs one waits for the thread at work on it, or opens it itself while it is still queued. So each shard costs one
request and latencies overlap: an object store gives one connection a tenth of what it gives ten. The threads are daemons, so that the queue
is dropped when the process ends. Errors are not kept: they are raised again where the shard is read.
"""

import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from functools import partial
from queue import SimpleQueue

from ..core.forks import reset_after_fork

Call = Callable[[], None]
_Submitted = tuple[Future[None], Call]
CONNECTIONS = 8  # S3 gives one some 50 to 100 MB/s
_IN_ORDER_S = 60.0  # a reader in order that has read nothing for so long has stopped


class Fetchers:
    """Threads that run calls in the order of submission; started on demand, ended with this object.

    `limit_bytes` bounds how much is fetched ahead of all sequential readers, `held_bytes` the memory in which it waits for them and is
    read; None where it lies in files.
    """

    def __init__(self, count: int, limit_bytes: int, held_bytes: int | None = None) -> None:
        self.count, self.limit_bytes, self.held_bytes = count, limit_bytes, held_bytes
        self.after_fork()
        reset_after_fork(self)

    def after_fork(self) -> None:
        """Reset to an empty queue and no threads."""
        self._calls: SimpleQueue[_Submitted | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._started = 0
        self._in_order: weakref.WeakKeyDictionary[ReadAhead, tuple[float, int]] = weakref.WeakKeyDictionary()

    def note_in_order(self, reader: "ReadAhead", shard_bytes: int) -> None:
        """Note that a reader goes through its shards in order; 0: no more."""
        with self._lock:
            self._in_order[reader] = time.monotonic(), shard_bytes

    def others_bytes(self, reader: "ReadAhead") -> int:
        """Return the bytes of one shard of each other reader in order: they share the memory, and each drops what another waits for."""
        with self._lock:
            known = list(self._in_order.items())
        since = time.monotonic() - _IN_ORDER_S
        return sum(size for other, (last, size) in known if other is not reader and last > since)

    def submit(self, call: Call) -> Future[None]:
        """Queue `call`, which the returned future can cancel; the future gives None when the call has ended."""
        future: Future[None] = Future()
        self._calls.put((future, call))
        with self._lock:
            if self._started < self.count:
                self._started += 1
                threading.Thread(target=_work, args=(self._calls,), name=f"fetch-{self._started}", daemon=True).start()
        return future

    def __del__(self) -> None:
        for _ in range(self._started):
            self._calls.put(None)


def _work(calls: "SimpleQueue[_Submitted | None]") -> None:
    """Run calls until None comes; a thread that waits keeps no call alive, and so no reader with what it holds in memory."""
    while (submitted := calls.get()) is not None:
        future, call = submitted
        if future.set_running_or_notify_cancel():
            try:
                with suppress(Exception):  # it is raised again where the shard is read
                    call()
            finally:
                future.set_result(None)
        del submitted, future, call


class ReadAhead:
    """Pending fetches of one group's shards; `fetch(shard, names)` opens arrays of a shard and must be thread-safe.

    `array_bytes` has the bytes that each array has in a shard.
    """

    def __init__(
        self, fetch: Callable[[int, Sequence[str]], None], fetchers: Fetchers, shards: int, array_bytes: Mapping[str, int]
    ) -> None:
        self._fetch, self._fetchers, self._shards, self._array_bytes = fetch, fetchers, shards, array_bytes
        self.after_fork()
        reset_after_fork(self)

    def bytes_of(self, names: Iterable[str]) -> int:
        """Return the bytes of these arrays in a shard."""
        return max(1, sum(self._array_bytes[name] for name in names))

    @property
    def depth(self) -> int:
        """Return how many shards are fetched ahead: as many as there is room for beside what is being read, and at most one a thread."""
        fetchers, own = self._fetchers, self.bytes_of(self._read or self._array_bytes)
        if fetchers.held_bytes is None:
            return max(1, min(fetchers.count, fetchers.limit_bytes // own))
        of_all = own + fetchers.others_bytes(self)
        return max(0, min(fetchers.count, fetchers.limit_bytes // of_all, fetchers.held_bytes // of_all - 2))  # a batch lies in two shards

    def fits(self, names: Iterable[str]) -> bool:
        """Return whether these arrays of a shard find room beside those of the other readers in order."""
        held = self._fetchers.held_bytes
        return held is None or self.bytes_of(names) + self._fetchers.others_bytes(self) <= held

    def after_fork(self) -> None:
        """Reset to no pending fetches: a child would wait for ever for its parent's threads."""
        self._lock = threading.Lock()
        self._pending: dict[int, Future[None]] = {}
        self._begin()

    def _begin(self) -> None:
        self._last = self._requested_up_to = -1
        self._read = set[str]()

    def begin(self) -> None:
        """Forget how far a reader has come: one begins with the first shard."""
        with self._lock:
            self._begin()

    def prefetch(self, shards: Iterable[int], names: Sequence[str]) -> None:
        """Fetch these arrays of these shards in the background, in this order."""
        with self._lock:
            for shard in shards:
                if shard not in self._pending:
                    self._pending[shard] = self._fetchers.submit(partial(self._open, shard, names))

    def _open(self, shard: int, names: Sequence[str]) -> None:
        try:
            self._fetch(shard, names)
        finally:
            with self._lock:  # `prefetch` holds it until the shard is in `_pending`
                del self._pending[shard]

    def wait_for(self, shard: int) -> None:
        """Wait until no thread is opening this shard; cancel a fetch that has not started, the caller then opens the shard."""
        with self._lock:
            future = self._pending.get(shard)
            if future is None:
                return
            if future.cancel():
                del self._pending[shard]
                return
        wait([future])

    def note_read(self, shard: int, names: Sequence[str]) -> None:
        """Note that a shard is being read; prefetch it and the following ones when it follows the one read before."""
        with self._lock:
            self._read.update(names)
            self._fetchers.note_in_order(self, self.bytes_of(self._read) if shard < self._shards - 1 else 0)
            last, self._last = self._last, shard
            if shard != last + 1:
                self._requested_up_to = self._requested_up_to if shard == last else shard
                return
            first = max(self._requested_up_to + 1, shard)  # at the start its own as well, ahead of the others
            self._requested_up_to = max(self._requested_up_to, min(shard + self.depth, self._shards - 1))
            following = range(first, self._requested_up_to + 1)
        self.prefetch(following, names)
