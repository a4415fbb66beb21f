"""Shards of a remote store in memory: read whole while rows are asked for in order, row by row otherwise.

A reader without a `shard_cache` folder that goes through a set in order (an evaluation, an export, one epoch) needs one GET an object, not
one a row. The rows are copied out of the memory that the object arrived in and are checked against the commit record on their way, as they
are wherever they lie; nothing is hashed twice and nothing goes through a disk. The price is memory, `limit_bytes` in all: of it 1/2 for the
objects used last, 3/8 for those under way (eight shards of 84 MB, one a connection; of several sets that are read in order, together), 1/8
to be used again, because a fresh page costs as much as copying one. Shards of sets that do not fit side by side are read row by row.
"""

import threading
from collections.abc import Sequence

import numpy as np

from ..core.errors import CacheDamaged
from ..core.forks import reset_after_fork
from ..core.lru_cache import LruCache
from .read_ahead import CONNECTIONS, Fetchers
from .remote import RemoteObject, RemoteObjects

DEFAULT_LIMIT_BYTES = 1 << 31


class HeldObjects(RemoteObjects):
    """`RemoteObjects` that holds whole objects in memory where they are read in order."""

    def __init__(self, url: str, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> None:
        super().__init__(url)
        self.fetchers = Fetchers(CONNECTIONS, limit_bytes * 3 // 8, limit_bytes // 2)
        self._spare = _SpareMemory(limit_bytes // 8)
        self._held: LruCache[tuple[str, str], _Held] = LruCache(limit_bytes // 2, lambda held: len(held.data))

    def open(self, key: str, xxh3_128: str | None = None) -> RemoteObject:
        """Open an object that is in memory, or for ranged GETs, after one HEAD."""
        if xxh3_128 is None:
            return super().open(key)
        held = self.held(key, xxh3_128)
        return _HeldObject(self, key, xxh3_128, len(held.data) if held is not None else super().open(key).size)

    def held(self, key: str, xxh3_128: str) -> "_Held | None":
        """Return an object that is in memory."""
        return self._held.get((key, xxh3_128))

    def hold(self, key: str, xxh3_128: str) -> "_Held":
        """Return an object, fetched by one GET when it is not in memory. Raise FileNotFoundError, `StoreUnavailable`."""
        return self._held.get_or_make((key, xxh3_128), lambda: self._fetch(key))

    def _fetch(self, key: str) -> "_Held":
        held = _Held(self._spare)
        self.read_whole(key, held.allocate)
        return held

    def drop(self, key: str, xxh3_128: str) -> bool:
        """Drop an object from memory; return whether it was there."""
        return self._held.pop((key, xxh3_128)) is not None


class _SpareMemory:
    """Memory of objects that were dropped, by its size."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self.after_fork()
        reset_after_fork(self)

    def after_fork(self) -> None:
        """Begin without any, in the child."""
        self._lock, self._spare, self._bytes = threading.RLock(), list[memoryview](), 0  # the collector may call `give` within `take`

    def take(self, size: int) -> memoryview:
        """Return memory of this size, whatever stands in it."""
        with self._lock:
            for place, memory in enumerate(self._spare):
                if len(memory) == size:
                    self._bytes -= size
                    return self._spare.pop(place)
        return memoryview(np.empty(size, np.uint8))  # type: ignore[arg-type]  # in large pages, which bytearray does not ask for

    def give(self, memory: memoryview) -> None:
        """Keep memory for others, if there is room."""
        with self._lock:
            if self._bytes + len(memory) <= self._limit_bytes:
                self._spare.append(memory)
                self._bytes += len(memory)


class _Held:
    """The memory of one object, which is given back when nobody reads from it any more."""

    def __init__(self, spare: _SpareMemory) -> None:
        self._spare, self.data = spare, memoryview(b"")

    def allocate(self, size: int) -> memoryview:
        """Return memory for so many bytes."""
        if len(self.data) != size:  # not a second try
            self.data = self._spare.take(size)
        return self.data

    def __del__(self) -> None:
        if self.data:
            self._spare.give(self.data)


class _HeldObject(RemoteObject):
    """An object that is in memory or not."""

    def __init__(self, objects: HeldObjects, key: str, xxh3_128: str, size: int) -> None:
        super().__init__(objects, key, size)
        self._holder, self._xxh3_128 = objects, xxh3_128

    def read_into(self, buffers: Sequence[memoryview], offset: int) -> None:
        """Fill the buffers from memory, or by one request."""
        held = self._holder.held(self._key, self._xxh3_128)
        if held is None:
            super().read_into(buffers, offset)
            return
        missing = offset + sum(map(len, buffers)) - len(held.data)
        if missing > 0:
            raise CacheDamaged(f"{self._key} ends {missing:,} bytes before what its record describes")
        for buffer in buffers:
            buffer[:] = held.data[offset : offset + len(buffer)]
            offset += len(buffer)

    def recheck(self) -> bool:
        """Drop what is held, so that the next read asks the store again; return whether anything was."""
        return self._holder.drop(self._key, self._xxh3_128)

    def close(self) -> None:
        """Drop what is held."""
        self._holder.drop(self._key, self._xxh3_128)
