"""`Objects` behind an fsspec URL (s3://…, memory://…): one request a method, retries in one place, errors that name the key and the tries.

The exclusive create is a conditional put (`If-None-Match: *` on S3). Its reply can get lost after it succeeded, and the retry then finds
the object there: so "not created" may mean an earlier try of our own, and callers compare contents, which they do anyway
(`existing_objects`). The retries of the libraries below are switched off: nested, they would be 5 × 5 tries of a minute each, which looks
like a hang. Permanent errors (absence, permission, a failed check) are not retried. Listings never come from a cache.
"""

import contextlib
import errno
import random
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC
from pathlib import Path
from typing import Any, TypeVar

import fsspec
import xxhash

from ..core.errors import CacheDamaged, EupeError, StoreUnavailable
from ..core.forks import reset_after_fork
from ..core.urls import refuse_endpoint, refuse_secrets
from .atomic_files import Content, translate_os_errors
from .read_ahead import Fetchers
from .read_threads import MAX_THREADS
from .s3_download import S3Downloader, s3_downloader

TRIES = 6
_MIN_WAIT_S, _MAX_WAIT_S = 0.1, 10.0
_LEAST_COPIED_BYTES = 8 << 20  # a copy within S3 is three requests, a put one
_MOST_COPIED_BYTES = 5 << 30  # of one copied part
_MAX_RETRY_AFTER_S = 60.0  # that a server may ask for
_PERMANENT = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError, NotImplementedError)
_PERMANENT_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EINVAL, errno.ENOSYS, errno.EPERM}
_NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "CredentialRetrievalError", "TokenRetrievalError")
_S3_OPTIONS: dict[str, Any] = {
    "use_listings_cache": False,
    "config_kwargs": {"retries": {"total_max_attempts": 1}, "read_timeout": 60, "connect_timeout": 10},
}

Result = TypeVar("Result")


class TryLater(Exception):
    """A temporary failure: the server asks to retry, or the answer is incomplete; `retry_after_s` is the wait that it asked for."""

    def __init__(self, text: str, retry_after_s: float = 0.0) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s


def open_filesystem(url: str) -> tuple[Any, str]:
    """Return the fsspec file system of a URL, without its own retries and listings cache, and the path in it."""
    filesystem, root = fsspec.url_to_fs(url, **(_S3_OPTIONS if url.startswith("s3:") else {}))
    if url.startswith("s3:"):
        filesystem.retries = 1
    return filesystem, root


def lacks_credentials(error: Exception) -> bool:
    """Return whether a request was not sent for lack of credentials; by name, because other stores do without botocore."""
    return type(error).__name__ in _NO_CREDENTIALS


def no_credentials(url: str, error: Exception) -> StoreUnavailable:
    """Return the error for a URL that this machine has no credentials for."""
    return StoreUnavailable(
        f"no credentials for {url} ({error}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE, and AWS_ENDPOINT_URL for "
        "a service other than Amazon's"
    )


def _is_permanent(error: Exception) -> bool:
    """Return whether a retry cannot help."""
    if isinstance(error, _PERMANENT) or lacks_credentials(error):
        return True
    return isinstance(error, OSError) and error.errno in _PERMANENT_ERRNOS


def retry(what: str, call: Callable[[], Result], tries: int = TRIES) -> Result:
    """Return the result of `call`, retried with exponential, jittered waits while it fails for reasons that may pass.

    Raise permanent errors at once, `StoreUnavailable` with the number of tries in the end.
    """
    for attempt in range(1, tries + 1):
        try:
            return call()
        except EupeError:
            raise
        except Exception as error:  # botocore's and aiohttp's errors have no common base
            if _is_permanent(error):
                raise
            if attempt == tries:
                raise StoreUnavailable(f"{what} failed {tries} times, the last time with {type(error).__name__}: {error}") from error
            retry_after_s = min(_MAX_RETRY_AFTER_S, error.retry_after_s) if isinstance(error, TryLater) else 0.0
            backoff_s = min(_MAX_WAIT_S, _MIN_WAIT_S * 2.0**attempt)
            time.sleep(retry_after_s + backoff_s * random.uniform(0.5, 1.0))
    raise AssertionError("unreachable")


