"""Programs of several users of one machine: real processes with made-up user and group numbers, where the tests run as root.

They need no entry in the user database. The interpreter may lie in a folder that other users may not enter (root's home): then they run
in a mount namespace of their own, in which that folder is replaced by one that holds the interpreter alone.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

ANNA, BEN, LAB = 41_001, 41_002, 42_000
CHECKOUT = Path(__file__).parents[2]
_ENTER = 'mount --bind "$1" "$3" && mount -t tmpfs -o mode=755 none "$2" && mkdir -p "$1" && mount --bind "$3" "$1" && shift 3 && exec "$@"'


def closed_folder(path: Path) -> Path | None:
    """The first folder on the way to a path that others may not enter."""
    return next((folder for folder in (*reversed(path.parents), path) if not folder.stat().st_mode & 0o001), None)


class Users:
    """Runs programs as users; `folder` is one that everybody may enter and root alone writes to."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._enter = folder, list[str]()
        interpreter = Path(sys.base_prefix)
        if (closed := closed_folder(interpreter)) is not None:
            (folder / "interpreter").mkdir()
            words = ["unshare", "-m", "sh", "-c", _ENTER, "sh", str(interpreter), str(closed), str(folder / "interpreter")]
            if subprocess.run([*words, "true"], check=False, capture_output=True).returncode:
                pytest.skip(f"other users may not enter {closed}, where Python lies, and mounts are not allowed")
            self._enter = words
        if closed_folder(CHECKOUT) or closed_folder(Path(sys.prefix)):
            pytest.skip("other users may not enter the checkout or its environment")

    def shared(self, name: str, mode: int = 0o2775, owner: int = ANNA) -> Path:
        """A folder of one user and the group LAB."""
        path = self.folder / name
        path.mkdir()
        os.chown(path, owner, LAB)
        path.chmod(mode)
        return path

    def command(self, user: int, words: Sequence[str], groups: Sequence[int] = (LAB,)) -> list[str]:
        """The words that run others as this user, whose own group has the user's number."""
        extra = f"--groups={','.join(map(str, groups))}" if groups else "--clear-groups"
        return [*self._enter, "setpriv", f"--reuid={user}", f"--regid={user}", extra, *words]

    def run(
        self, user: int, program: str, *arguments: object, umask: int = 0o002, groups: Sequence[int] = (LAB,)
    ) -> subprocess.CompletedProcess[str]:
        """Run a Python program, or the command line of the package where it is its name, to its end."""
        code = [str(Path(sys.prefix) / "bin" / program)] if program == "eupe-pipeline" else ["-c", program]
        home = self.folder / f"home-{user}"
        if not home.exists():
            home.mkdir()
            os.chown(home, user, user)
        environment = {**os.environ, "HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
        environment.pop("EUPE_PIPELINE_HOME", None)
        words = self.command(user, [sys.executable, *code, *map(str, arguments)], groups)
        return subprocess.run(words, cwd=CHECKOUT, env=environment, umask=umask, check=False, capture_output=True, text=True, timeout=300)


@pytest.fixture
def users() -> Iterator[Users]:
    """Users and a folder for them, which is removed; skipped where programs cannot be run as another user."""
    if os.geteuid() or shutil.which("setpriv") is None or shutil.which("unshare") is None:
        pytest.skip("only root, with setpriv and unshare, can run programs as other users")
    folder = Path(tempfile.mkdtemp(prefix="eupe-users-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    folder.chmod(0o755)
    try:
        yield Users(folder)
    finally:
        shutil.rmtree(folder)
