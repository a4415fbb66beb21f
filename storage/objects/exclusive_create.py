"""Give a finished file its final name unless that name exists: the step on which "nothing published is ever replaced" rests.

A hard link does this on any file system that has them, NFS included. Where there are none (vfat, exFAT, many FUSE and network file systems,
folders of some containers), Linux renames exclusively in one atomic step (`renameat2` with RENAME_NOREPLACE). Where there is neither, two
writers could overwrite each other, and writing is refused: opening the final name with O_EXCL would show readers a partial file, and a lock
file would outlive a killed writer.
"""

import ctypes
import errno
import os
from pathlib import Path

from ..core.errors import StoreUnavailable

NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EXDEV, errno.EMLINK, errno.EIO, errno.EOPNOTSUPP, errno.EINVAL, errno.EACCES)
_AT_FDCWD, _RENAME_NOREPLACE = -100, 1


def publish(temporary: Path, final: Path) -> None:
    """Link a finished file to its final name; raise FileExistsError, OSError, or `StoreUnavailable` where the file system cannot do it."""
    try:
        os.link(temporary, final)
    except OSError as link_error:
        if link_error.errno == errno.EEXIST and _same_file(temporary, final):
            return  # NFS: the reply was lost, and the client's second try met the name that the first had made
        if link_error.errno not in NO_LINKS:
            raise
        try:
            rename_exclusively(temporary, final)
        except FileExistsError:
            raise
        except OSError as rename_error:
            raise StoreUnavailable(
                f"cannot publish {final}: this file system has neither hard links ({link_error.strerror}) nor an exclusive rename "
                f"({rename_error.strerror}), without which one writer could replace what another has published. Nothing that was committed "
                "is lost. Name another place, such as a local disk, NFS or s3://, then run the same command again"
            ) from link_error


def _same_file(temporary: Path, final: Path) -> bool:
    try:
        return os.path.samestat(os.lstat(temporary), os.lstat(final))
    except OSError:
        return False


def rename_exclusively(old: Path, new: Path) -> None:
    """Rename in one step unless `new` exists; raise FileExistsError, or OSError where the system cannot do that."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), str(new))
    if rename(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), _RENAME_NOREPLACE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(new))
