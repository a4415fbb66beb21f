"""Objects behind an fsspec URL (s3://…, memory://…): one request a verb, retries in one place, errors that name the key and the tries.

The exclusive create is a conditional put (`If-None-Match: *` on S3). Its reply can get lost after it succeeded, and the next try then finds
the object there: so "not created" may mean an earlier try of our own, and callers compare contents, which they do anyway (`adopt`). The
libraries below have retries of their own, nested in each other; they are switched off, or 5 × 5 tries of a minute each would pass for a
hang. Nothing is retried that cannot change: absence, permission, a failed check. Listings are never taken from a cache.
"""

import errno
import random
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import fsspec
import xxhash

from ..core.errors import CacheDamaged, EupeError, StoreUnavailable
from ..core.forks import renewed_after_fork
from ..core.urls import refuse_endpoint, refuse_secrets
from .atomic_files import Content, refusals
from .parallel_reads import Fetchers
from .reading_threads import MOST
from .s3_download import WholeObjects, whole_objects

TRIES = 6
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.1, 10.0
_MOST_PATIENCE_S = 60.0  # that a server may ask for
_FINAL = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError, NotImplementedError)
_FINAL_NUMBERS = {errno.ENOSPC, errno.EDQUOT, errno.EINVAL, errno.ENOSYS, errno.EPERM}
_NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "CredentialRetrievalError", "TokenRetrievalError")
_S3_OPTIONS: dict[str, Any] = {
    "use_listings_cache": False,
    "config_kwargs": {"retries": {"total_max_attempts": 1}, "read_timeout": 60, "connect_timeout": 10},
}

Result = TypeVar("Result")


class TryLater(Exception):
    """A server asks for patience, or gave what cannot be the whole answer; with the seconds that it asked for, if it did."""

    def __init__(self, text: str, patience_s: float = 0.0) -> None:
        super().__init__(text)
        self.patience_s = patience_s


def connected(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, without retries and listings of its own, and the path in it."""
    filesystem, root = fsspec.url_to_fs(url, **(_S3_OPTIONS if url.startswith("s3:") else {}))
    if url.startswith("s3:"):
        filesystem.retries = 1
    return filesystem, root


def lacks_credentials(error: Exception) -> bool:
    """Whether nothing was sent because this machine has no credentials; botocore's own classes, which other stores do without."""
    return type(error).__name__ in _NO_CREDENTIALS


def no_credentials(url: str, error: Exception) -> StoreUnavailable:
    """The error for a URL that this machine has no credentials for."""
    return StoreUnavailable(
        f"no credentials for {url} ({error}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE, and AWS_ENDPOINT_URL for "
        "a service other than Amazon's"
    )


def _is_final(error: Exception) -> bool:
    """Whether trying again cannot help."""
    if isinstance(error, _FINAL) or lacks_credentials(error):
        return True
    return isinstance(error, OSError) and error.errno in _FINAL_NUMBERS


def persist(what: str, call: Callable[[], Result], tries: int = TRIES) -> Result:
    """The result of `call`, tried again with growing, jittered waits while it fails for reasons that may pass.

    Raises the error at once when trying again cannot help, `StoreUnavailable` with the number of tries in the end.
    """
    for attempt in range(1, tries + 1):
        try:
            return call()
        except EupeError:
            raise
        except Exception as error:  # botocore's and aiohttp's errors have no common base
            if _is_final(error):
                raise
            if attempt == tries:
                raise StoreUnavailable(f"{what} failed {tries} times, the last time with {type(error).__name__}: {error}") from error
            asked = min(_MOST_PATIENCE_S, error.patience_s) if isinstance(error, TryLater) else 0.0
            wait = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2.0**attempt)
            time.sleep(asked + wait * random.uniform(0.5, 1.0))
    raise AssertionError("unreachable")


class _RemoteObject:
    def __init__(self, objects: "RemoteObjects", key: str, size: int) -> None:
        self._objects, self._key, self.size = objects, key, size

    def read_into(self, buffers: Sequence[memoryview], offset: int) -> None:
        wanted = sum(len(buffer) for buffer in buffers)
        data = self._objects.read_range(self._key, offset, wanted)
        start = 0
        for buffer in buffers:
            buffer[:] = data[start : start + len(buffer)]
            start += len(buffer)

    def renew(self) -> None:
        """There is no copy."""

    def doubt(self) -> bool:
        """There is no copy."""
        return False

    def close(self) -> None:
        """Nothing is held."""


