"""What a dataset's folder lacks, all of it at once: the answer of `evaluate … --check`, given before hours are spent.

A report never stops at the first fault; each finding says what is missing and what to do about it. Files are listed and their sizes read,
pictures are not decoded. A folder that holds an official dataset is held against its published counts.
"""

import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_NAMED = 3


@dataclass
class LayoutReport:
    """What was found below a folder, and what was not."""

    dataset: str
    """What the folder was taken for."""
    data: str
    found: dict[str, int | str] = field(default_factory=dict)
    findings: list[dict[str, str]] = field(default_factory=list)

    def lacks(self, what: str, do: str) -> None:
        """Add a finding: what is missing or wrong, and what to do."""
        self.findings.append({"missing": what, "do": do})

    def count(self, what: str, got: int, official: int | None, do: str) -> None:
        """Record a number, and a finding where it is not the official one; None: any number above 0."""
        self.found[what] = got
        if official is not None and got != official:
            self.lacks(f"{what}: {got:,}, {self.dataset} has {official:,}", do)
        elif not got:
            self.lacks(f"{what}: none", do)

    def files(self, what: str, names: Iterable[str], do: str) -> None:
        """Add one finding for several files, with their number and the first names; none for no file."""
        if listed := sorted(names):
            more = ", …" if len(listed) > _NAMED else ""
            self.lacks(f"{len(listed):,} {what}: {', '.join(listed[:_NAMED])}{more}", do)

    def result(self) -> dict[str, Any]:
        """Return the report as data; `complete` is False where anything is missing."""
        return {
            "check": self.dataset, "data": self.data, "complete": not self.findings, "found": self.found, "findings": self.findings,
        }  # fmt: skip


def empty_files(folder: Path, names: Collection[str]) -> list[str]:
    """Return those of the files below a folder that hold no byte: what a stopped download leaves."""
    return [name for name in names if os.path.getsize(folder / name) == 0]
