"""Repair a damaged shard in place: rows that still match their record are kept, the others are recomputed.

Nothing is removed first. Each object is assembled in memory from kept and recomputed rows and replaces the damaged one atomically; the
record follows last, if it changes at all. A row that was readable stays readable throughout, because its bytes, its offset and its hash do
not change; after a kill the remaining damage is found by the next repair. Recomputed tokens of intact rows must match those
(`existing_objects.chunks_match`), so that another teacher, other images or another image library cannot fill the gaps.

Where only what surrounds the rows is damaged (checksums, the index, the object's length), the object follows from its record and its rows,
and neither teacher nor images are needed.
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
from .commit import ObjectRecord, Record, record_key
from .existing_objects import chunks_match
from .shards import ShardedGroup
from .zarr_format import CRC_BYTES, ArraySpec, ShardObject, build_shard

Present = NDArray[np.bool_]
Chunks = list[memoryview | None]


@dataclass(frozen=True)
class RepairedShard:
    """What repairs a shard: the objects to replace, by array, and the record that is then valid."""

    objects: dict[str, bytes]
    record: Record
    record_changes: bool

    def write_to(self, group: ShardedGroup) -> None:
        """Replace the objects, then the record; read each back."""
        for name, data in self.objects.items():
            replace_verified(group.objects, f"{group.prefix}/{group.specs[name].key(self.record.shard)}", data)
        if self.record_changes:
            group.ledgers.discard(self.record.shard)
            replace_verified(group.objects, f"{group.prefix}/{record_key(self.record.shard)}", self.record.to_bytes())
        group.forget(self.record.shard)


def readable_record(group: ShardedGroup, shard: int) -> Record | None:
    """Return a shard's record, None when it has none or a damaged one."""
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
    """Return the arrays whose object differs from the record, each with the reason."""
    flaws = {}
    for name, entry in record.objects.items():
        data, flaw = read_or_flaw(group.objects, f"{group.prefix}/{entry.key}")
        if not flaw and data is not None and xxh3_128([data]) != entry.xxh3_128:
            flaw = "differs from its record" + ("" if len(data) == entry.bytes else f" ({len(data):,} bytes for {entry.bytes:,})")
        if flaw:
            flaws[name] = flaw
    return flaws


def rebuild_from_rows(group: ShardedGroup, record: Record) -> RepairedShard | None:
    """Return a shard whose rows are all intact, rebuilt from them; None where a row is damaged."""
    objects = {}
    for name in damaged_arrays(group, record):
        spec, entry = group.specs[name], record.objects[name]
        data, _ = read_or_flaw(group.objects, f"{group.prefix}/{entry.key}")
        check = partial(_check_xxh3, entry)
        rebuilt: bytes | None = b"".join(ShardObject(spec, _matching_chunks(spec, entry, data)))
        if xxh3_128([rebuilt or b""]) != entry.xxh3_128:
            rebuilt = undo_bit_flip(data, check)
        if rebuilt is None:
            return None
        objects[name] = rebuilt
    return RepairedShard(objects, record, record_changes=False)


def _check_xxh3(entry: ObjectRecord, data: bytes) -> None:
    if xxh3_128([data]) != entry.xxh3_128:
        raise CacheDamaged(f"{entry.key} is not what its record says")


def repair_shard(
    group: ShardedGroup, fresh: Record, arrays: Mapping[str, NDArray[Any]], present: Present | Mapping[str, Present], trust: bool = True
) -> RepairedShard:
    """Return what repairs a shard, given its recomputed rows; `fresh` is its record without objects.

    `trust`: an existing record belongs to these images and views. Raise `CacheMismatch` where the recomputed rows differ from what was
    stored.
    """
    current = readable_record(group, fresh.shard) if trust else None
    if current is not None and current.failed.keys() != fresh.failed.keys():
        named = ", ".join(sorted(current.failed.keys() ^ fresh.failed.keys())[:5])
        raise CacheMismatch(f"shard {fresh.shard} of {group.prefix}: the images that fail now are not those of its record: {named}")
    affected = _affected_arrays(group, current)
    built = {
        name: build_shard(group.specs[name], arrays[name], present[name] if isinstance(present, Mapping) else present) for name in affected
    }
    stored = {name: read_or_flaw(group.objects, f"{group.prefix}/{group.specs[name].key(fresh.shard)}")[0] for name in affected}
    reusable: dict[str, Chunks] = {name: [None] * len(built[name].chunks) for name in affected}
    if trust:
        reusable = {name: _reusable_chunks(group, name, current, stored[name], built[name]) for name in affected}
    _drop_half_pairs(group, reusable)
    objects, entries = {}, {} if current is None else dict(current.objects)
    for name in affected:
        spec, chunks = (
            group.specs[name],
            [old if old is not None else new for old, new in zip(reusable[name], built[name].chunks, strict=True)],
        )
        shard_object = ShardObject(spec, chunks)
        data = b"".join(shard_object)
        entries[name] = ObjectRecord.of(spec.key(fresh.shard), shard_object.size, shard_object.hashes())
        if data != stored[name]:
            objects[name] = data
    record = replace(current or fresh, objects=entries)
    return RepairedShard(objects, record, record != current)


