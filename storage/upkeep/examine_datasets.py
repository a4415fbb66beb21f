"""Examine the files of a dataset: identity, index, locations.

The index follows from the images; the digest in the key proves that they are the right ones.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import pyarrow as pa

from ..core.errors import CacheDamaged, EupeError
from ..core.identity import short
from ..images.dataset import PART_IMAGES, ImageDataset, parse_description, part_name
from ..images.growth import versions_named
from ..images.indexing import restore_index
from ..images.locations import MAX_LOCATION_BYTES, parse_location
from ..images.publishing import part_bytes
from ..images.versions import REMOVED_BITS, check_removed_bits, removed_file
from ..objects.content_addressed import MAX_IDENTITY_BYTES
from ..objects.damaged_files import Check, read_or_flaw, set_aside
from .examiner import Examiner
from .findings import Kind

IMAGES = "the images"
Candidates = Iterator[tuple[bytes | None, str]]


def examine_dataset(examiner: Examiner, key: str) -> tuple[ImageDataset | None, bool]:
    """Return a dataset, None where its identity is lost, and whether its index is intact."""
    prefix = f"datasets/{key}"
    where, check = f"{prefix}/identity.json", partial(parse_description, prefix=prefix)
    sources = [*_examine_locations(examiner, key), *_source_in_damaged_identity(examiner, where)]
    data = _examine_file(
        examiner, "identity", key, where, check, sources, _rebuild_from_images(examiner, key, sources, where), MAX_IDENTITY_BYTES
    )
    if data is None:
        return None, False
    described = parse_description(data, prefix)
    parts = [_examine_part(examiner, key, number, described, sources) for number in range(len(described["index_sha256"]))]
    removed = _examine_removed(examiner, key, described, sources)
    return ImageDataset(examiner.objects, key), all(parts) and removed


def _examine_file(
    examiner: Examiner,
    kind: Kind,
    key: str,
    where: str,
    check: Check,
    sources: list[str],
    candidates: Candidates,
    limit_bytes: int | None = None,
) -> bytes | None:
    """Return the correct bytes of a dataset's file, from one walk over its images where nothing else is left of it."""
    known = ", ".join(dict.fromkeys(sources))
    data = examiner.check_file(kind, where, check, candidates, lambda: _advice_to_index(examiner, key, known), limit_bytes)
    if data is None and known and not examiner.images:
        examiner.update_finding(examiner.findings[-1], repaired=False, way_out=examiner.repair, source=f"{IMAGES} at {known}")
    return data


def _examine_part(examiner: Examiner, key: str, number: int, described: dict[str, Any], sources: list[str]) -> bool:
    where, prefix = f"datasets/{key}/{part_name(number)}", f"datasets/{key}"
    known_digests, locations = {described["index_sha256"][number]}, [described["source"], *sources]

    def check(data: bytes) -> None:
        if hashlib.sha256(data).hexdigest() not in known_digests:
            raise CacheDamaged("is damaged: sha256 differs from identity.json")

    def candidates() -> Candidates:
        yield from _from_newer_versions(examiner, key, number, described)
        for restored in _rebuild_from_images(examiner, key, locations, where):
            described_now = parse_description(examiner.objects.read(f"{prefix}/identity.json"), prefix)
            known_digests.add(described_now["index_sha256"][number])  # written again by another version of Arrow, it is named anew
            yield restored

    return _examine_file(examiner, "index", key, where, check, locations, candidates()) is not None


def _from_newer_versions(examiner: Examiner, key: str, number: int, described: dict[str, Any]) -> Candidates:
    """Yield a part of an older version's index made of a newer one's first rows, which are the same where the images did not move."""
    first, last = number * PART_IMAGES, min((number + 1) * PART_IMAGES, described["images"])
    for newer in versions_named(examiner.objects, key.rpartition("@")[0]):
        if described["digest"] in {version.digest for version in newer.earlier}:
            with contextlib.suppress(EupeError, OSError):
                rows = pa.concat_tables(newer.groups()).slice(first, last - first).combine_chunks()
                yield part_bytes(rows), f"the first rows of datasets/{newer.key}"


def _examine_removed(examiner: Examiner, key: str, described: dict[str, Any], sources: list[str]) -> bool:
    """Return whether it is known which images were removed; what is lost follows from the images and the version before."""
    file = removed_file(described)
    if file is None:
        return True
    where, locations = f"datasets/{key}/{REMOVED_BITS}", [described["source"], *sources]
    check = partial(check_removed_bits, described=described, where=where)
    candidates = _rebuild_from_images(examiner, key, locations, where)
    return _examine_file(examiner, "index", key, where, check, locations, candidates, file[0]) is not None


def _rebuild_from_images(examiner: Examiner, key: str, sources: list[str], where: str) -> Candidates:
    """Yield a dataset's file after indexing its images again at each known location; one walk restores all of its files."""
    if not examiner.images:
        return
    for source in dict.fromkeys(sources):
        with contextlib.suppress(EupeError, OSError):  # also of what comes after the index, such as a damaged place
            restore_index(examiner.objects, key, source, examiner.on_event)
        yield read_or_flaw(examiner.objects, where)[0], f"{IMAGES} at {source}"


def _advice_to_index(examiner: Examiner, key: str, known: str) -> str:
    """Return what the user can do where the store cannot repair itself."""
    tried = f" (they are not, or not as they were, at {known})" if known else ""
    again = examiner.command("index", "SOURCE", "--name", key.rpartition("@")[0])
    return f"the store cannot make it again without the images{tried}: run {again}, where SOURCE is the place where they lie now"


def _source_in_damaged_identity(examiner: Examiner, where: str) -> list[str]:
    """Return the source that a damaged identity still names, if readable; the digest of its images shows whether it is the right one."""
    data, _ = read_or_flaw(examiner.objects, where, MAX_IDENTITY_BYTES)
    match = re.search(rb'"source":("(?:[^"\\]|\\.)*")', data or b"")
    if match is None:
        return []
    with contextlib.suppress(ValueError):
        return [str(json.loads(match[1]))]
    return []


def _examine_locations(examiner: Examiner, key: str) -> list[str]:
    """Return the further locations that can be read; move the others aside, because nothing else knows what they said."""
    sources = []
    again = examiner.command("index", "SOURCE", "--name", key.rpartition("@")[0])
    for name in examiner.objects.names(f"datasets/{key}/places"):
        where = f"datasets/{key}/places/{name}"
        data = examiner.check_file("place", where, partial(_check_location, where=where), [], lambda: "", MAX_LOCATION_BYTES)
        if data is not None:
            sources.append(parse_location(data, where))
            continue
        finding, (content, _) = examiner.findings[-1], read_or_flaw(examiner.objects, where, MAX_LOCATION_BYTES)
        text = f"{again}, where SOURCE is that place, notes it again (the file held {(content or b'')[:200]!r})"
        if examiner.may_write:
            set_aside(examiner.objects, where)
            examiner.update_finding(finding, repaired=True, source=f"nothing: it was set aside; {text}")
        else:
            examiner.update_finding(
                finding, repaired=False, way_out=f"no reader can use it, and it is set aside when you {examiner.repair}; then {text}"
            )
    return sources


def _check_location(data: bytes, where: str) -> None:
    parse_location(data, where)
    if f"{short(json.loads(data)['file_digest'])}.json" != where.rpartition("/")[2]:
        raise CacheDamaged(f"{where} is another place's file; was a file copied or renamed?")
