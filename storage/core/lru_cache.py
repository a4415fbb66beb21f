"""The one LRU cache of this package, bounded by the number or the size of its values.

Thread-safe: one thread makes a value while others that want it wait, and threads that want other values do not. Fork-safe: a value that
another thread was making at the fork is made again in the child. It is our own class because cachetools leaves the lock, the waiting and
the fork to each of its users. `functools.lru_cache` is used where a pure function of small arguments is cached for the whole process.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

from .forks import reset_after_fork

Key = TypeVar("Key")
Value = TypeVar("Value")


class LruCache(Generic[Key, Value]):
    """Values by key; the least recently used go first when `limit` is exceeded, but never the last one.

    `size_of` gives a value's share of the limit; without it each counts one.
    """

    def __init__(self, limit: int, size_of: Callable[[Value], int] = lambda value: 1) -> None:
        self.limit, self._size_of = limit, size_of
        self._values: OrderedDict[Key, Value] = OrderedDict()
        self._size = 0
        self._pending: dict[Key, Future[Value]] = {}
        self._lock = threading.Lock()
        reset_after_fork(self)

    def after_fork(self) -> None:
        """Reset the lock and the pending values: the threads that made them do not exist in the child."""
        self._lock, self._pending = threading.Lock(), {}
        self._size = sum(map(self._size_of, self._values.values()))

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Key) -> Value | None:
        """Return the value and mark it as used; None when it is not cached."""
        with self._lock:
            return self._touch_or_none(key)

    def put(self, key: Key, value: Value) -> None:
        """Insert or replace a value."""
        with self._lock:
            self._insert(key, value)

    def get_or_make(self, key: Key, make: Callable[[], Value]) -> Value:
        """Return the value, made when it is not cached; an error of `make` is raised in every waiting thread, and nothing is cached."""
        with self._lock:
            if key in self._values:
                return self._touch(key)
            future = self._pending.get(key)
            is_maker = future is None
            if future is None:
                future = self._pending[key] = Future()
        if not is_maker:
            return future.result()
        try:
            value = make()
        except BaseException as error:
            self._drop_pending(key, future)
            future.set_exception(error)
            raise
        with self._lock:
            if self._pending.get(key) is future:  # nobody has dropped it meanwhile
                del self._pending[key]
                self._insert(key, value)
        future.set_result(value)
        return value

    def pop(self, key: Key) -> Value | None:
        """Drop a value, also one that is being made; return it when it was cached."""
        with self._lock:
            self._pending.pop(key, None)
            if key not in self._values:
                return None
            value = self._values.pop(key)
            self._size -= self._size_of(value)
            return value

    def _touch_or_none(self, key: Key) -> Value | None:
        return self._touch(key) if key in self._values else None

    def _touch(self, key: Key) -> Value:
        self._values.move_to_end(key)
        return self._values[key]

    def _drop_pending(self, key: Key, future: Future[Value]) -> None:
        with self._lock:
            if self._pending.get(key) is future:
                del self._pending[key]

    def _insert(self, key: Key, value: Value) -> None:
        if key in self._values:
            self._size -= self._size_of(self._values.pop(key))
        self._values[key] = value
        self._size += self._size_of(value)
        while self._size > self.limit and len(self._values) > 1:
            self._size -= self._size_of(self._values.popitem(last=False)[1])
