"""A damaged shard made whole in its place: rows that still match their record stay as they are, only the others are made anew.

Nothing is taken out first. Each object is built whole in memory from the rows that are right and fresh ones, put over the damaged one in
one step, and the record follows, last, if it has to change at all. A row that could be read before can be read at every moment in between,
because its bytes, its place and its hash do not change; a kill leaves damage that the next repair finds. Fresh tokens of rows that are
whole must be alike to those (`adopt.alike`), so that another teacher, other images or another library cannot fill the gaps.

Where only what stands beside the rows is damaged (checksums, the index, the object's length), the object follows from its record and its
rows, and neither teacher nor images are needed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.checksums import crc32c, xxh3_64, xxh3_128
from ..core.errors import CacheDamaged, CacheMismatch, StoreUnavailable
from ..core.urls import is_url
from ..objects.damaged_files import read_or_flaw, replace_verified, undo_bit_flip
from .adopt import alike
from .commit import ObjectRecord, Record, record_key
from .shards import ShardedGroup
from .zarr_format import CRC_BYTES, ArraySpec, ShardObject, build_shard

Present = NDArray[np.bool_]
Chunks = list[memoryview | None]


@dataclass(frozen=True)
class Healed:
    """What makes a shard whole: the objects that change, by array, and the record that then stands."""

    objects: dict[str, bytes]
    record: Record
    record_changes: bool

    def put_in_place(self, group: ShardedGroup) -> None:
        """Objects, then the record; each is read back."""
        for name, data in self.objects.items():
            replace_verified(group.objects, f"{group.prefix}/{group.specs[name].key(self.record.shard)}", data)
        if self.record_changes:
            group.ledgers.discard(self.record.shard)
            replace_verified(group.objects, f"{group.prefix}/{record_key(self.record.shard)}", self.record.to_bytes())
        group.forget(self.record.shard)


def standing_record(group: ShardedGroup, shard: int) -> Record | None:
    """Return a shard's record, None when it has none that is whole."""
    group.forget(shard)
    try:
        return group.record(shard)
    except CacheDamaged:
        return None
    except StoreUnavailable:
        if is_url(group.objects.url):  # the network, not the store
            raise
        return None


def damaged_arrays(group: ShardedGroup, record: Record) -> dict[str, str]:
    """Return the arrays whose object is not the record's, and why."""
    found = {}
    for name, entry in record.objects.items():
        data, flaw = read_or_flaw(group.objects, f"{group.prefix}/{entry.key}")
        if not flaw and data is not None and xxh3_128([data]) != entry.xxh3_128:
            flaw = "differs from its record" + ("" if len(data) == entry.bytes else f" ({len(data):,} bytes for {entry.bytes:,})")
        if flaw:
            found[name] = flaw
    return found


def from_rows(group: ShardedGroup, record: Record) -> Healed | None:
    """Return a shard whose rows are all there, only what stands beside them damaged; None where a row is damaged."""
    objects = {}
    for name in damaged_arrays(group, record):
        spec, entry = group.specs[name], record.objects[name]
        data, _ = read_or_flaw(group.objects, f"{group.prefix}/{entry.key}")
        check = partial(_refuse_other, entry)
        whole: bytes | None = b"".join(ShardObject(spec, _whole_rows(spec, entry, data)))
        if xxh3_128([whole or b""]) != entry.xxh3_128:
            whole = undo_bit_flip(data, check)
        if whole is None:
            return None
        objects[name] = whole
    return Healed(objects, record, record_changes=False)


def _refuse_other(entry: ObjectRecord, data: bytes) -> None:
    if xxh3_128([data]) != entry.xxh3_128:
        raise CacheDamaged(f"{entry.key} is not what its record says")


def heal(
    group: ShardedGroup, fresh: Record, arrays: Mapping[str, NDArray[Any]], present: Present | Mapping[str, Present], trust: bool = True
) -> Healed:
    """Return what makes a shard whole from its rows computed anew; `fresh` says what is known of it but for its objects.

    `trust`: a record that stands is of these images and views. Raise `CacheMismatch` where the fresh rows are not what was stored.
    """
    standing = standing_record(group, fresh.shard) if trust else None
    if standing is not None and standing.failed.keys() != fresh.failed.keys():
        named = ", ".join(sorted(standing.failed.keys() ^ fresh.failed.keys())[:5])
        raise CacheMismatch(f"shard {fresh.shard} of {group.prefix}: the images that fail now are not those of its record: {named}")
    touched = _touched(group, standing)
    built = {
        name: build_shard(group.specs[name], arrays[name], present[name] if isinstance(present, Mapping) else present) for name in touched
    }
    held_bytes = {name: read_or_flaw(group.objects, f"{group.prefix}/{group.specs[name].key(fresh.shard)}")[0] for name in touched}
    kept: dict[str, Chunks] = {name: [None] * len(built[name].chunks) for name in touched}
    if trust:
        kept = {name: _kept(group, name, standing, held_bytes[name], built[name]) for name in touched}
    _one_forward_a_row(group, kept)
    objects, entries = {}, {} if standing is None else dict(standing.objects)
    for name in touched:
        spec, chunks = group.specs[name], [old if old is not None else new for old, new in zip(kept[name], built[name].chunks, strict=True)]
        mixed = ShardObject(spec, chunks)
        whole = b"".join(mixed)
        entries[name] = ObjectRecord.of(spec.key(fresh.shard), mixed.size, mixed.hashes())
        if whole != held_bytes[name]:
            objects[name] = whole
    record = replace(standing or fresh, objects=entries)
    return Healed(objects, record, record != standing)


