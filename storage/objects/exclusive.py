"""Give a finished file its name unless something has it: the one step on which "nothing published is ever replaced" rests.

A hard link does that on any file system that has them, NFS as well. Where there are none (vfat, exFAT, many FUSE and network file systems,
folders of some containers), Linux renames exclusively in one atomic step (`renameat2` with RENAME_NOREPLACE). Where there is neither, two
writers could not be told apart, and writing is refused: an exclusive create of the final name would show readers a part of the file, and a
lock file would outlive a writer that was killed.
"""

import ctypes
import errno
import os
from pathlib import Path

from ..core.errors import StoreUnavailable

_NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EXDEV, errno.EMLINK, errno.EIO, errno.EOPNOTSUPP, errno.EINVAL, errno.EACCES)
_AT_FDCWD, _RENAME_NOREPLACE = -100, 1


def publish(temporary: Path, final: Path) -> None:
    """Name a finished file, whose temporary name may stay; raises FileExistsError, `StoreUnavailable` where it cannot be, and OSError."""
    try:
        os.link(temporary, final)
    except OSError as refused:
        if refused.errno not in _NO_LINKS:
            raise
        try:
            rename_exclusively(temporary, final)
        except FileExistsError:
            raise
        except OSError as error:
            raise StoreUnavailable(
                f"cannot publish {final}: this file system has neither hard links ({refused.strerror}) nor an exclusive rename "
                f"({error.strerror}), without which one writer could replace what another has published. Nothing that was committed is "
                "lost. Name another place, such as a local disk, NFS or s3://, then run the same command again"
            ) from refused


def rename_exclusively(old: Path, new: Path) -> None:
    """Rename in one step unless `new` exists; raises FileExistsError, and OSError where the system cannot do that."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), str(new))
    if rename(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), _RENAME_NOREPLACE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(new))
