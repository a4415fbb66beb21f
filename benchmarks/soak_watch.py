"""What a soak looks at: the memory, open files and processes of a command while it runs, and what is left behind when all have ended.

Memory is that of anonymous and of shared pages (`Pss_Anon` and `Pss_Shmem` of smaps_rollup, a shared page divided among those who have it).
Pages of files are left out: libraries and mapped shards come and go with the page cache and with what other programs map.
"""

import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import numpy as np

SEGMENTS = ("plasma", "ray", "torch_", "psm_", "sem.", "eupe")  # shared memory of Ray, torch, Python and ours; other programs have theirs


def memory_mb(pid: int) -> float:
    """Return a process's own share of memory that no file backs in MB, 0 when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:"))) / 1024


def open_files(pid: int) -> int:
    """Return the number of a process's open files, 0 when it has ended."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0


def kind(pid: int) -> str:
    """Return what a process is: Ray's raylet, gcs_server, worker or helper, or the command itself."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return "ended"
    name = Path(words[0].decode(errors="replace")).name
    if name in ("raylet", "gcs_server"):
        return name
    if name.startswith("ray::_Actor"):
        return "extracting worker"
    return "Ray's helpers" if name.startswith("ray::") or any(b"site-packages/ray/" in word for word in words) else "command"


def growth(values: Sequence[float]) -> float | None:
    """Return by which share the median of the last third of the values exceeds that of the first; None of fewer than six."""
    third = len(values) // 3
    if third < 2:
        return None
    first, last = float(np.median(values[:third])), float(np.median(values[-third:]))
    return last / first - 1 if first else float(last > 0)


@dataclass
class Sample:
    """What a command's process tree used at its most: memory in MB, open files, processes; and whether it was killed."""

    phase: str
    memory_mb: float = 0.0
    files: int = 0
    processes: int = 0
    seconds: float = 0.0
    killed: bool = False
    again: bool = False  # after a kill: it had less to do

    def look(self, pids: Sequence[int]) -> None:
        """Add a moment."""
        self.memory_mb = max(self.memory_mb, sum(map(memory_mb, pids)))
        self.files = max(self.files, sum(map(open_files, pids)))
        self.processes = max(self.processes, len(pids))


@dataclass
class Course:
    """The memory of one long-lived command over its life: a moment's seconds since its start and, by kind of process, MB and open files."""

    moments: list[tuple[float, dict[str, float], int]] = field(default_factory=list)

    def look(self, seconds: float, pids: Iterable[int]) -> None:
        """Add a moment."""
        found: dict[str, float] = {}
        files = 0
        for pid in pids:
            if megabytes := memory_mb(pid):
                found[kind(pid)] = found.get(kind(pid), 0.0) + megabytes
                files += open_files(pid)
        self.moments.append((seconds, found, files))

    def windows(self, window_s: float, warm_up_s: float) -> dict[str, list[float]]:
        """Return the median of each whole window after the warm-up: of every kind's memory, and of `open files`."""
        by_window: dict[int, list[tuple[dict[str, float], int]]] = {}
        for seconds, found, files in self.moments:
            if seconds >= warm_up_s:
                by_window.setdefault(int((seconds - warm_up_s) // window_s), []).append((found, files))
        whole = [by_window[number] for number in sorted(by_window)][:-1]
        kinds = sorted({name for moments in whole for found, _ in moments for name in found})
        rows = {name: [float(np.median([found.get(name, 0.0) for found, _ in moments])) for moments in whole] for name in kinds}
        rows["all"] = [float(np.median([sum(found.values()) for found, _ in moments])) for moments in whole]
        return {**rows, "open files": [float(np.median([files for _, files in moments])) for moments in whole]} if whole else {}


@dataclass
class Leftovers:
    """What may be left behind, by kind: the names that are there."""

    found: dict[str, set[str]] = field(default_factory=dict)

    @classmethod
    def look(cls, out: Path) -> "Leftovers":
        """Return what there is now below a soak's folder and in this machine's shared memory and temporary folder."""
        store, mapped = out / "store", mapped_files()
        segments = [path for path in Path("/dev/shm").glob("*") if path.name.startswith(SEGMENTS) and path.is_file()]
        return cls(
            {
                "temporary files": {str(path) for path in out.rglob(".tmp-*")},
                "leases": {str(path) for path in (store / "leases").rglob("*.json")},
                "probes": {str(path) for path in (store / "probes").rglob("*")},
                "locks": {str(path) for path in out.rglob("*.lock")},
                "kept forwards": {str(path) for path in (out / "home" / "forwards").glob("*")},
                "empty folders": {str(path) for path in store.glob("*/**/*") if path.is_dir() and not any(path.iterdir())},
                "shared memory": {path for path in map(str, segments) if path not in mapped},
                "ray sessions": {str(path) for path in ray_folder(out).glob("ray/session_2*")},
            }
        )

    def beyond(self, before: "Leftovers") -> dict[str, list[str]]:
        """Return what was not there before, by kind."""
        return {kind: sorted(names - before.found.get(kind, set())) for kind, names in self.found.items()}


def mapped_files() -> set[str]:
    """Return the files in shared memory that a living process has mapped."""
    found: set[str] = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            found |= {line.split(maxsplit=5)[5].strip() for line in maps.read_text().splitlines() if "/dev/shm/" in line}
        except OSError:
            continue
    return found


def ray_folder(out: Path) -> Path:
    """Return the folder of Ray's sessions, short enough for its sockets."""
    return Path(tempfile.gettempdir()) / f"soak-{sha256(str(out).encode()).hexdigest()[:8]}"
