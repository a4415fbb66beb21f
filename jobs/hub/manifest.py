"""What a repository of ours holds: `eupe-manifest.json` names each file with its length and sha256, and is committed last.

A repository without it was not pushed by us, or not to its end, and nothing is pulled from it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from ...storage.core.errors import CacheDamaged
from ...storage.core.identity import canonical_json

MANIFEST = "eupe-manifest.json"
ContentKind = Literal["export", "run", "features"]
_KINDS = ("export", "run", "features")


@dataclass(frozen=True)
class FileEntry:
    """One file: its length in bytes, and its sha256 in hexadecimal digits."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Kind and name of what was pushed, and its files by path."""

    kind: ContentKind
    name: str
    """Format of an export, name of a run, key of a feature set."""
    files: Mapping[str, FileEntry]

    @property
    def total_bytes(self) -> int:
        """Return the bytes of all files."""
        return sum(entry.bytes for entry in self.files.values())

    def to_bytes(self) -> bytes:
        """Return the file's content."""
        files = {path: {"bytes": entry.bytes, "sha256": entry.sha256} for path, entry in sorted(self.files.items())}
        return canonical_json({"format": 1, "kind": self.kind, "name": self.name, "files": files})

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> "Manifest":
        """Return a manifest; raises CacheDamaged for one that is not ours, or that names a file outside of its folder."""
        try:
            described: dict[str, Any] = json.loads(data)
            if described["format"] != 1 or described["kind"] not in _KINDS:
                raise ValueError(f"it has format {described['format']} and kind {described['kind']}; is this version too old?")
            files = {str(path): FileEntry(int(entry["bytes"]), str(entry["sha256"])) for path, entry in described["files"].items()}
            for path in files:
                if path != PurePosixPath(path).as_posix() or Path(path).is_absolute() or ".." in PurePosixPath(path).parts:
                    raise ValueError(f"it names {path!r}, which is no file of that repository")
            return cls(described["kind"], str(described["name"]), files)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CacheDamaged(f"{where}/{MANIFEST} cannot be used: {error}") from error
