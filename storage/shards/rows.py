"""Rows of one open shard into the caller's memory: the inner loop of every read.

A row costs one `preadv` and one xxh3; rows that lie side by side share the call, up to 2 MB at once so that the hash finds the bytes still
in the processor's cache. The loop is plain Python over integers and memoryviews: numpy's price per call is higher than the work here (a
row of 655 KB takes 40 µs to read, 5 to hash, the bookkeeping around it 2). Arrays with several rows a chunk read the whole chunk into a
scratch buffer. Nothing is returned before its hash equals the one in the commit record.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.checksums import byte_view, xxh3_64
from ..core.errors import BadInput, CacheDamaged
from ..objects.objects import OpenObject
from .zarr_format import CRC_BYTES, MISSING, ArraySpec

_RUN_BYTES = 2 << 20

Place = tuple[int, int]  # (row within its shard, position in the output)


@dataclass(frozen=True)
class OpenArray:
    """One array's object of a committed shard: the file, where its chunks lie, and what their hashes must be."""

    spec: ArraySpec
    file: OpenObject
    offsets: memoryview  # of uint64, one a chunk
    hashes: memoryview  # xxh3 of each chunk, from the commit record
    where: str


def check_out(spec: ArraySpec, out: NDArray[Any], count: int) -> None:
    """Refuse memory that rows of this array cannot be read into; raise `BadInput`."""
    if out.shape != (count, *spec.shape[1:]) or out.dtype != spec.dtype or not out.flags.c_contiguous or not out.flags.writeable:
        flaws = ("" if out.flags.c_contiguous else ", not contiguous") + ("" if out.flags.writeable else ", read-only")
        raise BadInput(
            f"out for {spec.name} must be writable, C-contiguous {spec.dtype}{(count, *spec.shape[1:])}, got {out.dtype}{out.shape}{flaws}"
        )


def read_rows(array: OpenArray, places: Sequence[Place], out_bytes: memoryview, check: bool) -> None:
    """Fill `out_bytes` with the rows of `places`, which is sorted by row; raise `CacheDamaged` naming the shard."""
    if array.spec.chunk_rows > 1:
        _read_from_blocks(array, places, out_bytes, check)
        return
    step = array.spec.row_bytes + CRC_BYTES
    longest = max(1, _RUN_BYTES // step)
    offsets, start, count = array.offsets, 0, len(places)
    while start < count:
        begin = offsets[places[start][0]]
        if begin == MISSING:
            raise _failed_row(array, places[start][0])
        end = start + 1
        while end < count and end - start < longest and offsets[places[end][0]] == begin + (end - start) * step:
            end += 1
        _read_run(array, places[start:end], begin, out_bytes, check)
        start = end


def _read_run(array: OpenArray, places: Sequence[Place], begin: int, out_bytes: memoryview, check: bool) -> None:
    """Rows that lie side by side: one call, with the stored checksums between them into a scratch buffer."""
    size = array.spec.row_bytes
    rows = [out_bytes[place * size : (place + 1) * size] for _, place in places]
    buffers = rows[:1]
    gap = memoryview(bytearray(CRC_BYTES))
    for row in rows[1:]:
        buffers += (gap, row)
    array.file.read_into(buffers, begin)
    if check:
        for (local, _), row in zip(places, rows, strict=True):
            if xxh3_64(row) != array.hashes[local]:
                raise _damaged_chunk(array, local)


def _read_from_blocks(array: OpenArray, places: Sequence[Place], out_bytes: memoryview, check: bool) -> None:
    """Rows that share chunks: each chunk is read and checked once, its rows are copied out."""
    spec, size = array.spec, array.spec.row_bytes
    block = memoryview(bytearray(spec.chunk_bytes))
    held = -1
    for local, place in places:
        chunk, within = divmod(local, spec.chunk_rows)
        if chunk != held:
            if array.offsets[chunk] == MISSING:
                raise _failed_row(array, local)
            array.file.read_into([block], array.offsets[chunk])
            if check and xxh3_64(block) != array.hashes[chunk]:
                raise _damaged_chunk(array, chunk)
            held = chunk
        out_bytes[place * size : (place + 1) * size] = block[within * size : (within + 1) * size]


def refuse_blank_rows(array_name: str, out: NDArray[Any], where: str) -> None:
    """Raise `CacheDamaged` when a row read is the fill value: rows of failed images inside a chunk that others fill."""
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
