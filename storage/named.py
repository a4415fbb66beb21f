"""Things that are named by their content: create one, open one, and refuse one that was altered.

`identity.json` holds what the digest in the folder's name was made of, and goes in last. The Zarr metadata beside it follows from the
identity alone, so that an altered byte in either is found when the thing is opened, before a row is read.
"""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from .errors import BadInput, CacheDamaged, EupeError
from .identity import canonical_json, digest, short
from .objects import Objects

MAX_IDENTITY_BYTES = 128 << 20
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:+-]{0,99}")


def check_name(kind: str, name: str) -> str:
    """The name, when it can stand before the `@` of a folder; raises `BadInput`."""
    if not _NAME.fullmatch(name):
        raise BadInput(f"the name of a {kind} has 1 to 100 letters, digits and '_.:+-', and starts with none of '.:+-'; got {name!r}")
    return name


@contextlib.contextmanager
def damage(where: str) -> Iterator[None]:
    """Anything that parsing of stored values raises, as `CacheDamaged`: what we read may have been altered in any way."""
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
            f"{where} is damaged ({type(error).__name__}: {str(error)[:200]}); restore it, or make it again in a new store"
        ) from error


def create_named(objects: Objects, prefix: str, kind: str, identity: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
    """Publish a thing's metadata and its identity; a thing that exists already is left as it is, but for what killed writers left in it."""
    objects.sweep(prefix)
    if objects.size(f"{prefix}/identity.json") is not None:
        return
    for name, data in files.items():
        objects.create(f"{prefix}/{name}", [data])
    described = {"kind": kind, "digest": digest(dict(identity)), "identity": dict(identity)}
    objects.create(f"{prefix}/identity.json", [canonical_json(described)])


def read_identity(objects: Objects, prefix: str, kind: str) -> dict[str, Any]:
    """The checked identity of a thing; raises `CacheDamaged` when it is not what its name says."""
    data = read_identity_file(objects, prefix)
    with damage(f"{prefix}/identity.json"):
        described = json.loads(data)
        identity: dict[str, Any] = described["identity"]
        claimed = described["digest"]
        if described["kind"] != kind or digest(identity) != claimed or canonical_json(described) != data:
            raise ValueError("its digest differs")
    if prefix.rsplit("@", 1)[-1] != short(claimed):
        raise CacheDamaged(f"{prefix} holds the {kind} @{short(claimed)}; was a folder renamed or copied over?")
    return identity


def read_identity_file(objects: Objects, prefix: str) -> bytes:
    """The bytes of a thing's `identity.json`; raises `CacheDamaged` when there is none."""
    try:
        return objects.read(f"{prefix}/identity.json", MAX_IDENTITY_BYTES)
    except FileNotFoundError as error:
        raise CacheDamaged(
            f"{prefix} has no identity.json: a run that made it did not end, or the file was removed; run the command that makes it again"
        ) from error


def check_metadata(objects: Objects, prefix: str, files: Mapping[str, bytes]) -> None:
    """Compare the metadata files with what the identity implies; raises `CacheDamaged` naming the file."""
    for name, wanted in files.items():
        try:
            found = objects.read(f"{prefix}/{name}", len(wanted) + 1)
        except FileNotFoundError as error:
            raise CacheDamaged(f"{prefix}/{name} is missing; it follows from identity.json: run `features verify`") from error
        if found != wanted:
            raise CacheDamaged(
                f"{prefix}/{name} is not what identity.json implies; it was altered, belongs to another set, or another version wrote it: "
                "restore it, or make the set again in a new store"
            )
