"""Checksums of the store: CRC-32C inside Zarr's shards, XXH3 (64 and 128 bits) in commit records."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xxhash
from crc32c import crc32c as _crc32c
from numpy.typing import NDArray


def crc32c(data: Any) -> int:
    """Return the crc32c (Castagnoli) of any contiguous buffer."""
    return int(_crc32c(data))


def byte_view(array: NDArray[Any]) -> memoryview:
    """Return the memory of a contiguous array as bytes, without a copy; writable when the array is."""
    return memoryview(array.reshape(-1).view(np.uint8))  # type: ignore[arg-type]  # numpy's stubs lack the buffer protocol


def xxh3_64(data: Any) -> int:
    """Return the 64-bit xxh3 (seed 0) of any contiguous buffer."""
    return xxhash.xxh3_64_intdigest(data)


def xxh3_128(buffers: Sequence[bytes | memoryview]) -> str:
    """Return the 128-bit xxh3 of the concatenated buffers, in hexadecimal."""
    hasher = xxhash.xxh3_128()
    for buffer in buffers:
        hasher.update(buffer)
    return hasher.hexdigest()
