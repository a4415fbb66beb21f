"""Whole shards of a remote store in a local folder, shared by the processes of a machine, bounded in size.

An epoch in shard order wants one GET a shard, not one a row. A copy is named by the xxh3 that the shard's record gives, so it is verified
once, while it comes, can never stand for other bytes, and needs no invalidation: a repaired shard has another name. Copies are not
fsynced; one from before the machine's last start is hashed again before it is used. A copy that gives other bytes than its shard's record
describes, or none, is hashed, dropped, said and fetched again, once a read; what comes damaged then is the store's own damage. One process
downloads while others wait for its lock, and readers that go from shard to shard, or say what they will read, have it fetched while they
read (`read_ahead`). The copies that were used longest ago go first when the folder is over its limit; one that is gone while it is open is
fetched again. Records and metadata are not cached.
"""

import contextlib
import fcntl
import logging
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..core.checksums import xxh3_128
from ..core.errors import CacheDamaged, StoreUnavailable
from .atomic_files import TEMPORARY_PREFIX, Content, make_folder, refusals, sweep
from .objects import LocalObjects, OpenObject, Vanished
from .parallel_reads import Fetchers
from .remote import RemoteObjects

DEFAULT_LIMIT_BYTES = 100 << 30
_LOCK = ".lock-"
_LOG = logging.getLogger(__name__)
CONNECTIONS = 8  # S3 gives one some 50 to 100 MB/s


def _started() -> float:
    """When this machine was started, in seconds since 1970."""
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


class CachedObjects:
    """`Objects` that opens expected contents from local copies, and passes everything else on."""

    def __init__(self, remote: RemoteObjects, folder: Path, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> None:
        make_folder(folder)
        sweep(folder)
        self.remote, self.folder, self.limit_bytes = remote, folder, limit_bytes
        self.url = remote.url
        self.fetchers: Fetchers | None = Fetchers(CONNECTIONS, limit_bytes // 4)
        self.dropped = 0  # damaged copies
        self._local = LocalObjects(folder)

    def open(self, key: str, xxh3_128: str | None = None) -> OpenObject:
        """A local copy when the caller says what it expects, ranged reads otherwise."""
        return self.remote.open(key) if xxh3_128 is None else _CachedObject(self, key, xxh3_128)

    def fetched(self, key: str, wanted: str) -> OpenObject:
        """The local copy, made first when there is none; raises `CacheDamaged` when the remote object is not what was expected."""
        try:
            self._doubt_old(key, wanted)
            copy = self._local.open(wanted)
        except FileNotFoundError:
            with self._locked(wanted):
                if self._local.size(wanted) is None:
                    self._download(key, wanted)
                copy = self._local.open(wanted)
        except StoreUnavailable:  # the copy cannot be read
            copy = self.compared(key, wanted)
        with contextlib.suppress(OSError):  # another process made room, or another user owns it
            os.utime(self.folder / wanted)
        return copy

    def compared(self, key: str, wanted: str) -> OpenObject:
        """The local copy, hashed again, and fetched again when it is not whole; raises `CacheDamaged` when what comes is not either."""
        with self._locked(wanted):
            if why := self._flaw(wanted):
                self._drop(key, wanted, why)
            if self._local.size(wanted) is None:
                self._download(key, wanted)
            return self._local.open(wanted)

    def _flaw(self, wanted: str) -> str:
        """Why a copy is not what its name says, "" when it is."""
        try:
            data = self._local.read(wanted)
        except FileNotFoundError:
            return "was removed"
        except (StoreUnavailable, CacheDamaged) as error:
            return f"cannot be read ({error})"
        return "" if xxh3_128([data]) == wanted else f"is damaged ({len(data):,} bytes with another xxh3 than its name)"

    def _drop(self, key: str, wanted: str, why: str) -> None:
        path = self.folder / wanted
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        self._local.remove(wanted)
        self.dropped += 1
        _LOG.warning("the local copy %s of %s %s; it was dropped and is fetched again (%d so far)", path, key, why, self.dropped)

    def _doubt_old(self, key: str, wanted: str) -> None:
        """Hash a copy that outlived a start of the machine, and drop it when it is not whole."""
        if os.stat(self.folder / wanted).st_ctime < _started() and (why := self._flaw(wanted)):
            self._drop(key, wanted, why)

    def _download(self, key: str, wanted: str) -> None:
        temporary = self.folder / f"{TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(4)}-{wanted}"
        try:
            if self.remote.save(key, temporary) != wanted:
                raise CacheDamaged(
                    f"{key} of {self.url} is damaged in the store itself: xxh3 differs from its record; run `eupe-pipeline features repair`"
                )
            self._make_room(temporary.stat().st_size)
            with refusals(self.folder / wanted, 0):
                temporary.rename(self.folder / wanted)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()

    def _make_room(self, needed: int) -> None:
        copies = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if not entry.name.startswith((_LOCK, TEMPORARY_PREFIX)):
                    with contextlib.suppress(FileNotFoundError):  # another process made room meanwhile
                        status = entry.stat()
                        copies.append((status.st_mtime_ns, status.st_size, entry.name))
        held = sum(size for _, size, _ in copies)
        for _, size, name in sorted(copies):
            if held + needed <= self.limit_bytes:
                return
            self._local.remove(name)
            held -= size

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """One process at a time; the lock falls with its holder, however that ends."""
        make_folder(self.folder)  # somebody may have emptied the cache
        lock = self.folder / f"{_LOCK}{name[:2]}"
        with refusals(lock, 0):
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def threads_for(self, size: int) -> int:
        """As for the copies."""
        return self._local.threads_for(size)

    def read(self, key: str, limit_bytes: int | None = None) -> bytes:
        """As the store behind."""
        return self.remote.read(key, limit_bytes)

    def size(self, key: str) -> int | None:
        """As the store behind."""
        return self.remote.size(key)

    def names(self, prefix: str) -> list[str]:
        """As the store behind."""
        return self.remote.names(prefix)

    def create(self, key: str, content: Content) -> bool:
        """As the store behind."""
        return self.remote.create(key, content)

    def replace(self, key: str, data: bytes) -> None:
        """As the store behind."""
        self.remote.replace(key, data)

    def drop_empty(self, prefix: str) -> None:
        """As the store behind."""
        self.remote.drop_empty(prefix)

    def sweep(self, prefix: str) -> int:
        """As the store behind."""
        return self.remote.sweep(prefix)

    def remove(self, key: str) -> None:
        """As the store behind."""
        self.remote.remove(key)


class _CachedObject:
    def __init__(self, cache: CachedObjects, key: str, wanted: str) -> None:
        self._cache, self._key, self._wanted = cache, key, wanted
        self._copy = cache.fetched(key, wanted)
        self.size = self._copy.size

    def read_into(self, buffers: Sequence[memoryview], offset: int) -> None:
        try:
            self._copy.read_into(buffers, offset)
        except Vanished:
            self._copy = self._cache.fetched(self._key, self._wanted)
            self._copy.read_into(buffers, offset)

    def renew(self) -> None:
        try:
            os.utime(self._cache.folder / self._wanted)
        except OSError:
            self._copy = self._cache.fetched(self._key, self._wanted)

    def doubt(self) -> bool:
        """The copy may have been altered since it came: on the disk, or by somebody."""
        self._copy = self._cache.compared(self._key, self._wanted)
        self.size = self._copy.size
        return True

    def close(self) -> None:
        self._copy.close()
