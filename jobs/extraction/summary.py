"""What an extraction reports: each shard's cost, progress events while it runs, and a JSON-able summary at its end.

Phases overlap, so their shares of the workers' wall time add up to more than 1: `forward` (by the device's own clock) near 1 is a device
that never waits. `wait` is the time in which a worker's teachers had nothing to compute, for want of rendered views or because encoding
lagged behind. `gpu_use` is what the CUDA driver says of the GPUs, at the end of each shard; it is absent on CPUs and without nvidia-ml-py.
"""

import contextlib
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...storage.core.events import Event
from ...storage.shards.commit import Record


@dataclass
class ShardReport:
    """What one shard cost: views, failures by image id, seconds by phase, bytes committed, views in a forward by teacher, back-offs."""

    shard: int
    views: int
    failed: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    bytes: int = 0
    batch_sizes: dict[str, int] = field(default_factory=dict)
    backoffs: int = 0
    taken: dict[str, int] = field(default_factory=dict)  # views by teacher that the statistics had computed
    gpu_use: float | None = None  # share of the last moment
    copied: int = 0  # of the views, whose tokens an earlier version of the dataset gave
    already_committed: bool = False  # another driver had committed it meanwhile: nothing was computed

    @property
    def computed(self) -> int:
        """Views that went through a teacher."""
        return 0 if self.already_committed else self.views - self.copied

    def of_records(self, records: Iterable[Record | None]) -> "ShardReport":
        """Make this the report of a shard that another driver has committed: its failures, nothing spent; returns it."""
        self.already_committed = True
        for record in records:
            self.failed |= {} if record is None else record.failed
        return self

    @contextlib.contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the block's wall time to a phase; one thread a phase."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(phase, time.perf_counter() - start)

    def add(self, phase: str, seconds: float) -> None:
        """Add time to a phase."""
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds


PHASES = ("decode", "wait", "forward", "encode", "write")


def progress(stage: str, done: int, total: int, unit: str, started: float, fresh: int) -> Event:
    """Return a progress event; `fresh` of the `done` were done since `started` (of `time.perf_counter`)."""
    seconds = max(time.perf_counter() - started, 1e-9)
    rate = fresh / seconds
    left = (total - done) / rate if rate else None
    return {"event": "progress", "stage": stage, "done": done, "total": total, "unit": unit, "rate": rate, "seconds_left": left}


def work_done(reports: Sequence[ShardReport], workers: int, seconds: float) -> dict[str, Any]:
    """Return counts and times over finished shards; `seconds` of wall time in which `workers` computed them."""
    views = sum(report.computed for report in reports)
    by_phase = {phase: sum(report.seconds.get(phase, 0.0) for report in reports) for phase in PHASES}
    sizes: dict[str, int] = {}
    taken: Counter[str] = Counter()
    gpu = [report.gpu_use for report in reports if report.gpu_use is not None]
    for report in reports:
        taken.update(report.taken)
        for name, size in report.batch_sizes.items():
            sizes[name] = min(size, sizes.get(name, size))
    return {
        "views_done": views,
        "views_per_second": views / seconds if views else None,
        "bytes_committed": sum(report.bytes for report in reports),
        "views_from_statistics": dict(taken),
        "batch_sizes": sizes,
        "out_of_memory_backoffs": sum(report.backoffs for report in reports),
        "worker_seconds": by_phase,
        "shares_of_time": {phase: spent / (seconds * max(1, workers)) for phase, spent in by_phase.items()} if views else {},
        **({"gpu_use": sum(gpu) / len(gpu)} if gpu else {}),
    }


def combined(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return one summary of several extractions over the same views: counts and tables add up, shares are of the whole time."""
    first, *rest = parts
    total = dict(first)
    for part in rest:
        shares = {key: _over_both(total, part, key) for key in ("shares_of_time", "gpu_use") if total.get(key) or part.get(key)}
        total = {key: _added(total.get(key), part.get(key), key) for key in {**total, **part}} | shares
    if total.get("views_done"):
        total["views_per_second"] = total["views_done"] / total["seconds"]
    if "failed" in total:  # an image may have failed for each teacher
        total["images_failed"] = len(total["failed"])
    return total


def _over_both(left: Mapping[str, Any], right: Mapping[str, Any], key: str) -> Any:
    """Return shares of two times as shares of both; an extraction that did nothing counts for nothing."""
    if not left.get(key) or not right.get(key):
        return left.get(key) or right.get(key)
    weight = left["seconds"] / (left["seconds"] + right["seconds"])
    if isinstance(left[key], Mapping):
        return {name: weight * left[key][name] + (1 - weight) * right[key][name] for name in left[key]}
    return weight * left[key] + (1 - weight) * right[key]


_SAME = ("event", "dry_run", "views", "images", "rows", "shards", "shares_of_time", "gpu_use")


def _added(left: Any, right: Any, key: str) -> Any:
    if left is None or right is None or key in _SAME:
        return right if left is None else left
    if isinstance(left, dict):
        return {name: _added(left.get(name), right.get(name), key) for name in {**left, **right}}
    return left if isinstance(left, str) else left + right
