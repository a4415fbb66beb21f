"""Standard Zarr v3 on disk, written and parsed by this package: metadata, sharded objects, their indexes.

Any Zarr client reads what is written here (the tests use zarr-python and tensorstore). We do not write through zarr-python because its
row-wise reads reach 8 % of the rate of `preadv` here, and because a partial write to a shard is a read-modify-write that loses rows between
two writers. Each array has one object a shard: inner chunks in order, each followed by its crc32c, then the index and its crc32c. Limits:
little-endian, C order, no compression (9–17 % of bytes for five times the read time), one shard along every axis but the first.
"""

import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from ..core.checksums import byte_view, crc32c, xxh3_64
from ..core.errors import BadInput, CacheDamaged
from ..objects.large_files import Streamed

MISSING = 2**64 - 1
CRC_BYTES = 4
MAX_ROW_BYTES = 1 << 30
MAX_SHARD_ROWS = 1 << 30
_DATA_TYPES = {
    "bool": "bool",
    "int8": "int8",
    "uint8": "uint8",
    "uint16": "uint16",
    "int32": "int32",
    "float16": "float16",
    "float32": "float32",
}


def group_metadata(attributes: dict[str, Any], members: Mapping[str, bytes] | None = None) -> bytes:
    """Return zarr.json of a group; `members` (path → zarr.json) become zarr-python's consolidated metadata.

    A client then lists the arrays without probing our other files, and opens the group of an object store with one request.
    """
    described: dict[str, Any] = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    if members is not None:
        parsed = {path: json.loads(data) for path, data in members.items()}
        described["consolidated_metadata"] = {"kind": "inline", "must_understand": False, "metadata": parsed}
    return _json(described)


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False).encode()


def _bytes_codec(dtype: np.dtype[Any]) -> dict[str, Any]:
    return {"name": "bytes"} if dtype.itemsize == 1 else {"name": "bytes", "configuration": {"endian": "little"}}


@dataclass(frozen=True)
class ArraySpec:
    """One array: its name in the group, shape (rows, …), element type and chunking; its zarr.json follows from these."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    shard_rows: int
    chunk_rows: int
    dimension_names: tuple[str, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    inexact: bool = False  # computed by a teacher: a run on another machine gives nearly equal values

    def __post_init__(self) -> None:
        if self.row_bytes > MAX_ROW_BYTES or not 0 < self.chunk_rows <= self.shard_rows <= MAX_SHARD_ROWS:
            raise BadInput(
                f"{self.name}: rows of {self.row_bytes:,} bytes, {self.shard_rows:,} a shard are beyond this format's limits of "
                f"{MAX_ROW_BYTES:,} and {MAX_SHARD_ROWS:,}; take smaller inputs, fewer tokens or smaller shards"
            )

    @property
    def fill_value(self) -> Any:
        """NaN for floats, so that an absent row is never taken for a token."""
        if self.dtype.kind == "f":
            return "NaN"
        return False if self.dtype.kind == "b" else 0

    @cached_property
    def chunk_bytes(self) -> int:
        """Bytes of an inner chunk without its checksum."""
        return self.chunk_rows * self.row_bytes

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize

    @cached_property
    def chunks_per_shard(self) -> int:
        """Entries of a shard's index."""
        return self.shard_rows // self.chunk_rows

    @cached_property
    def index_bytes(self) -> int:
        """Bytes of a shard's index with its checksum."""
        return 16 * self.chunks_per_shard + CRC_BYTES

    def metadata(self) -> bytes:
        """Return zarr.json of the array."""
        inner = [_bytes_codec(self.dtype), {"name": "crc32c"}]
        index = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
        sharding = {
            "chunk_shape": [self.chunk_rows, *self.shape[1:]],
            "codecs": inner,
            "index_codecs": index,
            "index_location": "end",
        }
        shard_shape = [self.shard_rows, *self.shape[1:]]
        return _json(
            {
                "zarr_format": 3,
                "node_type": "array",
                "shape": list(self.shape),
                "data_type": _DATA_TYPES[self.dtype.name],
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shard_shape}},
                "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
                "fill_value": self.fill_value,
                "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
                "attributes": self.attributes,
                "dimension_names": list(self.dimension_names),
                "storage_transformers": [],
            }
        )

    def key(self, shard: int) -> str:
        """Return the key of a shard's object, relative to the group."""
        return f"{self.name}/c.{shard}" + ".0" * (len(self.shape) - 1)


