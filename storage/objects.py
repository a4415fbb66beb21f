"""Where bytes lie: one small interface over a local folder and over any fsspec URL (s3://…, memory://…).

The store needs six verbs: read, read into given memory, size, names, create exclusively, remove. Locally they are plain system calls (hard
link for the exclusive create, `preadv` into the caller's memory); elsewhere they are fsspec's, with a conditional put for the create and
without its cache of listings, because another process may have committed since. This file and nothing else knows fsspec.
"""

import contextlib
import os
import resource
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import fsspec

from .atomic import TEMPORARY_PREFIX, Buffer, create_exclusively, fsync_folder, make_folder, refusals
from .errors import BadInput, CacheDamaged, EupeError, StoreUnavailable

_IOV_MAX = 1024


class OpenObject(Protocol):
    """An object that is open for reading; safe to use from several threads."""

    size: int

    def read_into(self, buffers: Sequence[memoryview], offset: int) -> None:
        """Fill the buffers, one after another, from `offset`; raises `CacheDamaged` when the object ends before."""

    def close(self) -> None:
        """Release it."""


class Objects(Protocol):
    """Named byte strings below one root; a key is a relative path with slashes."""

    url: str

    def read(self, key: str, limit_bytes: int | None = None) -> bytes:
        """All bytes; raises FileNotFoundError, `StoreUnavailable`, and `CacheDamaged` when there are more than the limit."""

    def open(self, key: str) -> OpenObject:
        """Open for ranged reads; raises FileNotFoundError."""

    def size(self, key: str) -> int | None:
        """Length in bytes, None when it is not there."""

    def names(self, prefix: str) -> list[str]:
        """Sorted names directly below a prefix, [] when there is no such prefix; unfinished files are left out."""

    def create(self, key: str, buffers: Sequence[Buffer]) -> bool:
        """Publish the joined buffers unless the key exists; True when this call created it. Raises `StoreUnavailable`."""

    def remove(self, key: str) -> None:
        """Remove one object; no error when it is gone already."""


class _Descriptor:
    """An open file that closes itself when nobody refers to it any more."""

    def __init__(self, path: str) -> None:
        self.number = -1  # for __del__, when the open below fails
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        status = os.fstat(self.number)
        self.inode, self.size = status.st_ino, status.st_size

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


class _Descriptors:
    """The process's open shard files, least recently used closed first: readers of large stores must not run out of descriptors."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, _Descriptor] = OrderedDict()
        self._capacity = max(64, min(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[0]) // 4)

    def open(self, path: str) -> _Descriptor:
        """Open anew, and keep."""
        descriptor = _Descriptor(path)
        with self._lock:
            self._kept[path] = descriptor
            self._kept.move_to_end(path)
            while len(self._kept) > self._capacity:
                self._kept.popitem(last=False)  # closed when its last reader lets go
        return descriptor

    def kept(self, path: str) -> _Descriptor:
        """The one that is open already, or a new one."""
        with self._lock:
            descriptor = self._kept.get(path)
            if descriptor is not None:
                self._kept.move_to_end(path)
                return descriptor
        return self.open(path)

    def forget(self, path: str) -> None:
        """Close it unless a reader is at work on it."""
        with self._lock:
            self._kept.pop(path, None)


_DESCRIPTORS = _Descriptors()


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
        raise StoreUnavailable(f"cannot read {path}: {error.strerror}; check its permissions and the disk") from error


class _LocalFile:
    def __init__(self, path: Path) -> None:
        self._path = str(path)
        descriptor = _DESCRIPTORS.open(self._path)
        self._inode, self.size = descriptor.inode, descriptor.size

    def read_into(self, buffers: Sequence[memoryview], offset: int) -> None:
        try:
            descriptor = _DESCRIPTORS.kept(self._path)
        except FileNotFoundError as error:
            raise CacheDamaged(f"{self._path} was removed while it was being read") from error
        if descriptor.inode != self._inode:
            raise CacheDamaged(f"{self._path} was replaced while it was being read")
        pending = list(buffers)
        wanted = sum(len(buffer) for buffer in pending)
        while wanted:
            got = os.preadv(descriptor.number, pending[:_IOV_MAX], offset)
            if not got:
                raise CacheDamaged(f"{self._path} ends {wanted:,} bytes before what its record describes")
            wanted, offset = wanted - got, offset + got
            if wanted:
                pending = after(pending, got)

    def close(self) -> None:
        _DESCRIPTORS.forget(self._path)


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
    """`Objects` in a folder of this machine or of a shared file system that has hard links."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = str(root)

    def read(self, key: str, limit_bytes: int | None = None) -> bytes:
        """All bytes of the file."""
        path = self.root / key
        with _reading(path):
            if limit_bytes is not None:
                _check_limit(key, path.stat().st_size, limit_bytes)
            return path.read_bytes()

    def open(self, key: str) -> OpenObject:
        """A file for `preadv`."""
        with _reading(self.root / key):
            return _LocalFile(self.root / key)

    def size(self, key: str) -> int | None:
        """The file's length."""
        try:
            return (self.root / key).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def names(self, prefix: str) -> list[str]:
        """Entries of the folder; temporary names of writers at work or killed are left out."""
        try:
            with _reading(self.root / prefix):
                entries = os.listdir(self.root / prefix)
        except FileNotFoundError:
            return []
        return sorted(name for name in entries if not name.startswith(TEMPORARY_PREFIX))

    def create(self, key: str, buffers: Sequence[Buffer]) -> bool:
        """Write, fsync, hard link, fsync the folder."""
        return create_exclusively(self.root / key, buffers)

    def remove(self, key: str) -> None:
        """Unlink the file, and make that durable."""
        path = self.root / key
        with refusals(path, 0):
            path.unlink(missing_ok=True)
        if path.parent.exists():
            fsync_folder(path.parent)


