"""Raw tokens that the statistics needed, kept on this machine's disk until their shard is computed: no view passes a teacher twice.

    CACHE/forwards/<run>.lock           held by every process that works for the run; when nobody holds it, the run's files are leftovers
    CACHE/forwards/<run>/<key>          xxh3 of the rest (16 bytes), then arrays as .npy one after another, not fsynced

The key of a forward (class and patch tokens, fp32) is a checksum of all that it was given: teacher, pixels and distortions, hence the
number of views and their order. What lies under it is what that forward would give again, bit for bit, on this machine; another composition
of a batch has another key and is computed. The pixels of a batch of views that are drawn now are kept beside (`rendering`): no image is
decoded twice either. A lost or damaged file costs a forward or a decoding and never changes a stored byte. At most half of the disk that
was free when the run began here is used; what does not fit is computed again.
"""

import contextlib
import fcntl
import io
import os
import secrets
import shutil
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..core.cache_home import forwards_folder
from ..core.checksums import byte_view, xxh3_128

_LOCK, _CHECKSUM_BYTES = ".lock", 16


class RawTokens(NamedTuple):
    """A forward's tokens on the host: class tokens (n, D) or None, patch tokens (n, H, W, D), both fp32."""

    cls: NDArray[np.float32] | None
    patch: NDArray[np.float32]


def new_run() -> str:
    """A name for the kept forwards of one extraction."""
    return secrets.token_hex(8)


def forward_key(teacher: str, pixels_nHWC: NDArray[np.uint8], photometric_nP: NDArray[np.float32] | None) -> str:
    """The name of one forward: of the teacher (digest of its identity) over these views at once."""
    arrays: list[NDArray[Any]] = [pixels_nHWC] if photometric_nP is None else [pixels_nHWC, photometric_nP]
    shapes = ";".join(str(array.shape) for array in arrays)
    return xxh3_128([f"{teacher};{shapes}".encode(), *(byte_view(np.ascontiguousarray(array)) for array in arrays)])


class KeptForwards:
    """The kept forwards of a run on this machine; safe to use from several threads and processes. Never raises for the disk's sake."""

    def __init__(self, run: str) -> None:
        self.folder, self._reserve, self._full = forwards_folder() / run, 0, False
        try:
            lock, self._reserve = _joined(self.folder)
            weakref.finalize(self, os.close, lock)
        except OSError:
            self._full = True

    def keep(self, key: str, tokens: RawTokens) -> None:
        """Write one forward's tokens, unless there is no room for them."""
        self.keep_arrays(key, [np.empty((0, 0), np.float32) if tokens.cls is None else tokens.cls, tokens.patch])

    def take(self, key: str) -> RawTokens | None:
        """One forward's tokens, which are then no longer kept; None when they are not there, or not whole."""
        arrays = self.take_arrays(key)
        if arrays is None:
            return None
        cls, patch = arrays
        return RawTokens(cls if cls.size else None, patch)

    def keep_arrays(self, key: str, arrays: Sequence[NDArray[Any]]) -> None:
        """Write some arrays under a name of the run's, unless there is no room for them."""
        size = sum(array.nbytes for array in arrays)
        temporary = self.folder / f".{key}-{secrets.token_hex(4)}"
        try:
            self._full = self._full or shutil.disk_usage(self.folder).free - size < self._reserve
            if self._full:
                return
            content = _packed(arrays)
            with temporary.open("wb") as file:
                file.write(bytes.fromhex(xxh3_128([content])))
                file.write(content)
            temporary.rename(self.folder / key)
        except OSError:
            self._full = True
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def take_arrays(self, key: str) -> list[NDArray[Any]] | None:
        """Return the arrays under a name, which are then no longer kept; None when they are not there, or not whole."""
        path = self.folder / key
        try:
            content = path.read_bytes()
            path.unlink()
        except OSError:
            return None
        body = memoryview(content)[_CHECKSUM_BYTES:]
        return _unpacked(body) if bytes.fromhex(xxh3_128([body])) == content[:_CHECKSUM_BYTES] else None


def discard(run: str) -> None:
    """Remove what this machine keeps of a run; a worker that dies while it writes may leave something for the next sweep."""
    folder = forwards_folder() / run
    shutil.rmtree(folder, ignore_errors=True)
    if not folder.exists():
        with contextlib.suppress(OSError):
            _lock_path(folder).unlink()


def sweep_forwards() -> None:
    """Remove what processes that were killed have left; runs under way stay."""
    for path in forwards_folder().glob(f"*{_LOCK}"):
        with contextlib.suppress(OSError), path.open("r+b") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # refused while a process of the run lives
            discard(path.name.removesuffix(_LOCK))


def _lock_path(folder: Path) -> Path:
    return folder.with_name(folder.name + _LOCK)


def _joined(folder: Path) -> tuple[int, int]:
    """Make the folder and hold its lock; returns the lock, and the bytes that must stay free, which the run's first process here wrote."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = _locked(_lock_path(folder))
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        written = os.pread(lock, 32, 0)
        reserve = int(written) if written.isdigit() else shutil.disk_usage(folder).free // 2
        if not written:
            os.pwrite(lock, str(reserve).encode(), 0)
    except OSError:
        os.close(lock)
        raise
    return lock, reserve


def _locked(path: Path) -> int:
    """A shared lock on the file that stands at the path now: one that is being swept is made anew."""
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_SH)
            if os.path.samestat(os.stat(path), os.fstat(lock)):
                return lock
        except FileNotFoundError:
            pass
        except OSError:
            os.close(lock)
            raise
        os.close(lock)


def _packed(arrays: Sequence[NDArray[Any]]) -> bytes:
    out = io.BytesIO()
    for array in arrays:
        np.save(out, array, allow_pickle=False)
    return out.getvalue()


def _unpacked(body: memoryview) -> list[NDArray[Any]]:
    source, arrays = io.BytesIO(body), list[NDArray[Any]]()
    while source.tell() < len(body):
        arrays.append(np.load(source))
    return arrays
