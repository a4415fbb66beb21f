"""A store in which one may write as one likes and nothing happens to it: what is created or removed is remembered here alone.

Dry runs go through it. They run the code of real ones, so that what they say is what would be done, and leave the store as it is.
"""

import threading
from collections.abc import Sequence

from .atomic import Content
from .errors import CacheDamaged
from .objects import Objects, OpenObject
from .remote import check_limit


class ImaginedObjects:
    """`Objects` over others, read through; nothing of these is ever written."""

    ahead = 0

    def __init__(self, real: Objects) -> None:
        self.real, self.url = real, real.url
        self._lock = threading.Lock()
        self._made: dict[str, bytes] = {}
        self._gone: set[str] = set()

    def read(self, key: str, limit_bytes: int | None = None) -> bytes:
        """What was imagined, or what is there."""
        self._refuse_gone(key)
        if key not in self._made:
            return self.real.read(key, limit_bytes)
        if limit_bytes is not None:
            check_limit(key, len(self._made[key]), limit_bytes)
        return self._made[key]

    def open(self, key: str, xxh3_128: str | None = None) -> OpenObject:
        """What was imagined, or what is there."""
        self._refuse_gone(key)
        return _InMemory(self._made[key]) if key in self._made else self.real.open(key, xxh3_128)

    def size(self, key: str) -> int | None:
        """Of what was imagined, or of what is there."""
        if key in self._gone:
            return None
        return len(self._made[key]) if key in self._made else self.real.size(key)

    def names(self, prefix: str) -> list[str]:
        """Both together."""
        start = f"{prefix}/" if prefix else ""
        made = {key[len(start) :].partition("/")[0] for key in self._made if key.startswith(start)}
        there = {name for name in self.real.names(prefix) if start + name not in self._gone}
        return sorted(made | there)

    def create(self, key: str, content: Content) -> bool:
        """Remember it, unless there is one."""
        data = b"".join(bytes(piece) for piece in content)
        with self._lock:
            if self.size(key) is not None:
                return False
            self._gone.discard(key)
            self._made[key] = data
        return True

    def remove(self, key: str) -> None:
        """Forget it, or hide what is there."""
        with self._lock:
            if self._made.pop(key, None) is None:
                self._gone.add(key)

    def drop_empty(self, prefix: str) -> None:
        """There are no folders."""

    def sweep(self, prefix: str) -> int:
        """Nothing is removed."""
        return 0

    def _refuse_gone(self, key: str) -> None:
        if key in self._gone:
            raise FileNotFoundError(key)


class _InMemory:
    """Bytes as an open object."""

    def __init__(self, data: bytes) -> None:
        self._data, self.size = data, len(data)

    def read_into(self, buffers: Sequence[memoryview], offset: int) -> None:
        if offset + sum(len(buffer) for buffer in buffers) > self.size:
            raise CacheDamaged(f"an imagined object of {self.size:,} bytes ends before what its record describes")
        for buffer in buffers:
            buffer[:] = self._data[offset : offset + len(buffer)]
            offset += len(buffer)

    def close(self) -> None:
        """Nothing is held."""
