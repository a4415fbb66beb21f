"""Atomic writes of local files: readers see a complete file or none.

Every write goes to a temporary name in the same folder, is fsynced, and is then published: by rename where the newest version wins (a run's
own files), with an exclusive create where nothing may be replaced (the store, `exclusive_create`). The price is one fsync of the file and
one of the folder. Errors of the operating system become `StoreUnavailable` with the path; a write whose fsync failed is not published.
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

from ..core.access import REFUSED, whose
from ..core.errors import EupeError, StoreUnavailable
from .exclusive_create import NO_LINKS, publish
from .large_files import LARGE_BYTES, Buffer, Streamed, write_large

TEMPORARY_PREFIX = ".tmp-"
STALE_SECONDS = 86_400.0
_IOV_MAX = 1024
_ERROR_TEXTS = {
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
    errno.EBUSY: "the file system does not replace or remove a file that somebody has open",
    errno.ETXTBSY: "the file system does not replace or remove a file that somebody has open",
}
_FSYNC_UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)  # of a folder, on some network file systems

Content = Sequence[Buffer] | Streamed


@contextlib.contextmanager
def translate_os_errors(path: Path, needed_bytes: int) -> Iterator[None]:
    """Turn OSErrors inside the block into `StoreUnavailable`; `needed_bytes` is the size of the file to be written at `path`."""
    try:
        yield
    except OSError as error:
        if isinstance(error, EupeError):
            raise
        out_of_space = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        note = f" ({needed_bytes:,} bytes were needed for this file)" if out_of_space else ""
        if error.errno in REFUSED and (owner := whose(path)):
            note = f" ({owner})"
        raise StoreUnavailable(
            f"cannot write {path}: {_ERROR_TEXTS.get(error.errno or 0, error.strerror or error)}{note}. Nothing that was committed is "
            "lost. Make room or permission there or name another place, then run the same command again."
        ) from error


def fsync_folder(folder: Path) -> None:
    """Fsync a folder, which makes the names in it durable."""
    with translate_os_errors(folder, 0):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in _FSYNC_UNSUPPORTED:
                raise
        finally:
            os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Create a folder and its parents and fsync each parent."""
    with translate_os_errors(folder, 0):
        missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        for created in missing:
            fsync_folder(created.parent)


def size_of(content: Content) -> int:
    """Return the length in bytes of content to be written."""
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
    """Yield a fsynced temporary file beside `final` that holds the content (not fsynced unless `durable`); remove it if not renamed."""
    size = size_of(content)
    temporary = final.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(4)}-{final.name}"[:200])
    try:
        with translate_os_errors(final, size):
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)  # less the umask
            try:
                write = write_large if durable and size >= LARGE_BYTES else _write_all
                write(descriptor, content)
                if durable:
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)
        yield temporary
    finally:
        with contextlib.suppress(OSError):  # on a read-only file system this would hide the first error
            temporary.unlink()


def write_atomically(path: Path, data: Buffer) -> None:
    """Replace `path` by `data`; readers see the old file or the new one, never a part. Raise `StoreUnavailable`."""
    make_folder(path.parent)
    with _temporary_file(path, [data]) as temporary, translate_os_errors(path, len(data)):
        temporary.rename(path)
    fsync_folder(path.parent)


def create_exclusively(path: Path, content: Content, *, durable: bool = True) -> bool:
    """Create `path` with the content unless it exists; return True when this call created it.

    The order of system calls is write, fsync, link, fsync of the folder, so that a name never refers to unwritten bytes. If the fsync of
    the folder fails, the name is removed again. Without `durable` nothing is fsynced, and after a crash of the machine the file may hold
    anything.
    """
    make_folder(path.parent)
    with _temporary_file(path, content, durable) as temporary, translate_os_errors(path, 0):
        try:
            publish(temporary, path)
        except FileExistsError:
            return False
    if durable:
        _make_name_durable(path)
    return True


def link_exclusively(existing: Path, path: Path) -> bool | None:
    """Give an existing, durable file a second name unless that exists; return True when this call did, None where there are no links."""
    make_folder(path.parent)
    with translate_os_errors(path, 0):
        try:
            os.link(existing, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno in NO_LINKS:
                return None
            raise
    _make_name_durable(path)
    return True


def _make_name_durable(path: Path) -> None:
    try:
        fsync_folder(path.parent)
    except StoreUnavailable:  # a retry would find the name and assume that it is durable
        with contextlib.suppress(OSError):
            path.unlink()
        raise


def sweep(folder: Path, older_than_s: float = STALE_SECONDS) -> int:
    """Remove temporary files of killed writers anywhere below a folder, those unmodified for a day; return their number.

    A running writer finishes its file within minutes, so clocks of machines may differ by hours.
    """
    cutoff, removed = time.time() - older_than_s, 0
    for parent, _, names in os.walk(folder):
        for name in names:
            if name.startswith(TEMPORARY_PREFIX):
                with contextlib.suppress(OSError):  # gone already, or another user's
                    if os.stat(os.path.join(parent, name)).st_mtime < cutoff:
                        os.unlink(os.path.join(parent, name))
                        removed += 1
    return removed


@contextlib.contextmanager
def replace_folder(final: Path) -> Iterator[Path]:
    """Yield a temporary folder that replaces `final` when the block succeeds and is removed when it raises."""
    make_folder(final.parent)
    temporary = final.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(4)}-{final.name}")
    try:
        with translate_os_errors(final, 0):
            temporary.mkdir()
        yield temporary
        readers = temporary.stat().st_mode & 0o666  # safetensors writes files with mode 0600 whatever the umask
        for file in temporary.rglob("*"):
            if file.is_file():
                with contextlib.suppress(OSError):  # file systems without modes, such as vfat
                    file.chmod(readers)
            with translate_os_errors(file, 0):
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
    """Remove a folder and its content; readers find the complete folder or none, and a kill leaves a temporary name."""
    renamed = folder.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(4)}-{folder.name}")
    folder.rename(renamed)
    shutil.rmtree(renamed, ignore_errors=True)


def _fsync_path(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
