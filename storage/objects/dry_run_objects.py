"""A store in which nothing is made: a dry run goes the real way, and what it would create stays in this process's memory.

Reads find what was created here first, then what the store behind holds. For identities and metadata, and for pooled
features of a store that cannot be written; nothing can be
removed through it.
"""

from collections.abc import Sequence

from ..core.errors import BadInput, CacheDamaged
from .atomic_files import Content
from .objects import Objects, OpenObject


class _Made:
    """What was made here, open for reading."""

    def __init__(self, data: bytes) -> None:
        self._data, self.size = data, len(data)

    def read_into(self, buffers: Sequence[memoryview], offset: int) -> None:
        """Fill the buffers from memory."""
        for buffer in buffers:
            if offset + len(buffer) > self.size:
                raise CacheDamaged(f"it ends {offset + len(buffer) - self.size:,} bytes before what its record describes")
            buffer[:] = self._data[offset : offset + len(buffer)]
            offset += len(buffer)

    def renew(self) -> None:
        """It is there as long as its rehearsal."""

    def doubt(self) -> bool:
        """It is no copy."""
        return False

    def close(self) -> None:
        """Nothing is held."""


class Rehearsal:
    """`Objects` over others, which stay as they are."""

    def __init__(self, behind: Objects) -> None:
        self._behind, self.url, self.fetchers = behind, behind.url, behind.fetchers
        self._made: dict[str, bytes] = {}

    def threads_for(self, size: int) -> int:
        """As for what is behind."""
        return self._behind.threads_for(size)

    def read(self, key: str, limit_bytes: int | None = None) -> bytes:
        """What was made here, or what is behind."""
        return self._made[key] if key in self._made else self._behind.read(key, limit_bytes)

    def open(self, key: str, xxh3_128: str | None = None) -> OpenObject:
        """Open what was made here, or what is behind."""
        return _Made(self._made[key]) if key in self._made else self._behind.open(key, xxh3_128)

    def size(self, key: str) -> int | None:
        """Length in bytes, here or behind."""
        return len(self._made[key]) if key in self._made else self._behind.size(key)

    def names(self, prefix: str) -> list[str]:
        """Names below a prefix, here and behind."""
        start = f"{prefix.rstrip('/')}/"
        here = {key.removeprefix(start).partition("/")[0] for key in self._made if key.startswith(start)}
        return sorted(here | set(self._behind.names(prefix)))

    def create(self, key: str, content: Content) -> bool:
        """Keep the content here unless the key exists."""
        if self.size(key) is not None:
            return False
        self._made[key] = b"".join(content)
        return True

    def replace(self, key: str, data: bytes) -> None:
        """Keep it here, in the place of what is behind."""
        self._made[key] = data

    def remove(self, key: str) -> None:
        """Raise `BadInput`: a rehearsal takes nothing away."""
        raise BadInput(f"a dry run would remove {key}; run the command without --dry-run")

    def drop_empty(self, prefix: str) -> None:
        """Nothing was made that could be empty."""

    def sweep(self, prefix: str) -> int:
        """Nothing was left here."""
        return 0
