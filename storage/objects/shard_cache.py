"""Local cache of whole shards of a remote store: one folder shared by the processes of a machine, bounded in size.

An epoch in shard order needs one GET a shard, not one a row. A copy is named by the xxh3 in the shard's record, so it is verified once,
while it is downloaded, can never stand for other bytes, and needs no invalidation: a repaired shard has another name. Copies are not
fsynced; one from before the last boot is hashed again before use. A copy that fails a check or cannot be read is hashed, dropped, logged
and downloaded again, once a read; if the download fails the check too, the store itself is damaged. One process downloads while others wait
for its lock, and shards that readers announce or are about to reach are downloaded in the background (`read_ahead`). The least recently
used copies go when the folder exceeds its limit; one that is removed while open is downloaded again. Records and metadata are not cached.
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
from ..core.forks import FileLock
from .atomic_files import TEMPORARY_PREFIX, Content, make_folder, sweep, translate_os_errors
from .objects import FileReplaced, LocalObjects, OpenObject
from .read_ahead import CONNECTIONS, Fetchers
from .remote import RemoteObjects

DEFAULT_LIMIT_BYTES = 100 << 30
_LOCK = ".lock-"
_LOG = logging.getLogger(__name__)


def _boot_time() -> float:
    """Return when this machine was booted, in seconds since 1970."""
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


class CachedObjects:
    """`Objects` that opens objects of known xxh3 from local copies and passes everything else on to the remote store."""

    def __init__(self, remote: RemoteObjects, folder: Path, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> None:
        make_folder(folder)
        sweep(folder)
        self.remote, self.folder, self.limit_bytes = remote, folder, limit_bytes
        self.url = remote.url
        self.fetchers: Fetchers | None = Fetchers(CONNECTIONS, limit_bytes // 4)
        self.dropped = 0  # damaged copies
        self._local = LocalObjects(folder)

    def open(self, key: str, xxh3_128: str | None = None) -> OpenObject:
        """Open a local copy when the expected xxh3 is given, for ranged reads otherwise."""
        return self.remote.open(key) if xxh3_128 is None else _CachedObject(self, key, xxh3_128)

    def open_copy(self, key: str, expected_xxh3: str) -> OpenObject:
        """Open the local copy, downloaded first when there is none; raise `CacheDamaged` when the remote object has another xxh3."""
        try:
            self._check_after_reboot(key, expected_xxh3)
            copy = self._local.open(expected_xxh3)
        except FileNotFoundError:
            with self._locked(expected_xxh3):
                if self._local.size(expected_xxh3) is None:
                    self._download(key, expected_xxh3)
                copy = self._local.open(expected_xxh3)
        except StoreUnavailable:  # the copy cannot be read
            copy = self.open_verified_copy(key, expected_xxh3)
        with contextlib.suppress(OSError):  # another process made room, or another user owns it
            os.utime(self.folder / expected_xxh3)
        return copy

    def open_verified_copy(self, key: str, expected_xxh3: str) -> OpenObject:
        """Hash the local copy, download it again when it is damaged, and open it; raise `CacheDamaged` as `open_copy`."""
        with self._locked(expected_xxh3):
            if why := self._copy_flaw(expected_xxh3):
                self._drop(key, expected_xxh3, why)
            if self._local.size(expected_xxh3) is None:
                self._download(key, expected_xxh3)
            return self._local.open(expected_xxh3)

    def _copy_flaw(self, expected_xxh3: str) -> str:
        """Return why a copy does not match its name, "" when it does."""
        try:
            data = self._local.read(expected_xxh3)
        except FileNotFoundError:
            return "was removed"
        except (StoreUnavailable, CacheDamaged) as error:
            return f"cannot be read ({error})"
        return "" if xxh3_128([data]) == expected_xxh3 else f"is damaged ({len(data):,} bytes with another xxh3 than its name)"

    def _drop(self, key: str, expected_xxh3: str, why: str) -> None:
        path = self.folder / expected_xxh3
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        self._local.remove(expected_xxh3)
        self.dropped += 1
        _LOG.warning("the local copy %s of %s %s; it was dropped and is fetched again (%d so far)", path, key, why, self.dropped)

    def _check_after_reboot(self, key: str, expected_xxh3: str) -> None:
        """Hash a copy from before the last boot, and drop it when it is damaged."""
        if os.stat(self.folder / expected_xxh3).st_ctime < _boot_time() and (why := self._copy_flaw(expected_xxh3)):
            self._drop(key, expected_xxh3, why)

    def _download(self, key: str, expected_xxh3: str) -> None:
        temporary = self.folder / f"{TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(4)}-{expected_xxh3}"
        try:
            if self.remote.download(key, temporary) != expected_xxh3:
                raise CacheDamaged(
                    f"{key} of {self.url} is damaged in the store itself: xxh3 differs from its record; run `eupe-pipeline features repair`"
                )
            self._make_room(temporary.stat().st_size)
            with translate_os_errors(self.folder / expected_xxh3, 0):
                temporary.rename(self.folder / expected_xxh3)
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
        total = sum(size for _, size, _ in copies)
        for _, size, name in sorted(copies):
            if total + needed <= self.limit_bytes:
                return
            self._local.remove(name)
            total -= size

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """Hold a file lock for the block; the system releases it when the process ends in any way."""
        make_folder(self.folder)  # somebody may have emptied the cache
        path = self.folder / f"{_LOCK}{name[:2]}"
        with translate_os_errors(path, 0):
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            except PermissionError:  # another user's: the lock needs no more than reading
                descriptor = os.open(path, os.O_RDONLY)
        lock = FileLock(descriptor)
        try:
            with contextlib.suppress(OSError):  # a file system without locks: two processes may then download the same shard
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            lock.release()

    def threads_for(self, size: int) -> int:
        """Return the number of threads that local copies are worth."""
        return self._local.threads_for(size)

    def read(self, key: str, limit_bytes: int | None = None) -> bytes:
        """Read from the remote store."""
        return self.remote.read(key, limit_bytes)

    def size(self, key: str) -> int | None:
        """Return the size in the remote store."""
        return self.remote.size(key)

    def modified(self, key: str) -> float | None:
        """Return the time by the remote store's clock."""
        return self.remote.modified(key)

    def names(self, prefix: str) -> list[str]:
        """Return the names in the remote store."""
        return self.remote.names(prefix)

    def create(self, key: str, content: Content) -> bool:
        """Create in the remote store."""
        return self.remote.create(key, content)

    def duplicate(self, existing: str, key: str, data: bytes) -> bool:
        """Duplicate in the remote store."""
        return self.remote.duplicate(existing, key, data)

    def replace(self, key: str, data: bytes) -> None:
        """Replace in the remote store."""
        self.remote.replace(key, data)

    def drop_empty(self, prefix: str) -> None:
        """Pass on to the remote store."""
        self.remote.drop_empty(prefix)

    def sweep(self, prefix: str, *, at_any_age: bool = False) -> int:
        """Pass on to the remote store."""
        return self.remote.sweep(prefix, at_any_age=at_any_age)

    def remove(self, key: str) -> None:
        """Remove from the remote store."""
        self.remote.remove(key)


class _CachedObject:
    def __init__(self, cache: CachedObjects, key: str, expected_xxh3: str) -> None:
        self._cache, self._key, self._expected_xxh3 = cache, key, expected_xxh3
        self._copy = cache.open_copy(key, expected_xxh3)
        self.size = self._copy.size

    def read_into(self, buffers: Sequence[memoryview], offset: int) -> None:
        try:
            self._copy.read_into(buffers, offset)
        except FileReplaced:
            self._copy = self._cache.open_copy(self._key, self._expected_xxh3)
            self._copy.read_into(buffers, offset)

    def touch(self) -> None:
        try:
            os.utime(self._cache.folder / self._expected_xxh3)
        except OSError:
            self._copy = self._cache.open_copy(self._key, self._expected_xxh3)

    def recheck(self) -> bool:
        """Verify the copy, which may have been altered on the disk since it was downloaded; return True."""
        self._copy = self._cache.open_verified_copy(self._key, self._expected_xxh3)
        self.size = self._copy.size
        return True

    def close(self) -> None:
        self._copy.close()