class RemoteObjects:
    """`Objects` below an fsspec URL."""

    fetchers: Fetchers | None = None

    def __init__(self, url: str) -> None:
        refuse_secrets("store", url)
        refuse_endpoint("store", url)
        self.url = url
        self._inherited: list[Any] = []
        self._connect()
        renewed_after_fork(self)

    def _connect(self) -> None:
        self._connected, self._root = connected(self.url)
        self._stale = False
        self._whole_objects = whole_objects(self._connected) if self.url.startswith("s3:") else None

    def after_fork(self) -> None:
        """Connect anew at the next request; the parent's connections are kept from being closed here, which it would notice."""
        self._inherited += [self._connected, self._whole_objects]
        self._stale = not self.url.startswith("memory:")  # which has no connection, and is the parent's at the fork

    @property
    def _filesystem(self) -> Any:
        if self._stale:
            self._connect()
        return self._connected

    @property
    def _whole(self) -> WholeObjects | None:
        if self._stale:
            self._connect()
        return self._whole_objects

    def _path(self, key: str) -> str:
        return f"{self._root.rstrip('/')}/{key}".rstrip("/")

    def _call(self, verb: str, key: str, call: Callable[[], Result]) -> Result:
        try:
            return persist(f"{verb} {self.url}/{key}", call)
        except PermissionError as error:
            raise StoreUnavailable(
                f"no permission to {verb} {key} below {self.url}; check the credentials and the bucket's policy"
            ) from error
        except OSError as error:
            if isinstance(error, (EupeError, FileNotFoundError, FileExistsError)):
                raise
            raise StoreUnavailable(f"cannot {verb} {key} below {self.url}: {error}") from error
        except Exception as error:
            if lacks_credentials(error):
                raise no_credentials(self.url, error) from error
            raise

    def threads_for(self, size: int) -> int:
        """Many: each row is a round trip."""
        return MOST

    def read(self, key: str, limit_bytes: int | None = None) -> bytes:
        """One whole GET; with a limit, an object above it is refused before its first byte."""
        return self._call("read", key, lambda: b"".join(bytes(piece) for piece in self._pieces(key, limit_bytes)))

    def _pieces(self, key: str, limit_bytes: int | None = None) -> Iterable[memoryview]:
        """A whole object in pieces, each to be used before the next one is taken."""
        path = self._path(key)
        if self._whole is not None:
            return self._whole.pieces(path, lambda size: check_limit(key, size, limit_bytes))
        if limit_bytes is not None:
            check_limit(key, int(self._filesystem.size(path)), limit_bytes)
        return [memoryview(self._filesystem.cat_file(path))]

    def save(self, key: str, path: Path) -> str:
        """One whole GET into a local file, hashed on its way; returns the xxh3 (128 bits) of what came."""

        def attempt() -> str:
            hasher = xxhash.xxh3_128()
            with path.open("wb", buffering=0) as file:
                for piece in self._pieces(key):
                    hasher.update(piece)
                    with refusals(path, len(piece)):
                        while piece:
                            piece = piece[file.write(piece) :]
            return hasher.hexdigest()

        return self._call("read", key, attempt)

    def read_range(self, key: str, offset: int, wanted: int) -> bytes:
        """One ranged GET; raises `CacheDamaged` when the object ends before."""
        if not wanted:
            return b""
        path = self._path(key)
        data = self._call("read", key, lambda: bytes(self._filesystem.cat_file(path, start=offset, end=offset + wanted)))
        if len(data) != wanted:
            raise CacheDamaged(f"{key} gave {len(data):,} bytes at {offset:,}, its record describes {wanted:,}")
        return data

    def open(self, key: str, xxh3_128: str | None = None) -> _RemoteObject:
        """One HEAD now, ranged GETs later."""
        return _RemoteObject(self, key, self._call("find", key, lambda: int(self._filesystem.size(self._path(key)))))

    def size(self, key: str) -> int | None:
        """One HEAD."""
        try:
            return self._call("find", key, lambda: int(self._filesystem.size(self._path(key))))
        except FileNotFoundError:
            return None

    def names(self, prefix: str) -> list[str]:
        """One listing, never from a cache; hidden names are left out, as of a folder."""
        try:
            entries = self._call("list", prefix, lambda: self._filesystem.ls(self._path(prefix), detail=False, refresh=True))
        except FileNotFoundError:
            return []
        own = self._path(prefix).strip("/")
        names = {str(entry).strip("/") for entry in entries} - {own}
        return sorted(last for name in names if not (last := name.rsplit("/", 1)[-1]).startswith("."))

    def create(self, key: str, content: Content) -> bool:
        """One conditional put."""
        data = b"".join(content)
        try:
            self._call("create", key, lambda: self._filesystem.pipe_file(self._path(key), data, mode="create"))
        except FileExistsError:
            return False
        except FileNotFoundError as error:  # of an object that is to be made: the bucket
            raise StoreUnavailable(f"cannot create {key} below {self.url}: {error}; make the bucket first, or mend its name") from error
        return True

    def replace(self, key: str, data: bytes) -> None:
        """One put."""
        self._call("replace", key, lambda: self._filesystem.pipe_file(self._path(key), data))

    def drop_empty(self, prefix: str) -> None:
        """There are no folders."""

    def sweep(self, prefix: str) -> int:
        """A put that did not end leaves nothing."""
        return 0

    def remove(self, key: str) -> None:
        """One DELETE."""
        try:
            self._call("remove", key, lambda: self._filesystem.rm_file(self._path(key)))
        except FileNotFoundError:
            return


def check_limit(key: str, size: int, limit_bytes: int | None) -> None:
    """Raise `CacheDamaged` for a file that is larger than any of ours can be."""
    if limit_bytes is not None and size > limit_bytes:
        raise CacheDamaged(f"{key} has {size:,} bytes, no such file of ours has more than {limit_bytes:,}; it was altered")
