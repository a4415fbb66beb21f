"""Record where the source file of a user's own teacher was at extraction, for repair and fidelity; part of no identity.

    teachers/<digest of the teacher's identity>/<digest12 of the note>.json      created exclusively, never changed

A path decides no token, so it must not be part of a feature set's name; yet a later repair should find the file without the user's help.
The file found there is used only if its sha256 is the one in the identity.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..core.identity import digest, json_bytes, short
from ..objects.objects import Objects

_MAX_NOTE_BYTES = 1 << 20


class TeacherFile(NamedTuple):
    """One location of the file of a user's own teacher."""

    file: Path
    function: str
    """Of a Python file; "" of an ONNX file."""
    weights: Path | None
    """What the function was given."""


def note_teacher_file(objects: Objects, teacher: Mapping[str, Any], location: TeacherFile) -> None:
    """Store a location beside those recorded before."""
    note = {
        "file": str(location.file),
        "function": location.function,
        "weights": None if location.weights is None else str(location.weights),
    }
    data = json_bytes(note, sort_keys=True)
    key = f"{teacher_folder(teacher)}/{short(digest(data.decode()))}.json"
    if objects.size(key) is None:  # a complete store may be read-only by now
        objects.create(key, [data])


def noted_teacher_files(objects: Objects, teacher: Mapping[str, Any]) -> list[TeacherFile]:
    """Return every recorded location; unreadable notes are skipped."""
    folder, locations = teacher_folder(teacher), []
    for name in objects.names(folder):
        try:
            note = json.loads(objects.read(f"{folder}/{name}", _MAX_NOTE_BYTES))
            weights = note["weights"]
            locations.append(TeacherFile(Path(note["file"]), str(note["function"]), None if weights is None else Path(weights)))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return locations


def teacher_folder(teacher: Mapping[str, Any]) -> str:
    """Return the folder of what a store notes of a teacher beside its identity."""
    return f"teachers/{digest(dict(teacher))}"
