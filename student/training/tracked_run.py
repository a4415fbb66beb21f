"""The process that feeds one tracker from one run's folder: started by `tracking`, it follows metrics.jsonl until the training ends.

    OUT/tracking/<tracker>/state.json    the run's id there, and how far it was sent: a run that goes on keeps both

    python -m eupe_pipeline.student.training.tracked_run TRACKER OUT NAME

Its input says how the training ended, or is closed when the training is killed; its output has one JSON object a line for the training to
show. A client that fails is tried again and again, and what it missed is sent then; it is told once. Texts of clients are shown without
passwords of URLs and without what stands in variables that are named like secrets.
"""

import contextlib
import fcntl
import json
import os
import re
import secrets
import select
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from ...storage.core.choices import Tracker
from ...storage.objects.atomic_files import write_atomically
from .metric_lines import START, GrowingLines, Place, numbers, place
from .trackers import TRACKERS, Connection, End, TrackedRun

POLL_S = 0.5
RETRY_S = 30.0
DEADLINE_S = 60  # after the training's end, for a client that waits for its server
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
_LONGEST_TEXT = 300
Tell = Callable[[str, str], None]


class State:
    """What is remembered of one tracker between two starts of a training."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "state.json"
        kept: Mapping[str, Any] = json.loads(self.path.read_text()) if self.path.is_file() else {}
        self.id: str | None = kept.get("id")
        self.sent: Place = (int(kept["sent"][0]), bool(kept["sent"][1])) if "sent" in kept else START

    def save(self) -> None:
        """Write it down."""
        write_atomically(self.path, json.dumps({"id": self.id, "sent": self.sent}).encode())


class Feeder:
    """One tracker's run and the lines that it has not got yet."""

    def __init__(self, tracker: Tracker, out: Path, name: str, tell: Tell) -> None:
        self.tracker, self.out, self.name, self.tell = tracker, out, name, tell
        self.state = State(out / "tracking" / tracker)
        self._lines = GrowingLines(out / "metrics.jsonl")
        self._unsent: deque[dict[str, Any]] = deque()
        self._new_id = secrets.token_hex(4)
        self._connection: Connection | None = None
        self._failing = self._told = False

    def feed(self) -> bool:
        """Send what has come; returns whether the client took it all. Whatever it raises is told once."""
        self._unsent.extend(line for line in self._lines.new() if place(line) > self.state.sent)
        try:
            self._send()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a client's whatever; the training must go on
            self._failing = True
            if not self._told:
                self._told = True
                text = f"{self.tracker} does not take this run's metrics ({shown(error)})"
                self.tell("warning", f"{text}. The training goes on; it is tried again, and metrics.jsonl has them all")
            return False
        if self._failing:
            self._failing = False
            self.tell("note", f"{self.tracker} takes this run's metrics again; what it missed was sent")
        return True

    def _send(self) -> None:
        connection = self._connection = self._connection or self._begin()
        while self._unsent:
            line = self._unsent[0]
            if place(line) > self.state.sent:  # a file that was replaced has lines again
                connection.log(int(line["step"]), dict(numbers(line)))
                self.state.sent = place(line)
            self._unsent.popleft()
            if not self._unsent:
                self.state.save()

    def _begin(self) -> Connection:
        recorded = json.loads((self.out / "recipe.json").read_text())
        config = {"recipe": recorded["recipe"], "origins": recorded["origins"]}
        run = TrackedRun(self.out, self.name, self.state.id or self._new_id, self.state.id is not None, config)
        connection = TRACKERS[self.tracker].begin(run)
        self.state.id = connection.id
        self.state.save()
        self.tell("note", f"{self.tracker}: run {connection.id}{f' at {connection.address}' if connection.address else ''}")
        return connection

    def end(self, how: End) -> None:
        """Close the run in the tracker, once everything was sent."""
        if self.feed() and self._connection is not None:
            with contextlib.suppress(Exception, SystemExit):
                self._connection.end(how)


def shown(error: BaseException) -> str:
    """Return an error in one line, without secrets."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    for name, value in os.environ.items():
        if _SECRET.search(name) and len(value) >= 4:
            text = text.replace(value, "***")
    return re.sub(r"//[^/@\s]+@", "//***@", text)[:_LONGEST_TEXT]


def _ended(within_s: float) -> End | None:
    """Wait for the training's end for so long; returns how it ended, None while it runs."""
    if not select.select([0], [], [], within_s)[0]:
        return None
    word = os.read(0, 64).decode()
    return cast(End, word) if word else "stopped"  # "": the training was killed


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process feeds this tracker: the one of a training that was killed may be at its last lines."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _own_output() -> Tell:
    """Return a way to tell the training something; whatever else is printed here is thrown away."""
    output = os.fdopen(os.dup(1), "w")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)

    def tell(event: str, text: str) -> None:
        with contextlib.suppress(OSError):  # the training is gone
            print(json.dumps({"event": event, "text": text}), file=output, flush=True)

    return tell


def main(tracker: Tracker, out: Path, name: str) -> None:
    """Feed a tracker until the training ends."""
    tell = _own_output()
    with _alone(out / "tracking" / tracker):
        feeder, how, wait_s = Feeder(tracker, out, name, tell), None, 0.0
        while how is None:
            how = _ended(wait_s)
            if how is None:
                wait_s = POLL_S if feeder.feed() else RETRY_S
        signal.alarm(DEADLINE_S)
        feeder.end(how)


if __name__ == "__main__":
    main(cast(Tracker, sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
