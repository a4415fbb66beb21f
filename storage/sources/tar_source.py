"""WebDataset tar shards, read in place: nothing is unpacked, so a hostile archive cannot write anything.

Images are yielded as they are read, so that at most one is in memory; their labels follow at the end of the tar (`TarEnd`), because a tar
may hold all images first and all labels after them. Links, devices, sparse and duplicate members, names that lead out of the archive, and
files over the limit of `decode` are counted and left out. Compressed tars are refused: their members have no offset.
"""

from collections.abc import Iterator
from typing import Any

from .image_kinds import (
    COMPRESSED_ENDINGS,
    CONTAINER_ENDINGS,
    HEAD_BYTES,
    IMAGE_ENDINGS,
    TEXT_ENDINGS,
    ending_of,
    is_image,
    too_large,
    unsupported_ending,
    unsupported_signature,
)
from .sample_labels import LABEL_ENDINGS, MAX_LABEL_BYTES, Samples
from .source_items import LeftOut, Skipped, SourceImage, SourceItem, bad_name, hidden_file, is_hidden, other_file, printable
from .tar_members import Member, TarMembers

_IGNORED_TYPES = (b"5", b"D", b"V")  # a folder, a folder of an incremental dump, the label of a volume
_ARCHIVE_ENDINGS = (*CONTAINER_ENDINGS, *COMPRESSED_ENDINGS)


def walk_tar(filesystem: Any, full: str, path: str) -> Iterator[SourceItem]:
    """Yield a tar's images in order, what is left out, and at its end the labels; raise `BadInput` for a damaged tar, naming the byte."""
    samples, seen = Samples(path), set[str]()
    with filesystem.open(full, "rb") as file:
        archive = TarMembers(file, path)
        for member in archive:
            if member.kind not in _IGNORED_TYPES:
                yield from _member(archive, member, path, samples, seen)
    yield from samples.assign_labels()


def _refusal(member: Member, seen: set[str]) -> str | None:
    """Return why a member is left out whatever it holds, None when it is a usable file."""
    if not member.is_file:
        return "neither a file nor a folder"
    if member.is_sparse:
        return "a sparse file, which cannot be read in place"
    return bad_name(member.name) or ("a second member of this name" if member.name in seen else None)


def _member(archive: TarMembers, member: Member, path: str, samples: Samples, seen: set[str]) -> Iterator[SourceImage | Skipped | LeftOut]:
    name, ending = f"{path}/{member.name}", ending_of(member.name)
    if bad_name(member.name) is None and is_hidden(member.name):
        yield hidden_file(name)
        return
    reason = _refusal(member, seen) or unsupported_ending(member.name)
    seen.add(member.name)
    if reason is None and ending in _ARCHIVE_ENDINGS:
        reason = "an archive within an archive cannot be read in place; unpack it"
    if reason is not None:
        yield Skipped(printable(name), reason)
    elif ending in LABEL_ENDINGS:
        yield from samples.add_label(member.name, archive.read(min(member.size, MAX_LABEL_BYTES + 1)))
    elif ending in TEXT_ENDINGS:
        yield other_file(name)
    else:
        yield from _image(archive, member, name, path, samples)


def _image(archive: TarMembers, member: Member, name: str, path: str, samples: Samples) -> Iterator[SourceImage | Skipped | LeftOut]:
    """Yield a member as an image, by its ending or its signature, or as a file of another kind."""
    head = archive.read(min(member.size, HEAD_BYTES))
    reason = unsupported_signature(head)
    if reason is None and ending_of(member.name) not in IMAGE_ENDINGS and not is_image(head):
        yield other_file(name)
        return
    reason = reason or too_large(member.size)
    if reason is not None:
        yield Skipped(name, reason)
        return
    samples.add_image(member.name)
    yield SourceImage(name, path, "tar", member.offset, head + archive.read(member.size - len(head)), None)
