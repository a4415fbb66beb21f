"""What one shard cost, as its worker says it to the driver: small, and free of tensors.

Times are by phase and overlap: `forward` is the device's own, `wait` what the teachers' turn lasted beyond it. One thread adds to a phase.
"""

import contextlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

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
    gpu_use: float | None = None  # share of the last moment
    found: bool = False  # another driver had committed it meanwhile: nothing was computed

    def of_records(self, records: Iterable[Record | None]) -> "ShardReport":
        """This report, of a shard that another driver has committed: its failures, and nothing spent."""
        self.found = True
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
