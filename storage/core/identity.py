"""Names made of content: canonical JSON, its sha256, and the difference of two identities.

A thing in the store is named by the digest of everything that decides its bytes, never by a date, a revision word or a person's name for
it. Two identities that differ in one value are two things, and `differing_fields` says in which value.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

SHORT_DIGEST = 12


def canonical_json(value: Any) -> bytes:
    """UTF-8 JSON with sorted keys and no spaces; raises ValueError on NaN, infinities and anything that JSON lacks."""
    return json_bytes(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def json_bytes(value: Any, **style: Any) -> bytes:
    """UTF-8 JSON in one of `json.dumps`' styles; bytes of a path that are not UTF-8 stand as escapes, so that they can be read back."""
    try:
        return json.dumps(value, ensure_ascii=False, **style).encode()
    except UnicodeEncodeError:
        return json.dumps(value, **style).encode()


def digest(value: Any) -> str:
    """sha256 of the canonical JSON, as 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def short(full_digest: str) -> str:
    """The first twelve digits, as they stand in folder names."""
    return full_digest[:SHORT_DIGEST]


def file_sha256(path: Path) -> str:
    """sha256 of a local file's bytes, read once in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def ids_digest(image_ids: Iterable[str]) -> str:
    """sha256 over image ids in order, each with its length in front so that no two lists collide by joining."""
    hasher = hashlib.sha256()
    for image_id in image_ids:
        raw = image_id.encode()
        hasher.update(len(raw).to_bytes(4, "little"))
        hasher.update(raw)
    return hasher.hexdigest()


def differing_fields(got: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = "") -> list[str]:
    """One line for each leaf in which two identities differ, none exactly when their digests are equal: `path: got …, wanted …`."""
    lines: list[str] = []
    for key in sorted({*got, *wanted}):
        path = f"{prefix}{key}"
        left, right = got.get(key), wanted.get(key)
        if isinstance(left, Mapping) and isinstance(right, Mapping) and left and right:
            lines += differing_fields(left, right, f"{path}.")
        elif (key in got) != (key in wanted) or canonical_json(left) != canonical_json(right):  # to JSON, 1, 1.0 and true are three
            lines.append(f"{path}: got {_shown(got, key)}, wanted {_shown(wanted, key)}")
    return lines


def _shown(identity: Mapping[str, Any], key: str) -> str:
    return repr(identity[key]) if key in identity else "nothing"
