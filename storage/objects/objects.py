"""One interface to stored bytes: `Objects`, over a local folder or over any fsspec URL (s3://…, memory://…).

The store needs few operations: read, read into given memory, size, names, create exclusively, replace, remove. Locally they are plain
system calls (a hard link for the exclusive create, `preadv` into the caller's memory); elsewhere they are fsspec's, with a conditional put
for the create and without its listings cache, because another process may have committed meanwhile (`remote`).
"""

import contextlib
import errno
import math
import os
import re
import resource
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from ..core.access import REFUSED, whose
from ..core.cache_home import expand_path
from ..core.errors import BadInput, CacheDamaged, EupeError, StoreUnavailable
from ..core.lru_cache import LruCache
from ..core.urls import is_url, normalize_scheme
from .atomic_files import (
    STALE_SECONDS,
    Content,
    create_exclusively,
    fsync_folder,
    link_exclusively,
    make_folder,
    sweep,
    translate_os_errors,
    write_atomically,
)
from .read_ahead import Fetchers
from .read_threads import threads_for_files
from .remote import RemoteObjects, check_limit

_IOV_MAX = 1024
_FILE_NAME = re.compile(r"c(\.\d+)+|\d+\.(json|parquet|records)|zarr\.json")  # by its name, so that nobody asks an object store about each


class OpenObject(Protocol):
    """An object that is open for reading; thread-safe."""

    size: int

    def read_into(self, buffers: Sequence[memoryview], offset: int) -> None:
        """Fill the buffers, one after another, from `offset`; raise `CacheDamaged` when the object ends before."""

    def touch(self) -> None:
        """Keep a cached copy from being evicted, or fetch it again: it will be read soon."""

    def recheck(self) -> bool:
        """Verify a cached copy whose content was not as expected, fetching a damaged one again; return whether to read once more."""

    def close(self) -> None:
        """Release the file."""


class Objects(Protocol):
    """Named byte strings below one root; a key is a relative path with slashes."""

    url: str
    fetchers: Fetchers | None  # who opens shards before they are asked for; None where opening costs nothing or fetches nothing

    def threads_for(self, size: int) -> int:
        """Return how many threads are worth it for reading `size` bytes of open objects."""

    def read(self, key: str, limit_bytes: int | None = None) -> bytes:
        """Return all bytes; raise FileNotFoundError, `StoreUnavailable`, and `CacheDamaged` when there are more than the limit."""

    def open(self, key: str, xxh3_128: str | None = None) -> OpenObject:
        """Open for ranged reads; a cache may use a local copy with the expected xxh3. Raise FileNotFoundError."""

    def size(self, key: str) -> int | None:
        """Return the length in bytes, None when there is no such object."""

    def modified(self, key: str) -> float | None:
        """Return when an object was written, in seconds since 1970 by the store's own clock; None where that is unknown or it is gone."""

    def names(self, prefix: str) -> list[str]:
        """Return the sorted names directly below a prefix, [] when there are none; unfinished files are left out."""

    def create(self, key: str, content: Content) -> bool:
        """Publish the content unless the key exists; return True when this call created it. Raise `StoreUnavailable`."""

    def duplicate(self, existing: str, key: str, data: bytes) -> bool:
        """Publish an existing object, whose content is `data`, under a second key unless that exists; return True when this call did.

        Without a second copy of its bytes where the store can, or without sending them.
        """

    def replace(self, key: str, data: bytes) -> None:
        """Write an object whether or not the key exists; readers find the old or the new one. For runs; in a store only `damaged_files`."""

    def remove(self, key: str) -> None:
        """Remove one object; do nothing when there is none."""

    def drop_empty(self, prefix: str) -> None:
        """Remove empty folders below a prefix, where there are folders."""

    def sweep(self, prefix: str, *, at_any_age: bool = False) -> int:
        """Remove temporary files that killed writers left below a prefix a day ago or more, or at any age; return their number."""


class _Descriptor:
    """An open file that closes itself when nobody refers to it any more."""

    def __init__(self, path: str) -> None:
        self.number = -1  # for __del__, when the open below fails
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        status = os.fstat(self.number)
        if stat.S_ISDIR(status.st_mode):  # which can be opened, and only fails at the first read
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        self.inode, self.size = status.st_ino, status.st_size

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


