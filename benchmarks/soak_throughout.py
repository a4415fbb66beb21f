"""The two commands of a soak that live throughout: a training, and an extraction by a Ray worker, on the store that all others use."""

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from .kill_extract import MARK, SCRIPT, kill_tree, marked
from .soak_watch import Course, growth, ray_folder

POLL_S, STOPPED = 2.0, 2  # seconds between two moments; the status of a command that SIGTERM stops
WARM_UP, WINDOWS = 0.2, 24  # the share of a life that is left out, and into how many windows the rest is cut
SHORTEST_S = 600.0  # a life that says something


def start(out: Path, phase: str, words: Sequence[str]) -> tuple["subprocess.Popen[bytes]", str]:
    """Start a command of a soak, its words into PHASE.log; return it and the mark of all its processes."""
    mark = secrets.token_hex(8)
    folders = {"RAY_TMPDIR": str(ray_folder(out)), "EUPE_PIPELINE_HOME": str(out / "home")}
    environment = {**os.environ, MARK: mark, **folders, "OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}  # Ray's 15 would only wait
    with (out / f"{phase}.log").open("ab") as log:
        child = subprocess.Popen([sys.executable, "-c", SCRIPT, *words], stdout=log, stderr=log, env=environment)
    return child, mark


def outlived(phase: str, mark: str) -> list[str]:
    """Return what failed when processes of an ended command are there ten seconds later, and kill them."""
    deadline = time.monotonic() + 10
    while (left := marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.1)
    if not left:
        return []
    names = sorted({Path(f"/proc/{pid}/comm").read_text().strip() for pid in left if Path(f"/proc/{pid}").exists()})
    kill_tree(mark)
    return [f"{phase}: {len(left)} processes outlive it: {', '.join(names)}"]


class Throughout:
    """Commands that are started once, looked at every two seconds, and stopped by SIGTERM; `courses` is what they held."""

    def __init__(self, out: Path) -> None:
        self.out, self.courses = out, dict[str, Course]()
        self._running: dict[str, tuple[subprocess.Popen[bytes], str]] = {}
        self._began = self._looked = time.monotonic()

    def start(self, commands: Mapping[str, Sequence[str]]) -> None:
        """Start commands, each by its phase's name."""
        self._began = time.monotonic()
        self._running = {phase: start(self.out, phase, words) for phase, words in commands.items()}
        self.courses = {phase: Course() for phase in commands}

    def look(self) -> None:
        """Add a moment to each course, when it is time."""
        if (now := time.monotonic()) - self._looked < POLL_S:
            return
        self._looked = now
        for phase, (child, mark) in self._running.items():
            if child.poll() is None:
                self.courses[phase].look(now - self._began, marked(mark))

    def stop(self) -> list[str]:
        """Send SIGTERM to each and wait; return what failed: an end before, another status, processes that stay."""
        failures = []
        for phase, (child, mark) in self._running.items():
            if child.poll() is not None:
                failures.append(f"{phase}: ended by itself with status {child.returncode}, see {phase}.log")
                continue
            child.send_signal(signal.SIGTERM)
            if (status := child.wait(timeout=120)) != STOPPED:
                failures.append(f"{phase}: status {status} after SIGTERM, not {STOPPED}, see {phase}.log")
            failures += outlived(phase, mark)
        self._running = {}
        return failures

    def flatness(self) -> dict[str, dict[str, tuple[list[float], float]]]:
        """Return of each command, by kind of process and for open files, the windows after the warm-up and by which share they grew."""
        found: dict[str, dict[str, tuple[list[float], float]]] = {}
        for phase, course in self.courses.items():
            life_s = course.moments[-1][0] if course.moments else 0.0
            rows = course.windows((1 - WARM_UP) * life_s / (WINDOWS + 0.5), WARM_UP * life_s) if life_s >= SHORTEST_S else {}
            found[phase] = {name: (values, grown) for name, values in rows.items() if (grown := growth(values)) is not None}
        return found