def _touched(group: ShardedGroup, standing: Record | None) -> list[str]:
    """Return the arrays that may change: the damaged ones, and those whose rows belong to rows of theirs."""
    bad = set(group.specs) if standing is None else set(damaged_arrays(group, standing))
    return [name for name in group.specs if name in bad or (name in _joint(group) and bad & _joint(group))]


def _joint(group: ShardedGroup) -> set[str]:
    """Arrays of one row a chunk that a teacher's forward gives together: codes and their scales."""
    return {name for name, spec in group.specs.items() if spec.inexact and spec.chunk_rows == 1}


def _one_forward_a_row(group: ShardedGroup, kept: Mapping[str, Chunks]) -> None:
    """Where a row of codes or of scales is made anew, so is the other: two machines' rounding must not meet in one value."""
    joint = [kept[name] for name in kept.keys() & _joint(group)]
    for n in range(len(joint[0]) if joint else 0):
        if any(chunks[n] is None for chunks in joint):
            for chunks in joint:
                chunks[n] = None


def _places(spec: ArraySpec, missing: Present) -> list[int | None]:
    """Return where each chunk begins: those that exist, one behind the other."""
    step, rank = spec.chunk_bytes + CRC_BYTES, np.cumsum(~missing) - 1
    return [None if gone else int(rank[n]) * step for n, gone in enumerate(missing.tolist())]


def _whole_rows(spec: ArraySpec, entry: ObjectRecord, data: bytes | None) -> Chunks:
    """Return the chunks that match their hash in the record; None for those that do not, and for those that do not exist."""
    hashes, memory = entry.chunk_hashes(), memoryview(data or b"")
    kept: Chunks = []
    for n, begin in enumerate(_places(spec, hashes == 0)):
        chunk = None if begin is None else memory[begin : begin + spec.chunk_bytes]
        kept.append(chunk if chunk is not None and len(chunk) == spec.chunk_bytes and xxh3_64(chunk) == hashes[n] else None)
    return kept


def _kept(group: ShardedGroup, name: str, standing: Record | None, data: bytes | None, fresh: ShardObject) -> Chunks:
    """Return what is whole of an object, and stays; None for the chunks that are made anew, and for those that do not exist."""
    spec, where = group.specs[name], f"{group.prefix}/{name}"
    if standing is None:
        sound = sound_chunks(spec, fresh.missing, data)
        return [old if old is not None and new is not None and alike(spec, old, new) else None
                for old, new in zip(sound, fresh.chunks, strict=True)]  # fmt: skip
    hashes = standing.objects[name].chunk_hashes()
    if ((hashes == 0) != fresh.missing).any():
        raise CacheMismatch(f"{where}: other images have rows now than when it was committed")
    kept = _whole_rows(spec, standing.objects[name], data)
    for n, (old, new) in enumerate(zip(kept, fresh.chunks, strict=True)):
        if new is not None and not spec.inexact and xxh3_64(new) != hashes[n]:
            raise CacheMismatch(f"{where}: chunk {n} made anew is not what was committed; restore the image library and the images of then")
        if new is not None and old is not None and not alike(spec, old, new):
            raise CacheMismatch(f"{where}: chunk {n} is whole, and what is computed now differs from it: another teacher, or other images")
    return kept


def sound_chunks(spec: ArraySpec, missing: Present, data: bytes | None) -> Chunks:
    """Return the chunks whose own checksum holds, of an object that no record describes."""
    memory, kept = memoryview(data or b""), Chunks()
    for begin in _places(spec, missing):
        end = (begin or 0) + spec.chunk_bytes
        sound = begin is not None and crc32c(memory[begin:end]).to_bytes(CRC_BYTES, "little") == memory[end : end + CRC_BYTES]
        kept.append(memory[begin:end] if sound else None)
    return kept
