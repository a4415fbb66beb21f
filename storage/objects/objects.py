"""Where bytes lie: one small interface over a local folder and over any fsspec URL (s3://…, memory://…).

The store needs six verbs: read, read into given memory, size, names, create exclusively, remove. Locally they are plain system calls (hard
link for the exclusive create, `preadv` into the caller's memory); elsewhere they are fsspec's, with a conditional put for the create and
without its cache of listings, because another process may have committed since (`remote`).
"""

import contextlib
import errno
import os
import re
import resource
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from ..core.cache_home import expanded
from ..core.errors import BadInput, CacheDamaged, EupeError, StoreUnavailable
from ..core.lru_cache import LruCache
from ..core.urls import is_url, normalize_scheme
from .atomic_files import Content, create_exclusively, fsync_folder, make_folder, sweep, translate_os_errors, write_atomically
from .read_ahead import Fetchers
from .read_threads import threads_for_files
from .remote import RemoteObjects, check_limit

_IOV_MAX = 1024
_A_FILE = re.compile(r"c(\.\d+)+|\d+\.(json|parquet|records)|zarr\.json")  # by its name, so that nobody asks an object store about each


class OpenObject(Protocol):
    """An object that is open for reading; safe to use from several threads."""

    size: int

    def read_into(self, buffers: Sequence[memoryview], offset: int) -> None:
        """Fill the buffers, one after another, from `offset`; raises `CacheDamaged` when the object ends before."""

    def touch(self) -> None:
        """It will be read soon: a copy that may be dropped is made the newest, or made again."""

    def recheck(self) -> bool:
        """What it gave is not what was expected: a copy is compared, and made again when it is damaged. Whether to read once more."""

    def close(self) -> None:
        """Release it."""


class Objects(Protocol):
    """Named byte strings below one root; a key is a relative path with slashes."""

    url: str
    fetchers: Fetchers | None  # who opens shards before they are asked for; None where opening costs nothing or fetches nothing

    def threads_for(self, size: int) -> int:
        """How many threads pay for reading so many bytes of open objects."""

    def read(self, key: str, limit_bytes: int | None = None) -> bytes:
        """All bytes; raises FileNotFoundError, `StoreUnavailable`, and `CacheDamaged` when there are more than the limit."""

    def open(self, key: str, xxh3_128: str | None = None) -> OpenObject:
        """Open for ranged reads; a cache may use a copy of what the caller expects. Raises FileNotFoundError."""

    def size(self, key: str) -> int | None:
        """Length in bytes, None when it is not there."""

    def names(self, prefix: str) -> list[str]:
        """Sorted names directly below a prefix, [] when there is no such prefix; unfinished files are left out."""

    def create(self, key: str, content: Content) -> bool:
        """Publish the content, all of which is made, unless the key exists; True when this call created it. Raises `StoreUnavailable`."""

    def replace(self, key: str, data: bytes) -> None:
        """Put an object whether or not the key exists; readers find the old or the new one. For runs; of a store only `damaged_files`."""

    def remove(self, key: str) -> None:
        """Remove one object; no error when it is gone already."""

    def drop_empty(self, prefix: str) -> None:
        """Remove empty folders below a prefix, where there are folders."""

    def sweep(self, prefix: str) -> int:
        """Remove unfinished files that killed writers left below a prefix a day ago or more; returns how many."""


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
    """Turn refusals to read into `StoreUnavailable`; an absent file stays FileNotFoundError."""
    try:
        yield
    except (EupeError, FileNotFoundError):
        raise
    except NotADirectoryError as error:
        raise FileNotFoundError(*error.args) from error
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path | str, error: OSError) -> StoreUnavailable:
    """The error for a file or folder that the system refuses to read."""
    return StoreUnavailable(f"cannot read {path}: {error.strerror or error}; check its permissions and the disk")


