"""Show the progress of a command: bars on a terminal, a line every few seconds elsewhere, JSON lines for scripts.

Everything below the command line reports through one callback that takes an event, a flat dict with its kind under "event". Shown are
"progress" (stage, done, total, unit, rate), the trainer's "start" and "step" (step, steps, loss, images_per_s, seconds_left, …), "note"
and "warning" (text); other kinds reach scripts and are otherwise silent. Results go to stdout, all of this to stderr, so that a pipe
stays clean; with `json` the events go to stdout, one object a line, and the result is the last of them.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from ...storage.core.events import Event, OnEvent

QUIET_LINE_EVERY_S = 5.0


@contextmanager
def reporter(*, as_json: bool = False, stream: TextIO | None = None) -> Iterator[OnEvent]:
    """Yield the callback that shows events in the way that fits where stderr (or `stream`) goes."""
    if as_json:
        yield print_json
        return
    stream = stream or sys.stderr
    if not stream.isatty():
        yield Lines(stream)
        return
    console = Console(file=stream)
    with bars(console) as progress:
        yield Bars(progress)


def print_json(event: Event) -> None:
    """Print one event as one line of JSON on stdout; a value JSON does not know is shown as text."""
    print(json.dumps(event, default=str), flush=True)


def bars(console: Console) -> Progress:
    """Return the empty set of bars: stage, bar, counts, rate, time left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[counts]}"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(compact=True),
        console=console,
    )


def amount(value: float, unit: str = "") -> str:
    """Return a count with thousands separated; bytes as megabytes."""
    if unit == "bytes":
        return f"{value / 1e6:,.1f} MB"
    return f"{value:,.{1 if 0 < value < 9.95 and value % 1 else 0}f} {unit}".rstrip()


def as_progress(event: Event) -> dict[str, Any] | None:
    """Return stage, done, total, unit and a rate in words of a progress or trainer's event; None for other kinds."""
    if event.get("event") == "step":
        stage = event.get("stage", "train")
        return {"stage": stage, "done": event["step"], "total": event["steps"], "unit": "", "rate": ", ".join(_of_step(event))}
    if event.get("event") == "progress":
        unit = event.get("unit", "rows")
        words = ", ".join(_of_work(event, unit))
        return {"stage": event["stage"], "done": event["done"], "total": event.get("total"), "unit": unit, "rate": words}
    return None


def _of_step(event: Event) -> Iterator[str]:
    """Yield a step in words: the loss, each teacher's terms of it, images a second, the share of the time spent waiting for data."""
    if event.get("loss") is not None:
        each = [f"{name} {term} {value:.3f}" for name, terms in event.get("losses", {}).items() for term, value in terms.items()]
        yield f"loss {event['loss']:.4f}" + (f" ({', '.join(each)})" if each else "")
    if event.get("images_per_s"):
        yield f"{amount(event['images_per_s'], 'images')}/s"
    if event.get("wait_share") is not None:
        yield f"{100 * event['wait_share']:.1f} % waiting"


def _of_work(event: Event, unit: str) -> Iterator[str]:
    """Yield the rates of some work, how busy the GPUs are, and what went wrong so far."""
    if event.get("rate"):
        yield f"{amount(event['rate'], unit)}/s"
    if event.get("bytes_per_s"):
        yield f"{amount(event['bytes_per_s'], 'bytes')}/s"
    if event.get("gpu_use") is not None:
        yield f"GPU {100 * event['gpu_use']:.0f} %"
    for what, word in (("failed", "failed"), ("retries", "retried")):
        if event.get(what):
            yield f"{event[what]:,} {word}"


def counts(shown: Mapping[str, Any]) -> str:
    """Return how much is done of how much."""
    in_bytes = "bytes" if shown["unit"] == "bytes" else ""
    done = amount(shown["done"], in_bytes)
    return done if shown["total"] is None else f"{done}/{amount(shown['total'], in_bytes)}"


def duration(seconds: float) -> str:
    """Return seconds as people say them: 45 s, 3 min 20 s, 2 h 05 min."""
    rounded = round(seconds)
    if rounded < 60:
        return f"{rounded} s"
    if rounded < 3600:
        return f"{rounded // 60} min {rounded % 60:02d} s"
    return f"{rounded // 3600} h {rounded % 3600 // 60:02d} min"


def text_of(event: Event) -> str | None:
    """Return the text of a note, of a warning with its mark, of a run's start with what was chosen and why; None for other kinds."""
    kind = event.get("event")
    if kind == "start":
        often = event.get("batch_size", 0) / max(1, event["images"])
        repeated = f" (each {often:.1f} times in a batch of {event['batch_size']:,})" if often > 1 else ""
        counts_of = f"{event['parameters']:,} parameters, {event['images']:,} images{repeated}, pixels from {event['pixels']}"
        made_ahead = f", {event['prefetch']}" if "prefetch" in event else ""
        chosen = f"device {event['device']}, precision {event['precision']}{made_ahead}"
        return f"step {event['step']:,} of {event['steps']:,}: {counts_of}, {chosen}"
    if kind not in ("note", "warning"):
        return None
    return f"warning: {event['text']}" if kind == "warning" else str(event["text"])


class Bars:
    """Shows events as bars, one a stage; a bar appears with its stage's first event."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.tasks: dict[str, TaskID] = {}

    def __call__(self, event: Event) -> None:
        """Show one event."""
        text = text_of(event)
        if text is not None:
            self.progress.console.print(text, markup=False, highlight=False)
        shown = as_progress(event)
        if shown is None:
            return
        stage = str(shown["stage"])
        if stage not in self.tasks:
            self.tasks[stage] = self.progress.add_task(stage, total=shown["total"], rate="", counts="")
        self.progress.update(self.tasks[stage], completed=shown["done"], total=shown["total"], rate=shown["rate"], counts=counts(shown))


class Lines:
    """Shows events as plain lines: a stage's first and last, and in between one every few seconds."""

    def __init__(self, stream: TextIO, *, every_s: float = QUIET_LINE_EVERY_S, clock: Callable[[], float] = time.monotonic) -> None:
        self.stream, self.every_s, self.clock = stream, every_s, clock
        self.began: dict[str, tuple[float, int]] = {}
        self.shown_at: dict[str, float] = {}

    def __call__(self, event: Event) -> None:
        """Show one event, or leave it out because its stage was shown a moment ago."""
        text = text_of(event)
        if text is not None:
            print(text, file=self.stream, flush=True)
        shown = as_progress(event)
        if shown is None:
            return
        now, stage = self.clock(), str(shown["stage"])
        ends = shown["total"] is not None and shown["done"] >= shown["total"]
        if ends or now - self.shown_at.get(stage, -1e9) >= self.every_s:
            self.shown_at[stage] = now
            print(self.line(stage, shown, now, event.get("seconds_left")), file=self.stream, flush=True)

    def line(self, stage: str, shown: Mapping[str, Any], now: float, seconds_left: float | None) -> str:
        """Return the line of one stage: counts, share, rate, time left (measured since the stage's first line)."""
        done, total = shown["done"], shown["total"]
        began, done_then = self.began.setdefault(stage, (now, done))
        parts = [counts(shown) + ("" if total is None else f" ({100 * done / max(1, total):.0f} %)")]
        if shown["rate"]:
            parts.append(shown["rate"])
        if seconds_left is None and total is not None and done > done_then:
            seconds_left = (total - done) * (now - began) / (done - done_then)
        if seconds_left:
            parts.append(f"{duration(seconds_left)} left")
        return f"{stage}: {', '.join(parts)}"