def _affected_arrays(group: ShardedGroup, current: Record | None) -> list[str]:
    """Return the arrays that may change: damaged ones, and codes or scales whose counterpart is damaged."""
    damaged = set(group.specs) if current is None else set(damaged_arrays(group, current))
    counterparts = set().union(*(pair for pair in _pairs(group) if pair & damaged))
    return [name for name in group.specs if name in damaged | counterparts]


def _pairs(group: ShardedGroup) -> list[set[str]]:
    """Return the arrays that are decoded together, a row a chunk: codes with their scales, those of each layer by themselves."""
    names = [name for name, spec in group.specs.items() if spec.inexact and spec.chunk_rows == 1]
    return [{name for name in names if name.removesuffix("_scale") == codes} for codes in names if not codes.endswith("_scale")]


def _drop_half_pairs(group: ShardedGroup, reusable: Mapping[str, Chunks]) -> None:
    """Recompute scales with their codes and codes with their scales: rounding of two machines must not mix in one value."""
    for pair in _pairs(group):
        paired = [reusable[name] for name in reusable.keys() & pair]
        for n in range(len(paired[0]) if paired else 0):
            if any(chunks[n] is None for chunks in paired):
                for chunks in paired:
                    chunks[n] = None


def _chunk_offsets(spec: ArraySpec, missing: Present) -> list[int | None]:
    """Return the offset of each chunk, None for missing ones; the existing ones are stored back to back."""
    step, rank = spec.chunk_bytes + CRC_BYTES, np.cumsum(~missing) - 1
    return [None if is_missing else int(rank[n]) * step for n, is_missing in enumerate(missing.tolist())]


def _matching_chunks(spec: ArraySpec, entry: ObjectRecord, data: bytes | None) -> Chunks:
    """Return the chunks that match their hash in the record, None for the others and for missing ones."""
    hashes, memory = entry.chunk_hashes(), memoryview(data or b"")
    chunks: Chunks = []
    for n, begin in enumerate(_chunk_offsets(spec, hashes == 0)):
        chunk = None if begin is None else memory[begin : begin + spec.chunk_bytes]
        chunks.append(chunk if chunk is not None and len(chunk) == spec.chunk_bytes and xxh3_64(chunk) == hashes[n] else None)
    return chunks


def _reusable_chunks(group: ShardedGroup, name: str, current: Record | None, data: bytes | None, fresh: ShardObject) -> Chunks:
    """Return the intact chunks of an object, None for chunks to recompute and for missing ones."""
    spec, where = group.specs[name], f"{group.prefix}/{name}"
    if current is None:
        valid = valid_chunks(spec, fresh.missing, data)
        return [old if old is not None and new is not None and chunks_match(spec, old, new) else None
                for old, new in zip(valid, fresh.chunks, strict=True)]  # fmt: skip
    hashes = current.objects[name].chunk_hashes()
    if ((hashes == 0) != fresh.missing).any():
        raise CacheMismatch(f"{where}: other images have rows now than when it was committed")
    reusable = _matching_chunks(spec, current.objects[name], data)
    for n, (old, new) in enumerate(zip(reusable, fresh.chunks, strict=True)):
        if new is not None and not spec.inexact and xxh3_64(new) != hashes[n]:
            raise CacheMismatch(f"{where}: chunk {n} made anew is not what was committed; restore the image library and the images of then")
        if new is not None and old is not None and not chunks_match(spec, old, new):
            raise CacheMismatch(f"{where}: chunk {n} is whole, and what is computed now differs from it: another teacher, or other images")
    return reusable


def valid_chunks(spec: ArraySpec, missing: Present, data: bytes | None) -> Chunks:
    """Return the chunks whose own crc32c holds, for an object without a record; None for the others."""
    memory, chunks = memoryview(data or b""), Chunks()
    for begin in _chunk_offsets(spec, missing):
        end = (begin or 0) + spec.chunk_bytes
        is_valid = begin is not None and crc32c(memory[begin:end]).to_bytes(CRC_BYTES, "little") == memory[end : end + CRC_BYTES]
        chunks.append(memory[begin:end] if is_valid else None)
    return chunks
