"""The files of a dataset: identity, index, places. The index follows from the images; the digest in the name says whether from these."""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator
from functools import partial
from typing import Any

from ..core.errors import CacheDamaged, EupeError
from ..core.identity import short
from ..images.dataset import ImageDataset, parse_description, part_name
from ..images.indexing import restore_index
from ..objects.content_addressed import MAX_IDENTITY_BYTES
from ..objects.damaged_files import Check, read_or_flaw, set_aside
from ..sources.locations import MAX_PLACE_BYTES, parse_place
from .examiner import Examiner
from .findings import Kind

IMAGES = "the images"
Made = Iterator[tuple[bytes | None, str]]


def examine_dataset(examiner: Examiner, key: str) -> tuple[ImageDataset | None, bool]:
    """Return a dataset, None where its identity is lost, and whether its index is whole."""
    prefix = f"datasets/{key}"
    where, check = f"{prefix}/identity.json", partial(parse_description, prefix=prefix)
    sources = [*_places(examiner, key), *_named_in(examiner, where)]
    data = _file(examiner, "identity", key, where, check, sources, _restored(examiner, key, sources, where), MAX_IDENTITY_BYTES)
    if data is None:
        return None, False
    described = parse_description(data, prefix)
    parts = [_part_is_whole(examiner, key, number, described, sources) for number in range(len(described["index_sha256"]))]
    return ImageDataset(examiner.objects, key), all(parts)


def _file(
    examiner: Examiner, kind: Kind, key: str, where: str, check: Check, sources: list[str], made: Made, limit_bytes: int | None = None
) -> bytes | None:
    """Return a dataset's file, from one walk over its images where nothing else is left of it."""
    known = ", ".join(dict.fromkeys(sources))
    data = examiner.file(kind, where, check, made, lambda: _index_it(examiner, key, known), limit_bytes)
    if data is None and known and not examiner.images:
        examiner.settle(examiner.findings[-1], mended=False, way_out=examiner.repair, source=f"{IMAGES} at {known}")
    return data


def _part_is_whole(examiner: Examiner, key: str, number: int, described: dict[str, Any], sources: list[str]) -> bool:
    where, prefix = f"datasets/{key}/{part_name(number)}", f"datasets/{key}"
    wanted, places = {described["index_sha256"][number]}, [described["source"], *sources]

    def check(data: bytes) -> None:
        if hashlib.sha256(data).hexdigest() not in wanted:
            raise CacheDamaged("is damaged: sha256 differs from identity.json")

    def made() -> Made:
        for restored in _restored(examiner, key, places, where):
            now = parse_description(examiner.objects.read(f"{prefix}/identity.json"), prefix)
            wanted.add(now["index_sha256"][number])  # written again by another version of Arrow, it is named anew
            yield restored

    return _file(examiner, "index", key, where, check, places, made()) is not None


def _restored(examiner: Examiner, key: str, sources: list[str], where: str) -> Made:
    """Yield a dataset's file after its images were walked again, at the first place where they lie; one walk restores all of its files."""
    if not examiner.images:
        return
    for source in dict.fromkeys(sources):
        with contextlib.suppress(EupeError, OSError):  # also of what comes after the index, such as a damaged place
            restore_index(examiner.objects, key, source, examiner.on_event)
        yield read_or_flaw(examiner.objects, where)[0], f"{IMAGES} at {source}"


def _index_it(examiner: Examiner, key: str, known: str) -> str:
    """Return what helps where the store itself cannot."""
    there = f" (they are not, or not as they were, at {known})" if known else ""
    again = examiner.command("index", "SOURCE", "--name", key.rpartition("@")[0])
    return f"the store cannot make it again without the images{there}: run {again}, where SOURCE is the place where they lie now"


def _named_in(examiner: Examiner, where: str) -> list[str]:
    """Return the source that a damaged identity still names, if it can be read: whether it is the right one, its images' digest says."""
    data, _ = read_or_flaw(examiner.objects, where, MAX_IDENTITY_BYTES)
    match = re.search(rb'"source":("(?:[^"\\]|\\.)*")', data or b"")
    if match is None:
        return []
    with contextlib.suppress(ValueError):
        return [str(json.loads(match[1]))]
    return []


def _places(examiner: Examiner, key: str) -> list[str]:
    """Return the further places that can be read; others are set aside, because nothing else knows what they said."""
    sources = []
    again = examiner.command("index", "SOURCE", "--name", key.rpartition("@")[0])
    for name in examiner.objects.names(f"datasets/{key}/places"):
        where = f"datasets/{key}/places/{name}"
        data = examiner.file("place", where, partial(_check_place, where=where), [], lambda: "", MAX_PLACE_BYTES)
        if data is not None:
            sources.append(parse_place(data, where))
            continue
        lost, (said, _) = examiner.findings[-1], read_or_flaw(examiner.objects, where, MAX_PLACE_BYTES)
        text = f"{again}, where SOURCE is that place, notes it again (the file held {(said or b'')[:200]!r})"
        if examiner.acting:
            set_aside(examiner.objects, where)
            examiner.settle(lost, mended=True, source=f"nothing: it was set aside; {text}")
        else:
            examiner.settle(
                lost, mended=False, way_out=f"no reader can use it, and it is set aside when you {examiner.repair}; then {text}"
            )
    return sources


def _check_place(data: bytes, where: str) -> None:
    parse_place(data, where)
    if f"{short(json.loads(data)['file_digest'])}.json" != where.rpartition("/")[2]:
        raise CacheDamaged(f"{where} is another place's file; was a file copied or renamed?")
