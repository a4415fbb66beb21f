"""Findings of an examination: a file that is not what it must be, what it can be rebuilt from, and the way out."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

Kind = Literal["marker", "identity", "index", "place", "metadata", "statistics", "ledger", "record", "shard", "canary", "lease", "subset"]


@dataclass(frozen=True)
class Finding:
    """One damaged, missing or unreadable file, or one that cannot be judged before another is repaired."""

    kind: Kind
    where: str
    """Its key in the store."""
    what: str
    """What is wrong with it."""
    source: str
    """What it is made again from; "" where the store knows nothing."""
    way_out: str
    """The command that helps, and what it needs; "" where it is repaired."""
    shard: int | None = None
    """Of a record or an object of a shard."""
    repaired: bool = False
    unfinished: bool = False
    """No damage that is known of: a writer that was killed leaves objects without a record, too."""

    def as_json(self) -> dict[str, Any]:
        """Return the finding as a JSON-able dict."""
        return asdict(self)

    def __str__(self) -> str:
        made = f" from {self.source}" if self.source else ""
        if self.repaired:
            return f"{self.kind} {self.where} {self.what}: made again{made}"
        return f"{self.kind} {self.where} {self.what}; {'can be made again' + made + ': ' if made else ''}{self.way_out}"
