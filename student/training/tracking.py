"""Trackers beside a training: a process for each (`tracked_run`) that reads what the run writes to its folder.

The training starts them, shows what they have to say, and tells them how it ended. It gives a finished run's trackers `FINISH_S` to send
what is left, a stopped one's `STOP_S` (SIGTERM has 10 s); what takes longer ends by itself, a minute later at the latest. Price: a Python
process a tracker and student, idle but for a line of metrics now and then.
"""

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ...storage.core.choices import Tracker
from ...storage.core.errors import Interrupted
from ...storage.core.events import Event, OnEvent
from .trackers import End

FINISH_S = 30.0
STOP_S = 2.0


class TrackerProcess:
    """The process that feeds one tracker with one run; its thread collects what it says, and its exit status in the end."""

    def __init__(self, tracker: Tracker, name: str, out: Path, said: "queue.SimpleQueue[Event]") -> None:
        self.tracker = tracker
        module = f"{__package__}.tracked_run"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, tracker, str(out), name], env=environment, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self._thread = threading.Thread(target=self._listen, args=[said], daemon=True, name=f"track-{tracker}")
        self._thread.start()

    def _listen(self, said: "queue.SimpleQueue[Event]") -> None:
        assert self._process.stdout is not None
        with self._process.stdout as output:
            for line in output:
                with contextlib.suppress(ValueError):
                    said.put(json.loads(line))
        if self._process.wait():
            text = f"the process that feeds {self.tracker} ended with status {self._process.returncode}; the training is not concerned"
            said.put({"event": "warning", "text": f"{text}, and metrics.jsonl has all metrics"})

    def end(self, how: End) -> None:
        """Tell it how the training ended."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError), self._process.stdin as words:
            words.write(how.encode())

    def wait(self, seconds: float) -> bool:
        """Wait for its end; returns whether it has ended."""
        self._thread.join(max(0.0, seconds))
        return not self._thread.is_alive()


@contextlib.contextmanager
def tracking(trackers: Sequence[Tracker], runs: Mapping[str, Path], on_event: OnEvent) -> Iterator[OnEvent]:
    """Feed every tracker with every run, by name, while the block runs; yields the callback that shows what they say beside its events."""
    said: queue.SimpleQueue[Event] = queue.SimpleQueue()
    processes: list[TrackerProcess] = []

    def report(event: Event) -> None:
        _show(said, on_event)
        on_event(event)

    for tracker in trackers:
        for name, out in runs.items():
            try:
                processes.append(TrackerProcess(tracker, name, out, said))
            except OSError as error:
                on_event({"event": "warning", "text": f"{tracker} cannot be fed ({error}); the training goes on without it"})
    how: End = "stopped"
    try:
        yield report
        how = "finished"
    except Exception as error:
        how = "stopped" if isinstance(error, Interrupted) else "failed"
        raise
    finally:
        _end(processes, how, said, on_event)


def _end(processes: Sequence[TrackerProcess], how: End, said: "queue.SimpleQueue[Event]", on_event: OnEvent) -> None:
    for process in processes:
        process.end(how)
    until = time.monotonic() + (FINISH_S if how == "finished" else STOP_S)
    late = [process.tracker for process in processes if not process.wait(until - time.monotonic())]
    _show(said, on_event)
    if late:
        text = f"{', '.join(dict.fromkeys(late))} had not got all metrics yet; it ends by itself, within a minute"
        on_event({"event": "note", "text": text})


def _show(said: "queue.SimpleQueue[Event]", on_event: OnEvent) -> None:
    """Report what the processes have said; on the training's own thread, as every event is."""
    with contextlib.suppress(queue.Empty):
        while True:
            on_event(said.get_nowait())
