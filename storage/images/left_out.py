"""Count what a walk left out: how many of each kind, and the first few names of each.

A list of all names would grow with the source (a million of them exceed the limit of an identity); the counts say that something is
missing, the first names where to look.
"""

from collections import Counter
from dataclasses import dataclass, field

from ..sources.source_items import LeftOut, Skipped

FIRST_NAMES = 20  # that an identity keeps
_SHOWN = 3
_MOST_KINDS = 100


@dataclass
class LeftOutCounts:
    """Counts by kind; the first names of lost samples, and of other items that are worth naming."""

    broken: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    first_broken: dict[str, str] = field(default_factory=dict)
    _first_others: dict[str, str] = field(default_factory=dict)
    _others: dict[str, list[str]] = field(default_factory=dict)
    _plain: set[str] = field(default_factory=set)

    def add(self, item: Skipped | LeftOut) -> None:
        """Count an item."""
        what = item.reason if isinstance(item, Skipped) else item.what
        kind = what if what in self.counts or len(self.counts) < _MOST_KINDS else "others"
        self.counts[kind] += 1
        if isinstance(item, Skipped):
            self.broken += 1
            _keep(self.first_broken, item.name, what)
            return
        if item.plain:
            self._plain.add(kind)
        else:
            _keep(self._first_others, item.name, what)
        examples = self._others.setdefault(kind, [])
        if len(examples) < _SHOWN:
            examples.append(item.name)

    @property
    def first(self) -> dict[str, str]:
        """Name → reason of the first few; lost samples first."""
        return dict([*self.first_broken.items(), *self._first_others.items()][:FIRST_NAMES])

    def lines(self) -> list[tuple[str, bool]]:
        """Return a line for each kind other than lost samples, and whether it deserves a warning."""
        return [(self._line(kind, self.counts[kind]), kind not in self._plain) for kind in self._others]

    def _line(self, kind: str, count: int) -> str:
        return f"{kind}: {count:,} ({'; '.join(self._others[kind])}{'; …' if count > _SHOWN else ''})"


def _keep(names: dict[str, str], name: str, why: str) -> None:
    if len(names) < FIRST_NAMES:
        names.setdefault(name, why)