class ShardObject(Streamed):
    """The bytes of a shard, hashed while they are iterated over: chunk, its crc32c, chunk, its crc32c, …, the index.

    A row passes through the processor's cache once for its checksum, both hashes and the copy that is written.
    """

    def __init__(self, spec: ArraySpec, chunks: Sequence[memoryview | None]) -> None:
        self._spec, self.chunks = spec, chunks
        self.missing = np.array([chunk is None for chunk in chunks])
        self.size = int((~self.missing).sum()) * (spec.chunk_bytes + CRC_BYTES) + spec.index_bytes
        self._hashes: tuple[int, str, NDArray[np.uint64]] | None = None

    def __iter__(self) -> Iterator[bytes | memoryview]:
        """Yield the buffers to be written, in order."""
        whole, hashes = xxhash.xxh3_128(), np.zeros(len(self.chunks), np.uint64)
        index, offset = np.full((len(self.chunks), 2), MISSING, "<u8"), 0
        for number, chunk in enumerate(self.chunks):
            if chunk is None:
                continue
            checksum = crc32c(chunk).to_bytes(CRC_BYTES, "little")
            hashes[number] = xxh3_64(chunk)
            whole.update(chunk)
            whole.update(checksum)
            index[number] = offset, len(chunk) + CRC_BYTES
            offset += len(chunk) + CRC_BYTES
            yield chunk
            yield checksum
        index_crc = crc32c(index.tobytes())
        tail = index.tobytes() + index_crc.to_bytes(CRC_BYTES, "little")
        whole.update(tail)
        self._hashes = index_crc, whole.hexdigest(), hashes
        yield tail

    def hashes(self) -> tuple[int, str, NDArray[np.uint64]]:
        """Return what the record holds: crc32c of the index, 128-bit xxh3 of all, 64-bit xxh3 of each chunk (0 where missing)."""
        if self._hashes is None:
            deque(self, maxlen=0)
        assert self._hashes is not None
        return self._hashes


def build_shard(spec: ArraySpec, rows: NDArray[Any], present: NDArray[np.bool_]) -> ShardObject:
    """Return a shard of n ≤ shard_rows rows; chunks without a present row are left out and read as the fill value."""
    return ShardObject(spec, _chunks(spec, rows, present))


def _chunks(spec: ArraySpec, rows: NDArray[Any], present: NDArray[np.bool_]) -> list[memoryview | None]:
    if rows.dtype != spec.dtype or rows.shape[1:] != spec.shape[1:] or len(rows) > spec.shard_rows:
        raise ValueError(f"{spec.name}: rows {rows.dtype}{rows.shape} do not fit {spec.dtype}{spec.shape}")
    keep: NDArray[np.bool_]
    if spec.chunk_rows > 1:  # few and small: pad and blank in a copy
        padded = np.full((spec.shard_rows, *spec.shape[1:]), np.nan if spec.dtype.kind == "f" else 0, spec.dtype)
        padded[: len(rows)][present] = rows[present]
        blocks = padded.reshape(spec.chunks_per_shard, spec.chunk_rows, -1)
        filled = np.zeros(spec.shard_rows, np.bool_)
        filled[: len(rows)] = present
        keep = np.any(filled.reshape(spec.chunks_per_shard, -1), axis=1)
    else:
        blocks = np.ascontiguousarray(rows)
        keep = present
    views: list[memoryview | None] = [byte_view(block) if keep[n] else None for n, block in enumerate(blocks)]
    return views + [None] * (spec.chunks_per_shard - len(views))


def parse_index(spec: ArraySpec, tail: bytes, object_size: int, where: str) -> NDArray[np.uint64]:
    """Return offsets and lengths (chunks, 2) from a shard's last `index_bytes`; raise `CacheDamaged` for impossible values."""
    if crc32c(tail[:-CRC_BYTES]) != int.from_bytes(tail[-CRC_BYTES:], "little"):
        raise CacheDamaged(f"{where} is damaged: its shard index fails its checksum")
    index = np.frombuffer(tail[:-CRC_BYTES], "<u8").reshape(-1, 2)
    exists = index[:, 0] != MISSING
    length = spec.chunk_bytes + CRC_BYTES
    limit = object_size - spec.index_bytes - length
    if (index[exists, 1] != length).any() or (index[exists, 0] > max(limit, 0)).any() or (limit < 0 and exists.any()):
        raise CacheDamaged(f"{where} is damaged: its shard index points outside the object")
    return index


def small_key(name: str, dimensions: int = 1) -> str:
    """Return the key of the object that holds the values of a small array."""
    return f"{name}/c" + ".0" * dimensions


def small_array(name: str, values: NDArray[np.float32], dimensions: tuple[str, ...], attributes: dict[str, Any]) -> dict[str, bytes]:
    """Return both objects of an fp32 array of one chunk: `name/zarr.json` and `name/c.0…`."""
    raw = values.astype("<f4").tobytes()
    metadata = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(values.shape),
        "data_type": "float32",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(values.shape)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": "NaN",
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
        "attributes": attributes,
        "dimension_names": list(dimensions),
        "storage_transformers": [],
    }
    return {f"{name}/zarr.json": _json(metadata), small_key(name, values.ndim): raw + crc32c(raw).to_bytes(CRC_BYTES, "little")}


def parse_small_array(data: bytes, where: str) -> NDArray[np.float32]:
    """Return the values of a small array, flat; raise `CacheDamaged` when the checksum fails."""
    if len(data) < CRC_BYTES or crc32c(data[:-CRC_BYTES]) != int.from_bytes(data[-CRC_BYTES:], "little"):
        raise CacheDamaged(f"{where} is damaged: its checksum fails")
    return np.frombuffer(data[:-CRC_BYTES], "<f4").astype(np.float32)
