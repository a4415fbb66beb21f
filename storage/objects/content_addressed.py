"""Things that are named by their content: create one, open one, and refuse one that was altered.

`identity.json` holds what the digest in the folder's name was made of, and goes in last. The Zarr metadata beside it follows from the
identity alone, so that an altered byte in either is found when the thing is opened, before a row is read.
"""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from ..core.errors import BadInput, CacheDamaged, EupeError
from ..core.identity import SHORT_DIGEST, canonical_json, digest, short
from .mending import flaw_of, put
from .objects import Objects

MAX_IDENTITY_BYTES = 128 << 20
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:+-]{0,99}")
_KEY = re.compile(rf"[^@/\s]+@[0-9a-f]{{{SHORT_DIGEST}}}")


def is_key(name: str) -> bool:
    """Whether a folder's name is a key, NAME@DIGEST: a copy beside it (`KEY.bak`, `KEY copy`, `Copy of KEY`) is not."""
    return _KEY.fullmatch(name) is not None


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
            f"{where} is damaged ({type(error).__name__}: {str(error)[:200]}); run `eupe-pipeline features repair`, which makes it "
            "again or says what does"
        ) from error


def create_named(objects: Objects, prefix: str, kind: str, identity: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
    """Publish a thing's metadata and its identity; a thing that exists already is left as it is, but for what killed writers left in it.

    An identity that is damaged is put right: its folder's name says that it was this one.
    """
    objects.sweep(prefix)
    where = f"{prefix}/identity.json"
    _, flaw = flaw_of(objects, where, partial(parse_identity, prefix=prefix, kind=kind), MAX_IDENTITY_BYTES)
    if not flaw:
        return
    for name, data in files.items():
        objects.create(f"{prefix}/{name}", [data])
    described = identity_file(kind, identity)
    if not objects.create(where, [described]):
        put(objects, where, described)


def identity_file(kind: str, identity: Mapping[str, Any]) -> bytes:
    """The content of `identity.json`."""
    return canonical_json({"kind": kind, "digest": digest(dict(identity)), "identity": dict(identity)})


def read_identity(objects: Objects, prefix: str, kind: str) -> dict[str, Any]:
    """The checked identity of a thing; raises `CacheDamaged` when it is not what its name says."""
    return parse_identity(read_identity_file(objects, prefix), prefix, kind)


def parse_identity(data: bytes, prefix: str, kind: str) -> dict[str, Any]:
    """The identity in a file's bytes; raises `CacheDamaged` when it is not what the name of its folder says."""
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
            f"{prefix} has no identity.json: a run that made it did not end, or the file was removed; run the command that makes it again, "
            "or `eupe-pipeline features repair`"
        ) from error


def check_metadata(objects: Objects, prefix: str, files: Mapping[str, bytes]) -> None:
    """Compare the metadata files with what the identity implies; raises `CacheDamaged` naming the file."""
    for name, wanted in files.items():
        try:
            found = objects.read(f"{prefix}/{name}", len(wanted) + 1)
        except FileNotFoundError as error:
            raise CacheDamaged(f"{prefix}/{name} is missing; it follows from identity.json: run `eupe-pipeline features repair`") from error
        if found != wanted:
            raise CacheDamaged(
                f"{prefix}/{name} is not what identity.json implies; it was altered, belongs to another set, or another version wrote it: "
                "run `eupe-pipeline features repair`"
            )


MARKER = "eupe-store.json"
