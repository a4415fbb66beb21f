"""Record under which terms a teacher's weights came into this store; part of no identity.

    teachers/<digest of the teacher's identity>/terms-<digest12 of the note>.json      created exclusively, never changed

What a teacher's name says of its terms needs no note. What its name cannot say has one: the teachers above a run that teaches, weights of
another file than the published one, a licence that the user declared. So a training knows them although the run is gone. Terms are plain
dicts here: `licence`, `non_commercial` (true, false, or null for unknown) and `source`, by the name of whoever they bind.
"""

import json
from collections.abc import Mapping
from typing import Any

from ..core.errors import CacheDamaged
from ..core.identity import digest, json_bytes, short
from ..objects.objects import Objects
from .teacher_files import teacher_folder

TermsRecord = Mapping[str, Mapping[str, Any]]
_PREFIX = "terms-"
_MAX_NOTE_BYTES = 1 << 20


def note_terms(objects: Objects, teacher: Mapping[str, Any], terms: TermsRecord) -> None:
    """Store the terms beside those recorded before; nothing is written where they are there already."""
    data = json_bytes({"terms": terms}, sort_keys=True)
    key = f"{teacher_folder(teacher)}/{_PREFIX}{short(digest(data.decode()))}.json"
    if objects.size(key) is None:  # a complete store may be read-only by now
        objects.create(key, [data])


def noted_terms(objects: Objects, teacher: Mapping[str, Any]) -> list[dict[str, dict[str, Any]]]:
    """Return every note of a teacher's terms; raise `CacheDamaged` for one that cannot be read, since it may hold the strictest."""
    folder, notes = teacher_folder(teacher), []
    for name in objects.names(folder):
        if not name.startswith(_PREFIX):
            continue
        try:
            terms = json.loads(objects.read(f"{folder}/{name}", _MAX_NOTE_BYTES))["terms"]
            notes.append({key: {part: value[part] for part in ("licence", "non_commercial", "source")} for key, value in terms.items()})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            where = f"{folder}/{name}"
            raise CacheDamaged(f"{where} does not say a teacher's terms ({error}); remove it, and extract again with --terms") from error
    return notes
