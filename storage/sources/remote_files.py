"""Files of a source behind a URL: reads are retried while they fail for reasons that may pass, as a store's are (`remote.retry`).

Permanent errors are raised at once: a missing file, a lack of permission. Failed retries end in `StoreUnavailable` with the address and the
number of tries, so that images behind a network that is down do not count as broken.
"""

import io
from collections.abc import Callable
from typing import IO, Any, TypeVar

from ..objects.remote import lacks_credentials, no_credentials, retry

_BLOCK_BYTES = 4 << 20  # read at once of a file that is walked through
Result = TypeVar("Result")


class RemoteFiles:
    """The part of an fsspec file system that sources need; paths are those of the file system."""

    def __init__(self, filesystem: Any, url: str) -> None:
        self._filesystem, self._url = filesystem, url
        self.protocol = filesystem.protocol

    def address(self, path: str) -> str:
        """Return the address of a path for messages."""
        return str(self._filesystem.unstrip_protocol(path))

    def _call(self, verb: str, path: str, call: Callable[[], Result]) -> Result:
        try:
            return retry(f"{verb} {self.address(path)}", call)
        except Exception as error:  # botocore's errors have no common base with ours
            if lacks_credentials(error):
                raise no_credentials(self._url, error) from error
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

    def open(self, path: str, mode: str = "rb") -> IO[bytes]:
        """Open a seekable file, which the caller closes."""
        return self._ranged(path, self.size(path))

    def _ranged(self, path: str, size: int) -> IO[bytes]:
        return io.BufferedReader(_RangedFile(self, path, size), _BLOCK_BYTES)


class _RangedFile(io.RawIOBase):
    """A remote file of known size, read by ranges."""

    def __init__(self, files: RemoteFiles, path: str, size: int) -> None:
        self._files, self._path, self._size, self._position = files, path, size, 0

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
        data = self._files.cat_file(self._path, self._position, self._position + length)
        if len(data) < length:
            raise OSError(
                f"{self._files.address(self._path)} ended at byte {self._position + len(data):,} of {self._size:,}; was it changed?"
            )
        view[:length] = data[:length]  # a server may answer a range with more
        self._position += length
        return length
