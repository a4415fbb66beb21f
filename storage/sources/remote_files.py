"""Files of a source behind a URL: reads are retried while they fail for reasons that may pass, as a store's are (`remote.retry`).

Permanent errors are raised at once: a missing file, a lack of permission. Failed retries end in `StoreUnavailable` with the address and the
number of tries, so that images behind a network that is down do not count as broken. A reader that keeps what it knows of a file (the
footer of a Parquet file) reads under the condition that the file is still the same version (`read_version`).
"""

import io
from collections.abc import Callable
from typing import IO, Any, TypeVar, cast

from ..objects.remote import lacks_credentials, no_credentials, retry
from ..objects.s3_download import VersionGone, s3_downloader

_BLOCK_BYTES = 4 << 20  # read at once of a file that is walked through
Result = TypeVar("Result")


class RemoteFiles:
    """The part of an fsspec file system that sources need; paths are those of the file system."""

    def __init__(self, filesystem: Any, url: str) -> None:
        self._filesystem, self.url = filesystem, url
        self.protocol = filesystem.protocol

    def address(self, path: str) -> str:
        """Return the address of a path for messages."""
        return str(self._filesystem.unstrip_protocol(path))

    def _call(self, verb: str, path: str, call: Callable[[], Result]) -> Result:
        try:
            return retry(f"{verb} {self.address(path)}", call)
        except Exception as error:  # botocore's errors have no common base with ours
            if lacks_credentials(error):
                raise no_credentials(self.url, error) from error
            raise

    def exists(self, path: str) -> bool:
        """Return whether there is such a file or folder."""
        return self._call("find", path, lambda: bool(self._filesystem.exists(path)))

    def isfile(self, path: str) -> bool:
        """Return whether it is a file."""
        return self._call("find", path, lambda: bool(self._filesystem.isfile(path)))

    def find(self, root: str) -> list[str]:
        """Return the paths of all files below a folder."""
        return self._call("list", root, lambda: [str(path) for path in self._filesystem.find(root)])

    def size(self, path: str) -> int:
        """Return the length in bytes; raise FileNotFoundError."""
        return self._call("find", path, lambda: int(self._filesystem.size(path)))

    def ukey(self, path: str) -> str:
        """Return a text that differs between versions of a file, where that can be known."""
        return self._call("find", path, lambda: str(self._filesystem.ukey(path)))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        """Return the bytes [start, end), or all; raise FileNotFoundError or PermissionError."""
        return self._call("read", path, lambda: bytes(self._filesystem.cat_file(path, start=start, end=end)))

    def version(self, path: str) -> tuple[str, int]:
        """Return the file's `ukey` and its length; raise FileNotFoundError."""
        return self.ukey(path), self.size(path)

    def read_version(self, path: str, start: int, end: int, ukey: str) -> bytes:
        """Return the bytes [start, end) of a file with this `ukey`; raise `VersionGone` when it is another one by now."""
        if self.ukey(path) != ukey:
            raise VersionGone(f"{self.address(path)} is another file by now")
        return self.cat_file(path, start, end)

    def open(self, path: str, mode: str = "rb") -> IO[bytes]:
        """Open a seekable file, which the caller closes."""
        return self._ranged(path, self.size(path))

    def open_version(self, path: str, size: int, ukey: str, span: tuple[int, int] | None = None) -> IO[bytes]:
        """Open a file with this `ukey`, which reads what it is asked for and no more; the bytes of `span` at once. Raise `VersionGone`."""

        def read(start: int, end: int) -> bytes:
            return self.read_version(path, start, end, ukey)

        if span is None:
            return cast(IO[bytes], _RangedFile(read, self.address(path), size))
        first, data = span[0], read(*span)

        def read_held(start: int, end: int) -> bytes:
            return data[start - first : end - first] if first <= start and end <= span[1] else read(start, end)

        return cast(IO[bytes], _RangedFile(read_held, self.address(path), size))

    def _ranged(self, path: str, size: int) -> IO[bytes]:
        return io.BufferedReader(_RangedFile(lambda start, end: self.cat_file(path, start, end), self.address(path), size), _BLOCK_BYTES)


class S3Files(RemoteFiles):
    """Files on S3, whose versions are told apart by the ETag, which a read can demand: one request where others need two."""

    def version(self, path: str) -> tuple[str, int]:
        """Return the ETag and the length by one HEAD."""
        info = self._call("find", path, lambda: self._filesystem.info(path))
        if info["type"] != "file":
            raise FileNotFoundError(f"{self.address(path)} is not there")
        return str(info["ETag"]), int(info["size"])

    def ukey(self, path: str) -> str:
        """Return the ETag by one HEAD."""
        return self.version(path)[0]

    def read_version(self, path: str, start: int, end: int, ukey: str) -> bytes:
        """Return the bytes [start, end) of the object with this ETag, by one GET."""
        download = s3_downloader(self._filesystem).pieces
        return self._call("read", path, lambda: b"".join(bytes(piece) for piece in download(path, span=(start, end), etag=ukey)))


class Shortened(OSError):
    """A file ends before the length that it had."""


class _RangedFile(io.RawIOBase):
    """A remote file of known size, read by ranges; `address` is for messages."""

    def __init__(self, read: Callable[[int, int], bytes], address: str, size: int) -> None:
        self._read, self._address, self._size, self._position = read, address, size, 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position of the next byte."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position; return it."""
        self._position = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence])
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer as far as the file goes; raise OSError when the file became shorter."""
        view = memoryview(buffer).cast("B")
        length = min(len(view), self._size - self._position)
        if length <= 0:
            return 0
        data = self._read(self._position, self._position + length)
        if len(data) < length:
            raise Shortened(f"{self._address} ended at byte {self._position + len(data):,} of {self._size:,}; was it changed?")
        view[:length] = data[:length]  # a server may answer a range with more
        self._position += length
        return length
