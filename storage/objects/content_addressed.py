"""Content-addressed sets (datasets, views, features): create one, open one, refuse one that was altered.

`identity.json` holds what the digest in the folder's name was computed from, and is written last. The Zarr metadata beside it follows from
the identity alone, so an altered byte in either is found when the set is opened, before any row is read.
"""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from ..core.errors import BadInput, CacheDamaged, EupeError
from ..core.identity import SHORT_DIGEST, canonical_json, digest, short
from .damaged_files import read_and_check, replace_verified
from .objects import Objects

MAX_IDENTITY_BYTES = 128 << 20
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:+-]{0,99}")
_KEY = re.compile(rf"[^@/\s]+@[0-9a-f]{{{SHORT_DIGEST}}}")


def is_key(name: str) -> bool:
    """Return whether a folder's name is a key NAME@DIGEST; a copy beside it (`KEY.bak`, `KEY copy`, `Copy of KEY`) is not."""
    return _KEY.fullmatch(name) is not None


def check_name(kind: str, name: str) -> str:
    """Return the name if it can stand before the `@` of a key; raise `BadInput` otherwise."""
    if not _NAME.fullmatch(name):
        raise BadInput(f"the name of a {kind} has 1 to 100 letters, digits and '_.:+-', and starts with none of '.:+-'; got {name!r}")
    return name


@contextlib.contextmanager
def parsing(where: str) -> Iterator[None]:
    """Turn every error that parsing raises inside the block into `CacheDamaged`: stored bytes may have been altered in any way."""
    try:
        yield
    except EupeError:
        raise
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        IndexError,
        OverflowError,
        RecursionError,
        MemoryError,
        OSError,
        NotImplementedError,
    ) as error:
        raise CacheDamaged(
            f"{where} is damaged ({type(error).__name__}: {str(error)[:200]}); run `eupe-pipeline features repair`, which makes it "
            "again or says what does"
        ) from error


def create_set(objects: Objects, prefix: str, kind: str, identity: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
    """Write a set's metadata and identity.json; leave an existing set as it is, apart from temporary files of killed writers.

    A damaged identity.json is repaired, because the digest in the folder's name proves which identity it was.
    """
    objects.sweep(prefix)
    where = f"{prefix}/identity.json"
    _, flaw = read_and_check(objects, where, partial(parse_identity, prefix=prefix, kind=kind), MAX_IDENTITY_BYTES)
    if not flaw:
        return
    for name, data in files.items():
        objects.create(f"{prefix}/{name}", [data])
    described = pack_identity(kind, identity)
    if not objects.create(where, [described]):
        replace_verified(objects, where, described)


def pack_identity(kind: str, identity: Mapping[str, Any]) -> bytes:
    """Return the content of `identity.json`."""
    return canonical_json({"kind": kind, "digest": digest(dict(identity)), "identity": dict(identity)})


def read_identity(objects: Objects, prefix: str, kind: str) -> dict[str, Any]:
    """Return the verified identity of a set; raise `CacheDamaged` when it does not match the digest in its key."""
    return parse_identity(read_identity_file(objects, prefix), prefix, kind)


def parse_identity(data: bytes, prefix: str, kind: str) -> dict[str, Any]:
    """Return the identity in the bytes of `identity.json`; raise `CacheDamaged` when it does not match the digest in the key."""
    with parsing(f"{prefix}/identity.json"):
        described = json.loads(data)
        identity: dict[str, Any] = described["identity"]
        claimed_digest = described["digest"]
        if described["kind"] != kind or digest(identity) != claimed_digest or canonical_json(described) != data:
            raise ValueError("its digest differs")
    if prefix.rsplit("@", 1)[-1] != short(claimed_digest):
        raise CacheDamaged(f"{prefix} holds the {kind} @{short(claimed_digest)}; was a folder renamed or copied over?")
    return identity


def read_identity_file(objects: Objects, prefix: str) -> bytes:
    """Return the bytes of a set's `identity.json`; raise `CacheDamaged` when there is none."""
    try:
        return objects.read(f"{prefix}/identity.json", MAX_IDENTITY_BYTES)
    except FileNotFoundError as error:
        raise CacheDamaged(
            f"{prefix} has no identity.json: a run that made it did not end, or the file was removed; run the command that makes it again, "
            "or `eupe-pipeline features repair`"
        ) from error


def check_metadata(objects: Objects, prefix: str, files: Mapping[str, bytes]) -> None:
    """Compare metadata files with what the identity implies; raise `CacheDamaged` naming the file that differs."""
    for name, expected in files.items():
        try:
            data = objects.read(f"{prefix}/{name}", len(expected) + 1)
        except FileNotFoundError as error:
            raise CacheDamaged(f"{prefix}/{name} is missing; it follows from identity.json: run `eupe-pipeline features repair`") from error
        if data != expected:
            raise CacheDamaged(
                f"{prefix}/{name} is not what identity.json implies; it was altered, belongs to another set, or another version wrote it: "
                "run `eupe-pipeline features repair`"
            )


MARKER = "eupe-store.json"
