"""Keep the standard streams writable: no closed pipe, closed descriptor, full log disk or narrow encoding ends the work.

What cannot be written is dropped and remembered. A descriptor that is closed at the start (`2>&-`) is opened on the null device first: the
next file to be opened would get its number otherwise, and a library's warning would be written into a shard.
"""

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast

_MAY_PASS = (errno.ENOSPC, errno.EDQUOT)  # a disk may have room again later; a reader never comes back


class LastingStream:
    """A text stream that drops what cannot be written; everything else of it is the stream's own.

    `lost` is the first error that dropped something, None while all was written.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._gone = False
        self.lost: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write text, or drop it."""
        if not self._gone:
            try:
                return self._stream.write(text)
            except OSError as error:
                self._lose(error)
        return len(text)

    def flush(self) -> None:
        """Flush what was written, or drop it."""
        if not self._gone:
            try:
                self._stream.flush()
            except OSError as error:
                self._lose(error)

    def settle(self) -> None:
        """Flush for the last time: what still cannot be written goes to the null device, so that the interpreter's exit finds nothing."""
        self.flush()
        if self.lost is not None and not self._gone:
            self._discard()

    def _lose(self, error: OSError) -> None:
        self.lost = self.lost or error
        if error.errno not in _MAY_PASS:
            self._discard()

    def _discard(self) -> None:
        self._gone = True
        with contextlib.suppress(OSError, io.UnsupportedOperation):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)
            self._stream.flush()


@contextlib.contextmanager
def lasting_streams() -> Iterator[LastingStream]:
    """Replace standard output and error by lasting ones; yields the one for output."""
    _fill_descriptors()
    before = sys.stdout, sys.stderr
    lasting = [LastingStream(_escaping(stream)) for stream in before]
    sys.stdout, sys.stderr = (cast(TextIO, stream) for stream in lasting)
    try:
        yield lasting[0]
    finally:
        for stream in lasting:
            stream.settle()
        sys.stdout, sys.stderr = (stream._stream for stream in lasting)


def _fill_descriptors() -> None:
    """Open the null device under each standard descriptor that is closed."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != descriptor:  # a lower number was free
                os.dup2(null, descriptor)
                os.close(null)


def _escaping(stream: TextIO | None) -> TextIO:
    """Return a stream that writes what its encoding lacks as an escape; None, a closed one, becomes the null device."""
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8")
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    return stream
