"""Accept an object that another writer has published for the same shard, after comparing it with our own.

Two writers of one shard meet when a job is retried or planned twice. Nothing published is replaced, so the second writer records the first
one's object, after three checks: its checksums hold, it has the same rows as ours, and its content is ours. Views must be equal to the
byte. Tokens may differ as two runs of one teacher on two machines do: by a tenth of their norm. An object of another shard, other images or
another teacher differs by more, and is refused instead of being given a valid record.
"""

import numpy as np
from numpy.typing import NDArray

from ..core.checksums import crc32c, xxh3_64, xxh3_128
from ..core.errors import CacheDamaged
from .commit import ObjectRecord
from .zarr_format import CRC_BYTES, MISSING, ArraySpec, ShardObject, parse_index

MAX_DIFFERENCE = 0.1


def accept_existing(spec: ArraySpec, shard: int, ours: ShardObject, data: bytes, where: str) -> ObjectRecord:
    """Return the record entry of the published object `data`; raise `CacheDamaged` when it is damaged or is not this shard's."""
    if len(data) < spec.index_bytes:
        raise _refusal(where, f"it has {len(data)} bytes")
    tail = data[-spec.index_bytes :]
    index = parse_index(spec, tail, len(data), where)
    if ((index[:, 0] == MISSING) != ours.missing).any():
        raise _refusal(where, "it has tokens for other images than this run has")
    hashes = np.zeros(spec.chunks_per_shard, np.uint64)
    for number, (offset, length) in enumerate(index.tolist()):
        if offset == MISSING:
            continue
        theirs = data[offset : offset + length - CRC_BYTES]
        hashes[number] = xxh3_64(theirs)
        if crc32c(theirs).to_bytes(CRC_BYTES, "little") != data[offset + length - CRC_BYTES : offset + length]:
            raise _refusal(where, f"chunk {number} fails its checksum")
        our_chunk = ours.chunks[number]
        assert our_chunk is not None
        if theirs != our_chunk and not chunks_match(spec, theirs, our_chunk):
            raise _refusal(where, f"chunk {number} is not what this run computes for these images")
    index_crc = int.from_bytes(tail[-CRC_BYTES:], "little")
    return ObjectRecord.of(spec.key(shard), len(data), (index_crc, xxh3_128([data]), hashes))


def chunks_match(spec: ArraySpec, theirs: bytes | memoryview, ours: bytes | memoryview) -> bool:
    """Return whether two chunks hold the same rows, up to a teacher's rounding."""
    if not spec.inexact:
        return bytes(theirs) == bytes(ours)
    left, right = _values(spec, theirs), _values(spec, ours)
    if not np.array_equal(np.isnan(left), np.isnan(right)):
        return False
    left, right = np.nan_to_num(left), np.nan_to_num(right)
    return float(np.linalg.norm(left - right)) <= MAX_DIFFERENCE * float(np.linalg.norm(right))


def _values(spec: ArraySpec, chunk: bytes | memoryview) -> NDArray[np.float64]:
    return np.frombuffer(chunk, spec.dtype).astype(np.float64)


def _refusal(where: str, why: str) -> CacheDamaged:
    return CacheDamaged(f"{where} was published without a commit record and cannot be adopted: {why}; remove that file and run again")
