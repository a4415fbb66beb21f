"""The commit record of a shard: the authority on which bytes the shard consists of.

A shard exists only when `commits/NNNNNN.json` does. The record holds each object's length and xxh3, the crc32c of its index, the xxh3 of
every inner chunk, the digest of the image ids in order, the failed images by id, and a digest of itself. Because a row is checked against
the hash in the *record*, not against the crc32c stored beside the row for other Zarr clients, a swapped, stale or copied object is found at
the first row read from it, without hashing the whole object; and xxh3 is four times as fast as crc32c. The price is some 5 KB a shard.
"""

import base64
import binascii
import json
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import CacheDamaged
from ..core.identity import canonical_json, digest

FORMAT = 1
MAX_RECORD_BYTES = 64 << 20


@dataclass(frozen=True)
class ObjectRecord:
    """Length and hashes of one array's object of the shard."""

    key: str
    bytes: int
    xxh3_128: str
    index_crc32c: int
    chunk_xxh3_64: str  # base64 of little-endian uint64, one a chunk, 0 where a chunk is missing

    @classmethod
    def of(cls, key: str, size: int, hashes: tuple[int, str, NDArray[np.uint64]]) -> "ObjectRecord":
        """Return the record of an object with these `ShardObject.hashes`."""
        index_crc32c, object_xxh3, chunks = hashes
        return cls(key, size, object_xxh3, index_crc32c, base64.b64encode(chunks.astype("<u8").tobytes()).decode())

    def __post_init__(self) -> None:
        _check_types(self, key=str, bytes=int, xxh3_128=str, index_crc32c=int, chunk_xxh3_64=str)

    def chunk_hashes(self) -> NDArray[np.uint64]:
        """Return the hashes of the chunks, (chunks,) uint64."""
        return np.frombuffer(base64.b64decode(self.chunk_xxh3_64, validate=True), "<u8").astype(np.uint64)


@dataclass(frozen=True)
class Record:
    """The record of one committed shard of a group."""

    group: str  # the identity digest of the set that it belongs to
    shard: int
    rows: int
    image_ids_sha256: str
    objects: dict[str, ObjectRecord]
    failed: dict[str, str] = field(default_factory=dict)  # image id → reason
    views_record: str = ""  # digest of the views' record that a feature shard was made from

    def __post_init__(self) -> None:
        _check_types(self, group=str, shard=int, rows=int, image_ids_sha256=str, objects=dict, failed=dict, views_record=str)

    def body(self) -> dict[str, Any]:
        """Return the record as JSON-able data, without its own digest."""
        return {"format": FORMAT, **asdict(self)}

    @property
    def digest(self) -> str:
        """sha256 over the canonical JSON of the body."""
        return digest(self.body())

    def to_bytes(self) -> bytes:
        """Return the content of the record's file."""
        return canonical_json({**self.body(), "digest": self.digest})


def _check_types(described: object, **types: type) -> None:
    """Raise TypeError for a field of another type: JSON can put anything anywhere."""
    for name, wanted in types.items():
        if type(getattr(described, name)) is not wanted:
            raise TypeError(f"{name} is not {wanted.__name__}")


def record_key(shard: int) -> str:
    """Return the key of a shard's record, relative to its group."""
    return f"commits/{shard:06d}.json"


def shard_number(name: str) -> int | None:
    """Return the shard number in a file name of `commits/`, None for any other file."""
    stem, _, ending = name.partition(".")
    return int(stem) if ending == "json" and stem.isdecimal() and stem.isascii() else None


def parse_record(data: bytes, *, where: str, group: str, shard: int) -> Record:
    """Return a record from its bytes; raise `CacheDamaged` when it is altered, or is another shard's or another set's."""
    try:
        body = json.loads(data)
        claimed_digest = body.pop("digest")
        if body.pop("format") != FORMAT or digest({"format": FORMAT, **body}) != claimed_digest:
            raise ValueError("its own digest differs")
        body["objects"] = {name: ObjectRecord(**entry) for name, entry in body["objects"].items()}
        record = Record(**body)
        _ = [entry.chunk_hashes() for entry in record.objects.values()]
        if canonical_json({**record.body(), "digest": claimed_digest}) != data:
            raise ValueError("it is not in canonical form")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, binascii.Error) as error:
        raise CacheDamaged(f"{where}: the commit record is damaged ({error}); run `eupe-pipeline features verify`") from error
    if (record.group, record.shard) != (group, shard):
        raise CacheDamaged(
            f"{where}: this record belongs to shard {record.shard} of {record.group[:12]}, "
            f"expected shard {shard} of {group[:12]}; was a file copied or renamed?"
        )
    return record
