"""Where the file of a teacher of the user's own lay when its tokens were extracted: a note for repair and fidelity, in no identity.

    teachers/<digest of the teacher's identity>/<digest12 of the note>.json      created exclusively, never changed

A path decides no token, so it must not name a feature set; yet who mends one next year should not have to remember it. What lies there by
then is believed only by its sha256, which the identity has.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..core.identity import digest, json_bytes, short
from ..objects.objects import Objects

_MAX_NOTE_BYTES = 1 << 20


class TeacherFile(NamedTuple):
    """One place of a teacher's source."""

    file: Path
    function: str
    weights: Path | None
    """What the function was given."""


def note_teacher_file(objects: Objects, teacher: Mapping[str, Any], found: TeacherFile) -> None:
    """Keep the note beside those of other places."""
    note = {"file": str(found.file), "function": found.function, "weights": None if found.weights is None else str(found.weights)}
    data = json_bytes(note, sort_keys=True)
    key = f"{_folder(teacher)}/{short(digest(data.decode()))}.json"
    if objects.size(key) is None:  # a complete store may be read-only by now
        objects.create(key, [data])


def noted_teacher_files(objects: Objects, teacher: Mapping[str, Any]) -> list[TeacherFile]:
    """Every place that was noted; an unreadable note counts for nothing."""
    folder, found = _folder(teacher), []
    for name in objects.names(folder):
        try:
            note = json.loads(objects.read(f"{folder}/{name}", _MAX_NOTE_BYTES))
            weights = note["weights"]
            found.append(TeacherFile(Path(note["file"]), str(note["function"]), None if weights is None else Path(weights)))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


def _folder(teacher: Mapping[str, Any]) -> str:
    return f"teachers/{digest(dict(teacher))}"
