"""Read rows of one open shard into the caller's memory: the inner loop of every read.

A row costs one `preadv` and one xxh3; adjacent rows share a call, up to 2 MB at once so that the hash finds the bytes still in the
processor's cache. The loop is plain Python over integers and memoryviews: numpy's cost per call is higher than the work here (a row of 655
KB takes 40 µs to read, 5 to hash, the bookkeeping around it 2). Arrays with several rows a chunk read the whole chunk into a scratch
buffer. Nothing is returned before its hash equals the one in the commit record.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..core.checksums import byte_view, xxh3_64
from ..core.errors import BadInput, CacheDamaged, StoreUnavailable
from ..objects.objects import OpenObject
from .zarr_format import CRC_BYTES, MISSING, ArraySpec

_MAX_RUN_BYTES = 2 << 20

Result = TypeVar("Result")
RowSlot = tuple[int, int]  # (row within its shard, row of the output)


@dataclass(frozen=True)
class OpenArray:
    """One array's object of a committed shard: the file, the offsets of its chunks, and their expected hashes."""

    spec: ArraySpec
    file: OpenObject
    offsets: memoryview  # of uint64, one a chunk
    hashes: memoryview  # xxh3 of each chunk, from the commit record
    where: str


def check_out(spec: ArraySpec, out: NDArray[Any], count: int) -> None:
    """Raise `BadInput` for memory that `count` rows of this array cannot be read into."""
    if out.shape != (count, *spec.shape[1:]) or out.dtype != spec.dtype or not out.flags.c_contiguous or not out.flags.writeable:
        flaws = ("" if out.flags.c_contiguous else ", not contiguous") + ("" if out.flags.writeable else ", read-only")
        raise BadInput(
            f"out for {spec.name} must be writable, C-contiguous {spec.dtype}{(count, *spec.shape[1:])}, got {out.dtype}{out.shape}{flaws}"
        )


def read_rows(array: OpenArray, slots: Sequence[RowSlot], out_bytes: memoryview, check: bool) -> None:
    """Fill `out_bytes` with the rows of `slots`, which are sorted by row; raise `CacheDamaged` naming the shard."""
    if array.spec.chunk_rows > 1:
        _read_from_blocks(array, slots, out_bytes, check)
        return
    step = array.spec.row_bytes + CRC_BYTES
    longest = max(1, _MAX_RUN_BYTES // step)
    offsets, start, count = array.offsets, 0, len(slots)
    while start < count:
        begin = offsets[slots[start][0]]
        if begin == MISSING:
            raise _failed_row(array, slots[start][0])
        end = start + 1
        while end < count and end - start < longest and offsets[slots[end][0]] == begin + (end - start) * step:
            end += 1
        _read_run(array, slots[start:end], begin, out_bytes, check)
        start = end


def _read_run(array: OpenArray, slots: Sequence[RowSlot], begin: int, out_bytes: memoryview, check: bool) -> None:
    """Read adjacent rows by one call; the stored checksums between them go into a scratch buffer."""
    size = array.spec.row_bytes
    rows = [out_bytes[slot * size : (slot + 1) * size] for _, slot in slots]
    buffers = rows[:1]
    gap = memoryview(bytearray(CRC_BYTES))
    for row in rows[1:]:
        buffers += (gap, row)
    array.file.read_into(buffers, begin)
    if check:
        for (local, _), row in zip(slots, rows, strict=True):
            if xxh3_64(row) != array.hashes[local]:
                raise _damaged_chunk(array, local)


def _read_from_blocks(array: OpenArray, slots: Sequence[RowSlot], out_bytes: memoryview, check: bool) -> None:
    """Read rows that share chunks: each chunk is read and checked once, its rows are copied out."""
    spec, size = array.spec, array.spec.row_bytes
    block = memoryview(bytearray(spec.chunk_bytes))
    loaded_chunk = -1
    for local, slot in slots:
        chunk, within = divmod(local, spec.chunk_rows)
        if chunk != loaded_chunk:
            if array.offsets[chunk] == MISSING:
                raise _failed_row(array, local)
            array.file.read_into([block], array.offsets[chunk])
            if check and xxh3_64(block) != array.hashes[chunk]:
                raise _damaged_chunk(array, chunk)
            loaded_chunk = chunk
        out_bytes[slot * size : (slot + 1) * size] = block[within * size : (within + 1) * size]


def refuse_fill_values(array_name: str, out: NDArray[Any], where: str) -> None:
    """Raise `CacheDamaged` when a row is the fill value: the row of a failed image in a chunk that others fill."""
    if out.dtype.kind == "f" and out.size and np.isnan(out.reshape(len(out), -1)[:, 0]).any():
        raise CacheDamaged(f"{array_name} of {where}: a row has no tokens because its image failed; see `failed_rows`")


def _failed_row(array: OpenArray, local: int) -> CacheDamaged:
    return CacheDamaged(f"{array.where}: row {local} has no tokens because its image failed; see the record's failed images")


def _damaged_chunk(array: OpenArray, chunk: int) -> CacheDamaged:
    return CacheDamaged(
        f"{array.where} is damaged: chunk {chunk} differs from the hash in its record; "
        "run `eupe-pipeline features verify` to see all damage"
    )


def flat_bytes(out: NDArray[Any]) -> memoryview:
    """Return the caller's memory as one writable byte string."""
    return byte_view(out)


def group_by_shard(rows: NDArray[np.int64], order: NDArray[np.int64], shard_rows: int) -> list[tuple[int, list[RowSlot]]]:
    """Return the rows by shard, in the sorted `order`: [(shard, [(row within the shard, output row), …]), …]."""
    shards, local = np.divmod(rows[order], shard_rows)
    slots: list[RowSlot] = list(zip(local.tolist(), order.tolist(), strict=True))
    bounds = [0, *(np.flatnonzero(np.diff(shards)) + 1).tolist(), len(slots)]
    return [(int(shards[a]), slots[a:b]) for a, b in pairwise(bounds) if b > a]


def retry_with_fresh_copy(file: OpenObject, call: Callable[[], Result]) -> Result:
    """Return the result of reading from `file`; if that fails and `file` is a cached copy, recheck the copy and read once more."""
    try:
        return call()
    except (CacheDamaged, StoreUnavailable):
        if not file.recheck():
            raise
        return call()
