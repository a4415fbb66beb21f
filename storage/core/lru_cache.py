"""The one cache of this package: values that were used last, up to a number of them or of their bytes.

Safe between threads: a value is made by one of them while the others that want it wait, and those that want another do not. Safe in a child
made by fork: what another thread was making there is made anew. Own code instead of cachetools, which leaves the lock, the waiting and the
fork to each of its users. `functools.lru_cache` stays where a pure function of small arguments is kept for the whole process.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

from .forks import renewed_after_fork

Key = TypeVar("Key")
Value = TypeVar("Value")


class LruCache(Generic[Key, Value]):
    """Values by key; the one used longest ago goes first when `limit` is passed, but never the last one.

    `size_of` says how much of the limit a value takes; without it each counts one.
    """

    def __init__(self, limit: int, size_of: Callable[[Value], int] = lambda value: 1) -> None:
        self.limit, self._size_of = limit, size_of
        self._kept: OrderedDict[Key, Value] = OrderedDict()
        self._held = 0
        self._making: dict[Key, Future[Value]] = {}
        self._lock = threading.Lock()
        renewed_after_fork(self)

    def after_fork(self) -> None:
        """Another thread may have held the lock, and whoever was making something is not here."""
        self._lock, self._making = threading.Lock(), {}
        self._held = sum(map(self._size_of, self._kept.values()))

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Key) -> Value | None:
        """The value, as used now; None when it is not kept."""
        with self._lock:
            return self._used(key)

    def put(self, key: Key, value: Value) -> None:
        """Keep a value, in the place of the one before."""
        with self._lock:
            self._keep(key, value)

    def get_or_make(self, key: Key, make: Callable[[], Value]) -> Value:
        """The value, made when it is not kept; an error of `make` is raised in every thread that waits for it, and nothing is kept."""
        with self._lock:
            if key in self._kept:
                return self._kept_now(key)
            future = self._making.get(key)
            mine = future is None
            if future is None:
                future = self._making[key] = Future()
        if not mine:
            return future.result()
        try:
            value = make()
        except BaseException as error:
            self._end(key, future)
            future.set_exception(error)
            raise
        with self._lock:
            if self._making.get(key) is future:  # nobody has dropped it meanwhile
                del self._making[key]
                self._keep(key, value)
        future.set_result(value)
        return value

    def pop(self, key: Key) -> Value | None:
        """Drop a value, also one that is being made; returns it when it was kept."""
        with self._lock:
            self._making.pop(key, None)
            if key not in self._kept:
                return None
            value = self._kept.pop(key)
            self._held -= self._size_of(value)
            return value

    def _used(self, key: Key) -> Value | None:
        return self._kept_now(key) if key in self._kept else None

    def _kept_now(self, key: Key) -> Value:
        self._kept.move_to_end(key)
        return self._kept[key]

    def _end(self, key: Key, future: Future[Value]) -> None:
        with self._lock:
            if self._making.get(key) is future:
                del self._making[key]

    def _keep(self, key: Key, value: Value) -> None:
        if key in self._kept:
            self._held -= self._size_of(self._kept.pop(key))
        self._kept[key] = value
        self._held += self._size_of(value)
        while self._held > self.limit and len(self._kept) > 1:
            self._held -= self._size_of(self._kept.popitem(last=False)[1])
