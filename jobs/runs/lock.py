"""An exclusive lock on a run's folder: two processes that train into one would overwrite each other's checkpoints and metrics.

The folder itself is locked (flock), so that nothing is left behind and a killed process holds nothing. Between machines that share a file
system the lock is as good as that system's; where it has none, the run goes on without.
"""

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from ...storage.core.errors import BadInput
from ...storage.core.forks import FileLock
from ...storage.objects.atomic_files import make_folder

WAIT_S = 10.0  # for a group of ranks that is being started again while its old first rank dies
_POLL_S = 0.1


@contextlib.contextmanager
def exclusive_run_folder(folder: Path, wait_s: float | None = None) -> Iterator[None]:
    """Lock a run's folder, made if need be; raises `BadInput` when another process still trains there after `WAIT_S`."""
    make_folder(folder)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    lock = FileLock(descriptor)
    try:
        deadline = time.monotonic() + (WAIT_S if wait_s is None else wait_s)
        while not _locked(descriptor):
            if time.monotonic() > deadline:
                raise BadInput(f"another process is training in {folder}; wait for it, or give this run a folder of its own")
            time.sleep(_POLL_S)
        yield
    finally:
        lock.release()


def _locked(descriptor: int) -> bool:
    """Return whether the lock is held now, or cannot be had on this file system at all."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
    return True