class Vanished(CacheDamaged):
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
            raise Vanished(f"{self._path} was removed while it was being read") from error
        if descriptor.inode != self._inode:
            raise Vanished(f"{self._path} was replaced while it was being read")
        pending = list(buffers)
        wanted = sum(len(buffer) for buffer in pending)
        while wanted:
            try:
                got = os.preadv(descriptor.number, pending[:_IOV_MAX], offset)
            except OSError as error:
                _DESCRIPTORS.pop(self._path)  # a network file system may have another handle for the next try
                raise unreadable(self._path, error) from error
            if not got:
                raise CacheDamaged(f"{self._path} ends {wanted:,} bytes before what its record describes")
            wanted, offset = wanted - got, offset + got
            if wanted:
                pending = after(pending, got)

    def touch(self) -> None:
        """It is there as long as its store."""

    def recheck(self) -> bool:
        """It is no copy."""
        return False

    def close(self) -> None:
        _DESCRIPTORS.pop(self._path)


def after(buffers: Sequence[memoryview], done: int) -> list[memoryview]:
    """What is left of the buffers behind their first `done` bytes."""
    first = 0
    while first < len(buffers) and done >= len(buffers[first]):
        done -= len(buffers[first])
        first += 1
    rest = list(buffers[first:])
    if done:
        rest[0] = rest[0][done:]
    return rest


class LocalObjects:
    """`Objects` in a folder of this machine or of a shared file system that can name files exclusively (`exclusive_create`)."""

    fetchers: Fetchers | None = None

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = str(root)

    def threads_for(self, size: int) -> int:
        """A few, when there is enough to copy."""
        return threads_for_files(size)

    def read(self, key: str, limit_bytes: int | None = None) -> bytes:
        """All bytes of the file."""
        path = self.root / key
        with _reading(path):
            if limit_bytes is not None:
                check_limit(key, path.stat().st_size, limit_bytes)
            return path.read_bytes()

    def open(self, key: str, xxh3_128: str | None = None) -> OpenObject:
        """A file for `preadv`."""
        with _reading(self.root / key):
            return _LocalFile(self.root / key)

    def size(self, key: str) -> int | None:
        """The file's length."""
        try:
            with _reading(self.root / key):
                status = (self.root / key).stat()
        except FileNotFoundError:
            return None
        return None if stat.S_ISDIR(status.st_mode) else status.st_size

    def names(self, prefix: str) -> list[str]:
        """Entries of the folder but hidden ones: temporary names of writers at work or killed, and what desktops leave (.DS_Store)."""
        try:
            with _reading(self.root / prefix):
                entries = os.listdir(self.root / prefix)
        except FileNotFoundError:
            return []
        return sorted(name for name in entries if not name.startswith("."))

    def create(self, key: str, content: Content) -> bool:
        """Write, fsync, name exclusively, fsync the folder."""
        return create_exclusively(self.root / key, content)

    def replace(self, key: str, data: bytes) -> None:
        """Write, fsync, rename, fsync the folder."""
        write_atomically(self.root / key, data)

    def drop_empty(self, prefix: str) -> None:
        """Remove what folders are left below a prefix from which every object was removed."""
        for folder, _, names in os.walk(self.root / prefix, topdown=False):
            with contextlib.suppress(OSError):
                for name in names:
                    if name == ".DS_Store" or name.startswith("._"):  # a desktop's, which nobody sees and `names` leaves out
                        os.unlink(os.path.join(folder, name))
                os.rmdir(folder)

    def sweep(self, prefix: str) -> int:
        """Temporary files that are older than a day."""
        return sweep(self.root / prefix)

    def remove(self, key: str) -> None:
        """Unlink the file, and make that durable."""
        path = self.root / key
        with translate_os_errors(path, 0):
            path.unlink(missing_ok=True)
        _DESCRIPTORS.pop(str(path))  # while it is open here, the disk keeps its bytes
        if path.parent.exists():
            fsync_folder(path.parent)


def below(objects: Objects, prefix: str) -> Iterator[str]:
    """Every object below a prefix."""
    for name in objects.names(prefix):
        key = f"{prefix}/{name}"
        if not _A_FILE.fullmatch(name) and (objects.size(key) is None or objects.names(key)):
            yield from below(objects, key)
        else:
            yield key


def open_objects(url: str, *, make: bool = False) -> Objects:
    """The objects below a path or URL; `make` creates a missing local folder. Raises `BadInput` for an unusable URL."""
    if not is_url(url) or url.startswith("file://"):
        root = expanded(url.removeprefix("file://"))
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
