"""The folders of a local Ray: ones that this user may write to, with paths short enough for its sockets.

Ray itself takes $RAY_TMPDIR, $TMPDIR or /tmp, and dies there with a traceback when `ray/` below belongs to another user, or when the paths
of its sockets get longer than Linux allows (107 bytes). Its object store wants shared memory; where that cannot be written or is too
small, a folder does, more slowly. A folder that is not Ray's default is logged.
"""

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..storage.core.cache_home import can_be_written
from ..storage.core.errors import BadInput

OBJECT_STORE_BYTES = 128 << 20
SHARED_MEMORY = Path("/dev/shm")
_SOCKET_BYTES = 107
_SESSION = "/session_2026-11-28_00-00-00_000000_0000000/sockets/plasma_store.1"  # the longest below its folder
_DEAD_S = 86_400.0
_LOG = logging.getLogger(__name__)


def ray_init_folders(environment: Mapping[str, str]) -> dict[str, Any]:
    """Return arguments of `ray.init` for folders that Ray would not find, {} where it does; raises `BadInput` where there is none."""
    arguments: dict[str, Any] = {}
    folder, why = ray_folder(environment)
    if why:
        _LOG.warning("%s, so Ray keeps its files in %s", why, folder)
        arguments["_temp_dir"] = str(folder)
    if why := shared_memory_flaw():
        _LOG.warning("%s, so Ray keeps objects in %s, which is slower", why, folder)
        folder.mkdir(parents=True, exist_ok=True)
        arguments["_plasma_directory"] = str(folder)
    return arguments


def ray_folder(environment: Mapping[str, str]) -> tuple[Path, str]:
    """Return Ray's folder, and why it is not the one that Ray would take, "" when it is; raises `BadInput` where there is none."""
    default = Path(environment.get("RAY_TMPDIR") or environment.get("TMPDIR") or "/tmp").absolute() / "ray"
    why = folder_flaw(default)
    if not why:
        return default, ""
    for base in dict.fromkeys((tempfile.gettempdir(), "/tmp", "/var/tmp", str(SHARED_MEMORY))):
        other = Path(base) / f"ray-{os.getuid()}"
        if not folder_flaw(other):
            return other, why
    raise BadInput(f"{why}; set RAY_TMPDIR to a folder of your own with a short name, such as /var/tmp/me")


def folder_flaw(folder: Path) -> str:
    """Return why Ray cannot use a folder, "" when it can."""
    length = len(os.fsencode(folder)) + len(_SESSION)
    if length > _SOCKET_BYTES:
        return f"{folder} is too long by {length - _SOCKET_BYTES} bytes for the names of Ray's sockets"
    try:
        if not can_be_written(folder):
            return f"{folder} cannot be written by this user"
        if folder.exists() and folder.stat().st_uid not in (os.getuid(), 0):
            return f"{folder} is another user's"
    except OSError as error:
        return f"{folder} cannot be used ({error.strerror})"
    return ""


def shared_memory_flaw() -> str:
    """Return why /dev/shm cannot hold Ray's objects, "" when it can, or where there is no such thing."""
    if not SHARED_MEMORY.is_dir():
        return f"{SHARED_MEMORY} is not there" if os.path.isdir("/proc") else ""
    if not os.access(SHARED_MEMORY, os.W_OK | os.X_OK):
        return f"{SHARED_MEMORY} cannot be written"
    free = shutil.disk_usage(SHARED_MEMORY).free
    if free < OBJECT_STORE_BYTES:
        return f"{SHARED_MEMORY} has {free >> 20} MB free, less than {OBJECT_STORE_BYTES >> 20} MB (in Docker: --shm-size=4g)"
    return ""


def own_sessions(folder: Path) -> set[Path]:
    """Return the folders of sessions that this process started; Ray ends their names with its number."""
    return set(folder.glob(f"session_2*_{os.getpid()}"))


def sweep_sessions(folder: Path) -> int:
    """Remove this user's session folders in which nothing was written for a day, of killed processes; return their number.

    A Ray that runs writes into its logs all the time, also that of another container, whose processes cannot be seen.
    """
    removed = 0
    for session in folder.glob("session_2*_*"):
        try:
            newest = max(path.stat().st_mtime for path in (session, *(session / "logs").glob("*")))
            if session.is_symlink() or session.stat().st_uid != os.getuid() or newest > time.time() - _DEAD_S:
                continue
        except OSError:  # another process removes it
            continue
        shutil.rmtree(session, ignore_errors=True)
        removed += 1
    return removed