class RemoteObject:
    """An object that is read by ranged GETs."""

    def __init__(self, objects: "RemoteObjects", key: str, size: int) -> None:
        self._objects, self._key, self.size = objects, key, size

    def read_into(self, buffers: Sequence[memoryview], offset: int) -> None:
        """Fill the buffers by one request."""
        length = sum(len(buffer) for buffer in buffers)
        data = self._objects.read_range(self._key, offset, length)
        start = 0
        for buffer in buffers:
            buffer[:] = data[start : start + len(buffer)]
            start += len(buffer)

    def touch(self) -> None:
        """Do nothing: there is no cached copy."""

    def recheck(self) -> bool:
        """Return False: there is no cached copy."""
        return False

    def close(self) -> None:
        """Do nothing."""


class RemoteObjects:
    """`Objects` below an fsspec URL."""

    fetchers: Fetchers | None = None

    def __init__(self, url: str) -> None:
        refuse_secrets("store", url)
        refuse_endpoint("store", url)
        self.url = url
        self._parents_connections: list[Any] = []
        self._connect()
        reset_after_fork(self)

    def _connect(self) -> None:
        self._fsspec_filesystem, self._root = open_filesystem(self.url)
        self._stale = False
        self._s3_downloader = s3_downloader(self._fsspec_filesystem) if self.url.startswith("s3:") else None

    def after_fork(self) -> None:
        """Reconnect at the next request; keep the parent's connections referenced, because closing them here would close the parent's."""
        self._parents_connections += [self._fsspec_filesystem, self._s3_downloader]
        self._stale = not self.url.startswith("memory:")  # which has no connection, and is the parent's at the fork

    @property
    def _filesystem(self) -> Any:
        if self._stale:
            self._connect()
        return self._fsspec_filesystem

    @property
    def _downloader(self) -> S3Downloader | None:
        if self._stale:
            self._connect()
        return self._s3_downloader

    def _path(self, key: str) -> str:
        return f"{self._root.rstrip('/')}/{key}".rstrip("/")

    def _call(self, verb: str, key: str, call: Callable[[], Result]) -> Result:
        try:
            return retry(f"{verb} {self.url}/{key}", call)
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
        """Return many: each row is a round trip."""
        return MAX_THREADS

    def read(self, key: str, limit_bytes: int | None = None) -> bytes:
        """Return all bytes by one GET; refuse an object above the limit before its first byte."""
        return self._call("read", key, lambda: b"".join(bytes(piece) for piece in self._pieces(key, limit_bytes)))

    def _pieces(self, key: str, limit_bytes: int | None = None) -> Iterable[memoryview]:
        """Yield a whole object in pieces, each valid until the next one is taken."""
        path = self._path(key)
        if self._downloader is not None:
            return self._downloader.pieces(path, lambda size: check_limit(key, size, limit_bytes))
        if limit_bytes is not None:
            check_limit(key, int(self._filesystem.size(path)), limit_bytes)
        return [memoryview(self._filesystem.cat_file(path))]

    def download(self, key: str, path: Path) -> str:
        """Download an object into a local file by one GET; return the 128-bit xxh3 of what came."""

        def attempt() -> str:
            hasher = xxhash.xxh3_128()
            with translate_os_errors(path, 0):
                file = path.open("wb", buffering=0)
            with file:
                for piece in self._pieces(key):
                    hasher.update(piece)
                    with translate_os_errors(path, len(piece)):
                        while piece:
                            piece = piece[file.write(piece) :]
            return hasher.hexdigest()

        return self._call("read", key, attempt)

    def read_whole(self, key: str, allocate: Callable[[int], memoryview]) -> None:
        """Read an object by one GET into memory that is allocated when its size is known."""

        def attempt() -> None:
            if self._downloader is not None:
                self._downloader.read_into(self._path(key), allocate)
            else:
                data = self._filesystem.cat_file(self._path(key))
                allocate(len(data))[:] = data

        self._call("read", key, attempt)

    def read_range(self, key: str, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset` by one ranged GET; raise `CacheDamaged` when the object ends before."""
        if not length:
            return b""
        path = self._path(key)
        data = self._call("read", key, lambda: bytes(self._filesystem.cat_file(path, start=offset, end=offset + length)))
        if len(data) != length:
            raise CacheDamaged(f"{key} gave {len(data):,} bytes at {offset:,}, its record describes {length:,}")
        return data

    def open(self, key: str, xxh3_128: str | None = None) -> "RemoteObject":
        """Open for ranged GETs, after one HEAD."""
        return RemoteObject(self, key, self._call("find", key, lambda: int(self._filesystem.size(self._path(key)))))

    def size(self, key: str) -> int | None:
        """Return the length in bytes by one HEAD, None when there is no such object."""
        try:
            return self._call("find", key, lambda: int(self._filesystem.size(self._path(key))))
        except FileNotFoundError:
            return None

    def modified(self, key: str) -> float | None:
        """Return what the server says, None where it says nothing."""
        try:
            when = self._call("find", key, lambda: self._filesystem.modified(self._path(key)))
        except (FileNotFoundError, NotImplementedError):
            return None
        return float((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp())

    def names(self, prefix: str) -> list[str]:
        """Return the names below a prefix by one listing, never from a cache; hidden names are left out."""
        try:
            entries = self._call("list", prefix, lambda: self._filesystem.ls(self._path(prefix), detail=False, refresh=True))
        except FileNotFoundError:
            return []
        folder = self._path(prefix).strip("/")
        names = {str(entry).strip("/") for entry in entries} - {folder}
        return sorted(last for name in names if not (last := name.rsplit("/", 1)[-1]).startswith("."))

    def create(self, key: str, content: Content) -> bool:
        """Create by one conditional put; return False when the key exists."""
        data = b"".join(content)
        try:
            self._call("create", key, lambda: self._filesystem.pipe_file(self._path(key), data, mode="create"))
        except FileExistsError:
            return False
        except FileNotFoundError as error:  # of an object that is to be made: the bucket
            raise StoreUnavailable(f"cannot create {key} below {self.url}: {error}; make the bucket first, or mend its name") from error
        return True

    def duplicate(self, existing: str, key: str, data: bytes) -> bool:
        """Have S3 copy a large object within itself; put anything else."""
        if not self.url.startswith("s3:") or not _LEAST_COPIED_BYTES <= len(data) <= _MOST_COPIED_BYTES:
            return self.create(key, [data])
        try:
            self._call("copy", key, lambda: copy_exclusively(self._filesystem, self._path(existing), self._path(key)))
        except FileExistsError:
            return False
        return True

    def replace(self, key: str, data: bytes) -> None:
        """Put the object."""
        self._call("replace", key, lambda: self._filesystem.pipe_file(self._path(key), data))

    def drop_empty(self, prefix: str) -> None:
        """Do nothing: there are no folders."""

    def sweep(self, prefix: str, *, at_any_age: bool = False) -> int:
        """Return 0: an unfinished put leaves nothing."""
        return 0

    def remove(self, key: str) -> None:
        """Delete the object."""
        try:
            self._call("remove", key, lambda: self._filesystem.rm_file(self._path(key)))
        except FileNotFoundError:
            return


def copy_exclusively(filesystem: Any, existing: str, path: str) -> None:
    """Copy `bucket/key` to another one on an s3fs file system; raise FileExistsError when that exists, FileNotFoundError, OSError."""
    (from_bucket, _, from_key), (bucket, _, key) = existing.partition("/"), path.partition("/")
    target = {"Bucket": bucket, "Key": key}
    target["UploadId"] = filesystem.call_s3("create_multipart_upload", **target)["UploadId"]
    try:
        copied = filesystem.call_s3("upload_part_copy", **target, PartNumber=1, CopySource={"Bucket": from_bucket, "Key": from_key})
        parts = {"Parts": [{"PartNumber": 1, "ETag": copied["CopyPartResult"]["ETag"]}]}
        filesystem.call_s3("complete_multipart_upload", **target, MultipartUpload=parts, IfNoneMatch="*")
    except BaseException:
        with contextlib.suppress(Exception):  # unfinished uploads cost storage; a lifecycle rule removes what stays
            filesystem.call_s3("abort_multipart_upload", **target)
        raise


def check_limit(key: str, size: int, limit_bytes: int | None) -> None:
    """Raise `CacheDamaged` for an object that is larger than any of its kind can be."""
    if limit_bytes is not None and size > limit_bytes:
        raise CacheDamaged(f"{key} has {size:,} bytes, no such file of ours has more than {limit_bytes:,}; it was altered")
