"""Ray's actors of the running test, found as processes: what a test kills must be its own."""

import os
from pathlib import Path


def parent(pid: int) -> int:
    """A process's parent, 0 when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def is_ours(pid: int) -> bool:
    """Whether a process descends from this one."""
    while pid > 1 and pid != os.getpid():
        pid = parent(pid)
    return pid == os.getpid()


def actor_pids(title: bytes = b"ray::_Actor") -> set[int]:
    """Processes of this test's actors; with the title `ray::_Actor.do`, those at work on a task."""
    found = set()
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and (entry / "cmdline").read_bytes().startswith(title) and is_ours(int(entry.name)):
                found.add(int(entry.name))
        except OSError:
            continue
    return found