# The process's open shard files: readers of large stores must not run out of descriptors. One is closed when its last reader lets go.
_DESCRIPTORS: LruCache[str, _Descriptor] = LruCache(max(64, min(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[0]) // 4))


def _opened(path: str) -> _Descriptor:
    """Open a file anew, and keep it open."""
    descriptor = _Descriptor(path)
    _DESCRIPTORS.put(path, descriptor)
    return descriptor


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn errors of reading inside the block into `StoreUnavailable`, except FileNotFoundError."""
    try:
        yield
    except (EupeError, FileNotFoundError):
        raise
    except NotADirectoryError as error:
        raise FileNotFoundError(*error.args) from error
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path | str, error: OSError) -> StoreUnavailable:
    """Return the error for a file or folder that the system refuses to read."""
    owner = whose(path) if error.errno in REFUSED else ""
    return StoreUnavailable(f"cannot read {path}: {error.strerror or error}; {owner or 'check its permissions and the disk'}")


class FileReplaced(CacheDamaged):
    """A file was removed or replaced while a reader had it open."""


class _LocalFile:
    def __init__(self, path: Path) -> None:
        self._path = str(path)
        descriptor = _opened(self._path)
        self._inode, self.size = descriptor.inode, descriptor.size

    def read_into(self, buffers: Sequence[memoryview], offset: int) -> None:
        try:
            descriptor = _DESCRIPTORS.get(self._path) or _opened(self._path)
        except FileNotFoundError as error:
            raise FileReplaced(f"{self._path} was removed while it was being read") from error
        if descriptor.inode != self._inode:
            raise FileReplaced(f"{self._path} was replaced while it was being read")
        pending = list(buffers)
        missing = sum(len(buffer) for buffer in pending)
        while missing:
            try:
                count = os.preadv(descriptor.number, pending[:_IOV_MAX], offset)
            except OSError as error:
                _DESCRIPTORS.pop(self._path)  # a network file system may have another handle for the next try
                raise unreadable(self._path, error) from error
            if not count:
                raise CacheDamaged(f"{self._path} ends {missing:,} bytes before what its record describes")
            missing, offset = missing - count, offset + count
            if missing:
                pending = skip_bytes(pending, count)

    def touch(self) -> None:
        """Do nothing: this is no cached copy."""

    def recheck(self) -> bool:
        """Return False: this is no cached copy."""
        return False

    def close(self) -> None:
        _DESCRIPTORS.pop(self._path)


def skip_bytes(buffers: Sequence[memoryview], count: int) -> list[memoryview]:
    """Return what is left of the buffers after their first `count` bytes."""
    first = 0
    while first < len(buffers) and count >= len(buffers[first]):
        count -= len(buffers[first])
        first += 1
    rest = list(buffers[first:])
    if count:
        rest[0] = rest[0][count:]
    return rest


class LocalObjects:
    """`Objects` in a folder of a file system that can create files exclusively (`exclusive_create`)."""

    fetchers: Fetchers | None = None

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = str(root)

    def threads_for(self, size: int) -> int:
        """Return the number of threads that so many bytes of files are worth."""
        return threads_for_files(size)

    def read(self, key: str, limit_bytes: int | None = None) -> bytes:
        """Return all bytes of the file."""
        path = self.root / key
        with _reading(path):
            if limit_bytes is not None:
                check_limit(key, path.stat().st_size, limit_bytes)
            return path.read_bytes()

    def open(self, key: str, xxh3_128: str | None = None) -> OpenObject:
        """Open a file for `preadv`."""
        with _reading(self.root / key):
            return _LocalFile(self.root / key)

    def size(self, key: str) -> int | None:
        """Return the file's length, None when there is none."""
        try:
            with _reading(self.root / key):
                status = (self.root / key).stat()
        except FileNotFoundError:
            return None
        return None if stat.S_ISDIR(status.st_mode) else status.st_size

    def modified(self, key: str) -> float | None:
        """Return the file's time of modification, which on a network file system is its server's."""
        try:
            return (self.root / key).stat().st_mtime
        except OSError:
            return None

    def names(self, prefix: str) -> list[str]:
        """Return the entries of the folder except hidden ones: temporary files, and what desktops leave (.DS_Store)."""
        try:
            with _reading(self.root / prefix):
                entries = os.listdir(self.root / prefix)
        except FileNotFoundError:
            return []
        return sorted(name for name in entries if not name.startswith("."))

    def create(self, key: str, content: Content) -> bool:
        """Write, fsync, link exclusively, fsync the folder."""
        return create_exclusively(self.root / key, content)

    def duplicate(self, existing: str, key: str, data: bytes) -> bool:
        """Give the file a second name: a hard link, or a copy where the file system has none."""
        linked = link_exclusively(self.root / existing, self.root / key)
        return self.create(key, [data]) if linked is None else linked

    def replace(self, key: str, data: bytes) -> None:
        """Write, fsync, rename, fsync the folder."""
        write_atomically(self.root / key, data)

    def drop_empty(self, prefix: str) -> None:
        """Remove the folders left below a prefix whose objects were all removed."""
        for folder, _, names in os.walk(self.root / prefix, topdown=False):
            with contextlib.suppress(OSError):
                for name in names:
                    if name == ".DS_Store" or name.startswith("._"):  # a desktop's, which nobody sees and `names` leaves out
                        os.unlink(os.path.join(folder, name))
                os.rmdir(folder)
        with contextlib.suppress(OSError):
            if os.path.islink(self.root / prefix):  # the set lay on another disk
                os.rmdir(os.path.realpath(self.root / prefix))
                os.unlink(self.root / prefix)

    def sweep(self, prefix: str, *, at_any_age: bool = False) -> int:
        """Remove temporary files older than a day, or all; return their number."""
        return sweep(self.root / prefix, -math.inf if at_any_age else STALE_SECONDS)

    def remove(self, key: str) -> None:
        """Unlink the file and fsync its folder."""
        path = self.root / key
        with translate_os_errors(path, 0):
            path.unlink(missing_ok=True)
        _DESCRIPTORS.pop(str(path))  # while it is open here, the disk keeps its bytes
        if path.parent.exists():
            fsync_folder(path.parent)


def walk_keys(objects: Objects, prefix: str) -> Iterator[str]:
    """Yield the key of every object below a prefix."""
    for name in objects.names(prefix):
        key = f"{prefix}/{name}"
        if not _FILE_NAME.fullmatch(name) and (objects.size(key) is None or objects.names(key)):
            yield from walk_keys(objects, key)
        else:
            yield key


def open_objects(url: str, *, make: bool = False) -> Objects:
    """Return the objects below a path or URL; `make` creates a missing local folder. Raise `BadInput` for an unusable URL."""
    if not is_url(url) or url.startswith("file://"):
        root = expand_path(url.removeprefix("file://"))
        with _reading(root):
            if root.exists() and not root.is_dir():
                raise BadInput(f"{url} is a file; a store is a folder or a URL like s3://bucket/folder")
        if make:
            make_folder(root)
        return LocalObjects(root)
    try:
        return RemoteObjects(normalize_scheme(url))
    except EupeError:
        raise
    except (ValueError, ImportError) as error:
        raise BadInput(f"cannot use the URL {url!r}: {error}") from error
