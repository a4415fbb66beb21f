"""Report the health of a feature set: committed shards, failed images and why, and, when asked, each byte against its record.

Completeness and failures come from the commit records alone and cost little; only `verify` reads the tokens. An unverified set is shown as
"not verified", never as intact. Reasons are read for the first MOST_REASONS failed images; the count is of all.
"""

from dataclasses import dataclass

import numpy as np

from ...storage.core.events import OnEvent
from ...storage.features.features import FeatureReader
from ...storage.upkeep.maintenance import verify

MOST_REASONS = 12


@dataclass(frozen=True)
class Health:
    """What a feature set holds and lacks; `damaged` is None when it was not verified, else {shard: what is wrong}."""

    key: str
    dataset: str
    rows: int
    images: int
    shards: int
    committed: int
    bytes: int
    codec: str
    failed: int
    reasons: list[tuple[str, str]]
    damaged: dict[int, str] | None

    @property
    def complete(self) -> bool:
        """Whether no shard is missing."""
        return self.committed == self.shards

    @property
    def verdict(self) -> tuple[str, str]:
        """("good" | "there" | "open" | "bad", in words): the worst that is known; good only when every byte was verified."""
        if self.damaged:
            return "bad", f"{len(self.damaged):,} damaged shards: run `features repair`"
        if not self.complete:
            return "open", f"{self.shards - self.committed:,} shards missing: run the same `extract-features` again"
        checked = "complete, not verified" if self.damaged is None else "complete, every byte verified"
        state = "open" if self.failed else "there" if self.damaged is None else "good"
        return state, checked + (f", {self.failed:,} images failed" if self.failed else "")


def health(reader: FeatureReader, on_event: OnEvent, *, verified: bool = False) -> Health:
    """Return a feature set's health; with `verified` every committed byte is read and compared."""
    views = reader.views
    failed = np.unique(reader.failed_rows() // views.views_per_image)
    reasons = []
    for image in failed[:MOST_REASONS].tolist():
        record, image_id = reader.group.record(image // views.images_per_shard), views.dataset.row(image).id
        reasons.append((image_id, record.failed.get(image_id, "") if record is not None else ""))
    damaged = {damage.shard: damage.reason for damage in verify(reader, (1, 1), on_event)} if verified else None
    return Health(
        reader.key, views.dataset.key, reader.rows, len(views.dataset), reader.shards, reader.shards - len(reader.missing_shards()),
        reader.stored_bytes(), reader.codec, len(failed), reasons, damaged,
    )  # fmt: skip
