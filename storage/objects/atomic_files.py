"""Local files that are either wholly there or not there at all.

Every write goes to a temporary name in the same folder, is fsynced, and is then published: by rename where the newest version should win
(a run's own files), exclusively where nothing may ever be replaced (the store, `exclusive`). The price is one fsync for the file and one
for the folder. Whatever the system refuses becomes `StoreUnavailable` with the path; a write whose fsync failed is not published.
"""

import contextlib
import errno
import itertools
import os
import secrets
import shutil
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ..core.errors import EupeError, StoreUnavailable
from .exclusive import publish
from .large_files import LARGE_BYTES, Buffer, Streamed, write_large

TEMPORARY_PREFIX = ".tmp-"
STALE_SECONDS = 86_400.0
_IOV_MAX = 1024
_REFUSED = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EACCES: "no permission to write there",
    errno.EPERM: "no permission to write there",
    errno.EROFS: "the file system is read-only",
    errno.EFBIG: "the file would be larger than this process or file system allows",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ENOTDIR: "a part of the path is a file",
    errno.EEXIST: "a file of that name is in the way",
    errno.EISDIR: "a folder of that name is in the way",
    errno.ENOENT: "nothing can be made at this place",
    errno.EINVAL: "this file system refuses such a name",
    errno.EIO: "the disk failed (input/output error)",
    errno.ESTALE: "the network file system lost the file (stale handle)",
    errno.ETIMEDOUT: "the network file system did not answer in time",
}
_NO_SUCH_FSYNC = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)  # of a folder, on some network file systems

Content = Sequence[Buffer] | Streamed


@contextlib.contextmanager
def refusals(path: Path, needed_bytes: int) -> Iterator[None]:
    """Turn the operating system's refusals to write `needed_bytes` at `path` into `StoreUnavailable`."""
    try:
        yield
    except OSError as error:
        if isinstance(error, EupeError):
            raise
        short_of_room = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        needed = f" ({needed_bytes:,} bytes were needed for this file)" if short_of_room else ""
        raise StoreUnavailable(
            f"cannot write {path}: {_REFUSED.get(error.errno or 0, error.strerror or error)}{needed}. Nothing that was committed is lost. "
            "Make room or permission there or name another place, then run the same command again."
        ) from error


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    with refusals(folder, 0):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in _NO_SUCH_FSYNC:
                raise
        finally:
            os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Create a folder and its parents, each name made durable."""
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    with refusals(folder, 0):
        folder.mkdir(parents=True, exist_ok=True)
        for created in missing:
            fsync_folder(created.parent)


def size_of(content: Content) -> int:
    """Bytes of a file to be."""
    return content.size if isinstance(content, Streamed) else sum(memoryview(buffer).nbytes for buffer in content)


def _write_all(descriptor: int, buffers: Iterable[Buffer]) -> None:
    pending = deque(memoryview(buffer).cast("B") for buffer in buffers)
    while pending:
        written = os.writev(descriptor, list(itertools.islice(pending, _IOV_MAX)))
        while pending and written >= len(pending[0]):
            written -= len(pending.popleft())
        if written:
            pending[0] = pending[0][written:]


@contextlib.contextmanager
def _temporary_file(final: Path, content: Content, durable: bool = True) -> Iterator[Path]:
    """A fsynced file (unless not `durable`) beside `final` that holds the content; removed at the end unless it was renamed."""
    size = size_of(content)
    temporary = final.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(4)}-{final.name}"[:200])
    try:
        with refusals(final, size):
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            try:
                write = write_large if durable and size >= LARGE_BYTES else _write_all
                write(descriptor, content)
                if durable:
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)
        yield temporary
    finally:
        with contextlib.suppress(OSError):  # on a read-only file system, where it would hide the right error
            temporary.unlink()


def write_atomically(path: Path, data: Buffer) -> None:
    """Replace `path` by `data`: readers see the old file or the new one, never a part. Raises `StoreUnavailable`."""
    make_folder(path.parent)
    with _temporary_file(path, [data]) as temporary, refusals(path, len(data)):
        temporary.rename(path)
    fsync_folder(path.parent)


def create_exclusively(path: Path, content: Content, *, durable: bool = True) -> bool:
    """Publish the content at `path` unless something is there; True when this call created it.

    The order of system calls is write, fsync, link, fsync of the folder: a name never stands for unwritten bytes. Where the folder's
    fsync fails, the name is taken back. Without `durable` there is no fsync, and after a crash of the machine the name may stand for
    anything.
    """
    make_folder(path.parent)
    with _temporary_file(path, content, durable) as temporary, refusals(path, 0):
        try:
            publish(temporary, path)
        except FileExistsError:
            return False
    if durable:
        try:
            fsync_folder(path.parent)
        except StoreUnavailable:  # a retry would find the name and take it for durable
            with contextlib.suppress(OSError):
                path.unlink()
            raise
    return True


def sweep(folder: Path, older_than_s: float = STALE_SECONDS) -> int:
    """Remove what killed writers left anywhere below a folder: temporary files that nobody has written to for a day. Returns how many.

    A writer at work writes its file within minutes, so that clocks of machines may differ by hours.
    """
    oldest, removed = time.time() - older_than_s, 0
    for parent, _, names in os.walk(folder):
        for name in names:
            if name.startswith(TEMPORARY_PREFIX):
                with contextlib.suppress(OSError):  # gone already, or another user's
                    if os.stat(os.path.join(parent, name)).st_mtime < oldest:
                        os.unlink(os.path.join(parent, name))
                        removed += 1
    return removed


@contextlib.contextmanager
def replace_folder(final: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `final` when the block ends well, and vanishes when it does not."""
    make_folder(final.parent)
    temporary = final.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(4)}-{final.name}")
    try:
        with refusals(final, 0):
            temporary.mkdir()
        yield temporary
        readers = temporary.stat().st_mode & 0o666  # safetensors writes files that nobody else may read, whatever the umask says
        for file in temporary.rglob("*"):
            if file.is_file():
                file.chmod(readers)
            with refusals(file, 0):
                _fsync_path(file)
        fsync_folder(temporary)
        old = temporary.with_name(f"{temporary.name[:190]}-old")
        if final.exists():  # moved aside, not deleted: a kill here leaves both, never neither
            final.rename(old)
        temporary.rename(final)
        fsync_folder(final.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder with all that is in it; whoever reads it finds the whole folder or none, a kill leaves a temporary name."""
    gone = folder.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(4)}-{folder.name}")
    folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def _fsync_path(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
