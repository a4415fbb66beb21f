"""The lines of a run's metrics.jsonl, without torch: their numbers, and a file of them that is read while it grows.

A run that goes on replaces its file by a shorter one, so a reader looks at which file stands there now, and tells lines apart by `place`.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

Place = tuple[int, bool]
START: Place = (-1, False)


def place(line: Mapping[str, Any]) -> Place:
    """Return where a line stands in a run: by its step; an evaluation is written before the losses of its step."""
    return int(line["step"]), "loss" in line


def numbers(line: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    """Return (tag, value) of every number, nested keys joined by `/`; without `step`."""
    tagged: list[tuple[str, float]] = []
    for key, value in line.items():
        if isinstance(value, Mapping):
            tagged += numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and key != "step":
            tagged.append((f"{prefix}{key}", float(value)))
    return tagged


class GrowingLines:
    """The whole lines of a file that another process appends to or replaces."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[bytes] | None = None
        self._rest = b""

    def new(self) -> Iterator[dict[str, Any]]:
        """Yield the lines that have come since the last call: all of them again of a file that was replaced, none without a file."""
        if self._file is None or self._replaced(self._file):
            self.close()
            if not self.path.is_file():
                return
            self._file, self._rest = self.path.open("rb"), b""
        *lines, self._rest = (self._rest + self._file.read()).split(b"\n")
        yield from (json.loads(line) for line in lines if line)

    def _replaced(self, file: IO[bytes]) -> bool:
        try:
            return not os.path.samestat(os.fstat(file.fileno()), self.path.stat())
        except FileNotFoundError:
            return True

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
        self._file = None
