"""Content addressing: canonical JSON, its sha256, and the difference of two identities.

A dataset, a view set or a feature set is named by the digest of everything that decides its bytes, never by a date or a revision word.
Two identities that differ in one value name two sets, and `differing_fields` says which value differs.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

SHORT_DIGEST = 12


def canonical_json(value: Any) -> bytes:
    """Return UTF-8 JSON with sorted keys and no spaces; raise ValueError for NaN, infinities and values that JSON cannot hold."""
    return json_bytes(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def json_bytes(value: Any, **style: Any) -> bytes:
    """Return UTF-8 JSON; `style` goes to `json.dumps`. Bytes of a path that are not UTF-8 become escapes and survive a round trip."""
    try:
        return json.dumps(value, ensure_ascii=False, **style).encode()
    except UnicodeEncodeError:
        return json.dumps(value, **style).encode()


def digest(value: Any) -> str:
    """Return the sha256 of the canonical JSON as 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def short(full_digest: str) -> str:
    """Return the first twelve digits, as used in folder names."""
    return full_digest[:SHORT_DIGEST]


def file_sha256(path: Path) -> str:
    """Return the sha256 of a local file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def ids_digest(image_ids: Iterable[str]) -> str:
    """Return the sha256 over image ids in order, each prefixed with its length so that no two lists of ids give the same bytes."""
    hasher = hashlib.sha256()
    for image_id in image_ids:
        raw = image_id.encode()
        hasher.update(len(raw).to_bytes(4, "little"))
        hasher.update(raw)
    return hasher.hexdigest()


def differing_fields(got: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return a line `path: got …, wanted …` for each leaf in which two identities differ; [] exactly when their digests are equal."""
    lines: list[str] = []
    for key in sorted({*got, *wanted}):
        path = f"{prefix}{key}"
        left, right = got.get(key), wanted.get(key)
        if isinstance(left, Mapping) and isinstance(right, Mapping) and left and right:
            lines += differing_fields(left, right, f"{path}.")
        elif (key in got) != (key in wanted) or canonical_json(left) != canonical_json(right):  # 1, 1.0 and true are different in JSON
            lines.append(f"{path}: got {_shown(got, key)}, wanted {_shown(wanted, key)}")
    return lines


def _shown(identity: Mapping[str, Any], key: str) -> str:
    return repr(identity[key]) if key in identity else "nothing"
