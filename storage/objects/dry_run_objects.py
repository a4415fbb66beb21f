"""`Objects` for dry runs: what would be created is kept in this process's memory, the store itself is not changed.

Reads look at what was created here first, then at the underlying store. Meant for identities and metadata, and for pooled features of a
store that cannot be written; nothing can be removed.
"""

from collections.abc import Sequence

from ..core.errors import BadInput, CacheDamaged
from .atomic_files import Content
from .objects import Objects, OpenObject


class _InMemoryObject:
    """An object created in the dry run, open for reading."""

    def __init__(self, data: bytes) -> None:
        self._data, self.size = data, len(data)

    def read_into(self, buffers: Sequence[memoryview], offset: int) -> None:
        """Fill the buffers from memory."""
        for buffer in buffers:
            if offset + len(buffer) > self.size:
                raise CacheDamaged(f"it ends {offset + len(buffer) - self.size:,} bytes before what its record describes")
            buffer[:] = self._data[offset : offset + len(buffer)]
            offset += len(buffer)

    def touch(self) -> None:
        """Do nothing: the object lives as long as the dry run."""

    def recheck(self) -> bool:
        """Return False: this is no cached copy."""
        return False

    def close(self) -> None:
        """Do nothing."""


class DryRunObjects:
    """`Objects` over others, which are not changed."""

    def __init__(self, base: Objects) -> None:
        self._base, self.url, self.fetchers = base, base.url, base.fetchers
        self._created: dict[str, bytes] = {}

    def threads_for(self, size: int) -> int:
        """Return the number of threads that the underlying store wants."""
        return self._base.threads_for(size)

    def read(self, key: str, limit_bytes: int | None = None) -> bytes:
        """Return the bytes created here, or those of the underlying store."""
        return self._created[key] if key in self._created else self._base.read(key, limit_bytes)

    def open(self, key: str, xxh3_128: str | None = None) -> OpenObject:
        """Open what was created here, or the object of the underlying store."""
        return _InMemoryObject(self._created[key]) if key in self._created else self._base.open(key, xxh3_128)

    def size(self, key: str) -> int | None:
        """Return the length in bytes, here or in the underlying store."""
        return len(self._created[key]) if key in self._created else self._base.size(key)

    def modified(self, key: str) -> float | None:
        """Return the time of an object of the underlying store."""
        return None if key in self._created else self._base.modified(key)

    def names(self, prefix: str) -> list[str]:
        """Return the names below a prefix, here and in the underlying store."""
        start = f"{prefix.rstrip('/')}/"
        here = {key.removeprefix(start).partition("/")[0] for key in self._created if key.startswith(start)}
        return sorted(here | set(self._base.names(prefix)))

    def create(self, key: str, content: Content) -> bool:
        """Keep the content in memory unless the key exists."""
        if self.size(key) is not None:
            return False
        self._created[key] = b"".join(content)
        return True

    def duplicate(self, existing: str, key: str, data: bytes) -> bool:
        """Keep the content in memory unless the key exists."""
        return self.create(key, [data])

    def replace(self, key: str, data: bytes) -> None:
        """Keep the content in memory, hiding that of the underlying store."""
        self._created[key] = data

    def remove(self, key: str) -> None:
        """Raise `BadInput`: a dry run removes nothing."""
        raise BadInput(f"a dry run would remove {key}; run the command without --dry-run")

    def drop_empty(self, prefix: str) -> None:
        """Do nothing."""

    def sweep(self, prefix: str, *, at_any_age: bool = False) -> int:
        """Do nothing and return 0."""
        return 0