def _check_limit(key: str, size: int, limit_bytes: int) -> None:
    if size > limit_bytes:
        raise CacheDamaged(f"{key} has {size:,} bytes, no such file of ours has more than {limit_bytes:,}; it was altered")


class _RemoteObject:
    def __init__(self, filesystem: Any, path: str) -> None:
        self._filesystem, self._path = filesystem, path
        self.size = int(filesystem.size(path))

    def read_into(self, buffers: Sequence[memoryview], offset: int) -> None:
        wanted = sum(len(buffer) for buffer in buffers)
        data = self._filesystem.cat_file(self._path, start=offset, end=offset + wanted)
        if len(data) != wanted:
            raise CacheDamaged(f"{self._path} gave {len(data):,} bytes at {offset:,}, its record describes {wanted:,}")
        start = 0
        for buffer in buffers:
            buffer[:] = data[start : start + len(buffer)]
            start += len(buffer)

    def close(self) -> None:
        """Nothing is held."""


class RemoteObjects:
    """`Objects` below an fsspec URL; the exclusive create is the file system's own `mode="create"`."""

    def __init__(self, url: str) -> None:
        self.url = url
        options = {"use_listings_cache": False} if url.startswith("s3:") else {}
        self._filesystem, self._root = fsspec.url_to_fs(url, **options)

    def _path(self, key: str) -> str:
        return f"{self._root.rstrip('/')}/{key}".rstrip("/")

    def read(self, key: str, limit_bytes: int | None = None) -> bytes:
        """One whole GET, after a HEAD when there is a limit."""
        if limit_bytes is not None:
            _check_limit(key, int(self._filesystem.size(self._path(key))), limit_bytes)
        return bytes(self._filesystem.cat_file(self._path(key)))

    def open(self, key: str) -> OpenObject:
        """One HEAD now, ranged GETs later."""
        return _RemoteObject(self._filesystem, self._path(key))

    def size(self, key: str) -> int | None:
        """One HEAD."""
        try:
            return int(self._filesystem.size(self._path(key)))
        except FileNotFoundError:
            return None

    def names(self, prefix: str) -> list[str]:
        """One listing, never from a cache."""
        try:
            entries = self._filesystem.ls(self._path(prefix), detail=False, refresh=True)
        except FileNotFoundError:
            return []
        names = {str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in entries}
        return sorted(name for name in names if name)

    def create(self, key: str, buffers: Sequence[Buffer]) -> bool:
        """One conditional put."""
        try:
            self._filesystem.pipe_file(self._path(key), b"".join(buffers), mode="create")
        except FileExistsError:
            return False
        except PermissionError as error:
            raise StoreUnavailable(f"no permission to write {key} below {self.url}: {error}") from error
        return True

    def remove(self, key: str) -> None:
        """One DELETE."""
        try:
            self._filesystem.rm_file(self._path(key))
        except FileNotFoundError:
            return


def open_objects(url: str, *, make: bool = False) -> Objects:
    """The objects below a path or URL; `make` creates a missing local folder. Raises `BadInput` for an unusable URL."""
    if "://" not in url or url.startswith("file://"):
        root = Path(url.removeprefix("file://")).expanduser().absolute()
        if root.exists() and not root.is_dir():
            raise BadInput(f"{url} is a file; a store is a folder or a URL like s3://bucket/folder")
        if make:
            make_folder(root)
        return LocalObjects(root)
    try:
        return RemoteObjects(url)
    except (ValueError, ImportError) as error:
        raise BadInput(f"cannot use the URL {url!r}: {error}") from error
