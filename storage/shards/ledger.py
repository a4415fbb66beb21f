"""Compacted commit records: one Parquet file for 65,536 shards, so that a group of millions of shards opens in seconds.

    <group>/ledgers/000012.records      the records of the shards 12 · 65,536 … in order, one after another
    <group>/ledgers/000012.parquet      each record's offset and length, the shard's bytes, the number of its failed images
    <group>/discarded/000412            this shard's record in the ledger is no longer valid (repair)

A ledger is written, exclusively like everything else, when every shard of its span is committed; then the JSON records of the span are
removed. A JSON record takes precedence over the ledger's, so a repaired shard is committed as any other. Each record carries its own
digest, which is checked when it is read; a record costs one read, in an object store a 64th of one, and records are not all held in memory.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..core.errors import CacheDamaged
from ..core.forks import ForkSafeLock
from ..core.lru_cache import LruCache
from ..objects.content_addressed import parsing
from ..objects.objects import Objects, OpenObject
from ..objects.read_threads import both
from .commit import MAX_RECORD_BYTES, parse_record, record_key, shard_number

LEDGER_SHARDS = 65_536
_THREADS, _BLOCK = 16, 256
_KEPT_LEDGERS = 64  # 2 MB each
_BLOCK_SHARDS, _BLOCK_BYTES, _KEPT_BLOCKS = 64, 4 << 20, 16  # of records that are read at once from an object store
MAX_INDEX_BYTES = 64 << 20
_FIELDS: dict[str, pa.DataType] = {"offset": pa.int64(), "length": pa.int64(), "bytes": pa.int64(), "failed": pa.int64()}
SCHEMA = pa.schema(_FIELDS)
Result = TypeVar("Result")


class _Ledger(NamedTuple):
    records: OpenObject
    offsets: NDArray[np.int64]
    lengths: NDArray[np.int64]
    sizes: NDArray[np.int64]
    failed: NDArray[np.int64]


_Block = dict[int, bytes]  # records by shard


def _read(ledger: _Ledger, offset: int, length: int) -> bytes:
    out = bytearray(length)
    ledger.records.read_into([memoryview(out)], offset)
    return bytes(out)


def _map_in_blocks(pool: ThreadPoolExecutor, work: Callable[[int], Result], shards: Sequence[int]) -> Iterator[tuple[int, Result]]:
    """Yield (shard, result) in order; the number of pending calls is bounded, so that stopping early wastes little."""
    for start in range(0, len(shards), _BLOCK):
        block = shards[start : start + _BLOCK]
        yield from zip(block, pool.map(work, block), strict=True)


class Ledgers:
    """The compacted records of one group."""

    def __init__(self, objects: Objects, prefix: str, shards: int) -> None:
        self._objects, self._prefix, self._shards = objects, prefix, shards
        self._kept: LruCache[int, _Ledger] = LruCache(_KEPT_LEDGERS)
        self._known: set[int] | None = None
        self._blocks: LruCache[tuple[int, int], _Block] = LruCache(_KEPT_BLOCKS)
        self._not_in_ledgers: set[int] | None = None
        self._folders: Sequence[str] | None = None  # as they were listed with the ledgers: most sets have neither commits/ nor discarded/
        self._lock, self._listing = ForkSafeLock(), ForkSafeLock()

    def key(self, number: int) -> str:
        """Return the key of a ledger."""
        return f"{self._prefix}/ledgers/{number:06d}.parquet"

    def records_key(self, number: int) -> str:
        """Return the key of a ledger's records."""
        return f"{self._prefix}/ledgers/{number:06d}.records"

    def span(self, number: int) -> tuple[int, int]:
        """Return the shards [first, last) of a ledger."""
        return number * LEDGER_SHARDS, min((number + 1) * LEDGER_SHARDS, self._shards)

    def numbers(self) -> set[int]:
        """Return the numbers of the ledgers that exist, listed afresh."""
        names = (name.partition(".") for name in self._objects.names(f"{self._prefix}/ledgers"))
        self._known, self._folders = {int(stem) for stem, _, ending in names if ending == "parquet" and stem.isdecimal()}, None
        return self._known

    def _known_numbers(self) -> set[int]:
        """Return the numbers of the ledgers that exist, as they were listed last."""
        with self._listing:
            known = self._known
            if known is None and self._objects.fetchers is not None:
                self._folders, known = both(lambda: self._objects.names(self._prefix), self.numbers, at_once=True)
            return known if known is not None else self.numbers()

    def mark(self, committed: NDArray[np.bool_]) -> None:
        """Set `committed` (shards,) for the shards that ledgers hold and that were not discarded."""
        for number in self.numbers():
            first, last = self.span(number)
            committed[first:last] = True
        committed[sorted(self.discarded())] = False

    def record(self, shard: int) -> bytes | None:
        """Return a shard's compacted record, None when no ledger has it or it was discarded; raise `CacheDamaged`."""
        number = shard // LEDGER_SHARDS
        if number not in self._known_numbers() and number not in self.numbers():  # another process may have compacted since
            return None
        if (listed := self.listed_record(shard)) is not None:
            return listed
        if self._objects.size(f"{self._prefix}/discarded/{shard:06d}") is not None:
            return None
        opened, row = self.opened(number), shard - self.span(number)[0]
        return _read(opened, int(opened.offsets[row]), int(opened.lengths[row]))

    def listed_record(self, shard: int) -> bytes | None:
        """Return a shard's record out of a block of them, where that takes no request of its own; None where another way must be taken.

        Of an object store: listings say which ledgers there are and which shards have another record, and one request brings those of 64
        shards. A record that is replaced later is not noticed, as none is that was read before.
        """
        number = shard // LEDGER_SHARDS
        if self._objects.fetchers is None or number not in self._known_numbers():
            return None
        if self._not_in_ledgers is None:
            both(self._listed, lambda: self.opened(number), at_once=True)
        if shard in self._listed():
            return None
        block = (shard - self.span(number)[0]) // _BLOCK_SHARDS
        return self._blocks.get_or_make((number, block), lambda: self._read_block(number, block)).get(shard)

    def _listed(self) -> set[int]:
        """Return the shards whose record is not the ledger's, as they were listed once."""
        with self._lock:
            if self._not_in_ledgers is None:
                folders = ("commits", "discarded") if self._folders is None else self._folders
                names = self._objects.names(f"{self._prefix}/commits") if "commits" in folders else ()
                discarded = self.discarded() if "discarded" in folders else ()
                self._not_in_ledgers = {*(number for number in map(shard_number, names) if number is not None), *discarded}
            return self._not_in_ledgers

    def _read_block(self, number: int, block: int) -> "_Block":
        """Return the records of 64 shards, or none where they do not lie together."""
        opened, first = self.opened(number), block * _BLOCK_SHARDS
        offsets, lengths = opened.offsets[first : first + _BLOCK_SHARDS], opened.lengths[first : first + _BLOCK_SHARDS]
        start, end = int(offsets.min()), int((offsets + lengths).max())
        if end - start > _BLOCK_BYTES:
            return {}
        data, shards = _read(opened, start, end - start), range(self.span(number)[0] + first, self.span(number)[1])
        places = zip(shards, (offsets - start).tolist(), lengths.tolist(), strict=False)
        return {shard: data[offset : offset + length] for shard, offset, length in places}

    def forget_listing(self) -> None:
        """List again which shards have a record beside the ledger's, after one was written or removed here."""
        self._not_in_ledgers = self._folders = None

    def totals(self) -> tuple[int, list[int]]:
        """Return the bytes of all compacted shards, and the shards that have failed images."""
        size, failed, discarded = 0, [], np.array(sorted(self.discarded()), np.int64)
        for number in sorted(self.numbers()):
            opened, (first, last) = self.opened(number), self.span(number)
            counts = np.ones(last - first, np.bool_)
            counts[discarded[(discarded >= first) & (discarded < last)] - first] = False
            size += int(opened.sizes[counts].sum())
            failed += (np.flatnonzero(opened.failed.astype(np.bool_) & counts) + first).tolist()
        return size, failed

    def discarded(self) -> set[int]:
        """Return the shards whose record in a ledger is no longer valid."""
        names = self._objects.names(f"{self._prefix}/discarded")
        return {int(name) for name in names if name.isdecimal() and int(name) < self._shards}

    def discard(self, shard: int) -> None:
        """Invalidate a ledger's record of this shard, where a ledger has one."""
        if shard // LEDGER_SHARDS in self.numbers():
            self._objects.create(f"{self._prefix}/discarded/{shard:06d}", [b"{}"])

    def forget(self, number: int) -> None:
        """Drop a ledger from memory, so that its next use reads it again."""
        self._kept.pop(number)
        self._known = self._not_in_ledgers = self._folders = None
        self._blocks = LruCache(_KEPT_BLOCKS)

    def opened(self, number: int) -> _Ledger:
        """Return an open ledger, cached; raise `CacheDamaged`."""
        return self._kept.get_or_make(number, lambda: self._open(number))

    def _open(self, number: int) -> _Ledger:
        where, (first, last) = self.key(number), self.span(number)
        try:
            data, records = both(
                lambda: self._objects.read(where, MAX_INDEX_BYTES),
                lambda: self._objects.open(self.records_key(number)),
                at_once=self._objects.fetchers is not None,
            )
        except FileNotFoundError as error:
            raise CacheDamaged(f"{where} or its records are missing; run `eupe-pipeline features repair`") from error
        with parsing(where):
            table = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True).read(use_threads=False)
            if table.num_rows != last - first or table.schema.names != SCHEMA.names:
                raise ValueError(f"{table.num_rows} rows of {table.schema.names}")
            columns = [np.asarray(table.column(name).to_numpy(), np.int64) for name in SCHEMA.names]
            opened = _Ledger(records, *columns)
            if (opened.lengths < 0).any() or (opened.lengths > MAX_RECORD_BYTES).any():
                raise ValueError("a record of impossible length")
            if (opened.offsets < 0).any() or (opened.offsets + opened.lengths > records.size).any():
                raise ValueError("a record outside of its file")
        return opened

    def compact(self, number: int, group_digest: str, on_shard: Callable[[int], None] = lambda shard: None) -> bool:
        """Move the JSON records of a span into a ledger; return False when a shard of the span has none yet.

        `on_shard` is called for each shard whose record was read. Several are read and removed at once: to an object store each is a
        request.
        """
        first, last = self.span(number)
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="compact") as pool:
            if self._objects.size(self.key(number)) is None:
                records: list[bytes] = []
                sizes, failed = [], []
                for shard, data in _map_in_blocks(pool, self._json_record, range(first, last)):
                    if data is None:
                        return False
                    record = parse_record(data, where=f"{self._prefix}/{record_key(shard)}", group=group_digest, shard=shard)
                    records.append(data)
                    sizes.append(sum(entry.bytes for entry in record.objects.values()))
                    failed.append(len(record.failed))
                    on_shard(shard)
                self.publish(number, records, sizes, failed)
            self._known = self._not_in_ledgers = self._folders = None
            self._blocks = LruCache(_KEPT_BLOCKS)
            listed = {shard_number(name) for name in self._objects.names(f"{self._prefix}/commits")}
            discarded = {int(name) for name in self._objects.names(f"{self._prefix}/discarded") if name.isdecimal()}
            to_remove = listed - discarded
            for _ in _map_in_blocks(pool, self._remove_json_record, [shard for shard in range(first, last) if shard in to_remove]):
                pass
        return True

    def _json_record(self, shard: int) -> bytes | None:
        try:
            return self._objects.read(f"{self._prefix}/{record_key(shard)}", MAX_RECORD_BYTES)
        except FileNotFoundError:
            return None

    def _remove_json_record(self, shard: int) -> None:
        self._objects.remove(f"{self._prefix}/{record_key(shard)}")

    def publish(self, number: int, records: Sequence[bytes], sizes: Sequence[int], failed: Sequence[int]) -> None:
        """Write a ledger's records, then its index; a ledger exists when its index does."""
        lengths = np.array([len(record) for record in records], np.int64)
        index = index_bytes(np.cumsum(lengths) - lengths, lengths, np.array(sizes, np.int64), np.array(failed, np.int64))
        data = b"".join(records)
        if not self._objects.create(self.records_key(number), [data]) and self._objects.read(self.records_key(number)) != data:
            self._objects.remove(self.records_key(number))  # left by a killed run, before some shard was made again
            self._objects.create(self.records_key(number), [data])
        self._objects.create(self.key(number), [index])


def index_bytes(*values: NDArray[np.int64]) -> bytes:
    """Return the Parquet file of a ledger from its columns: offset, length, bytes, failed."""
    columns = {name: pa.array(column) for name, column in zip(SCHEMA.names, values, strict=True)}
    index = io.BytesIO()
    pq.write_table(pa.table(columns, schema=SCHEMA), index, write_page_checksum=True)
    return index.getvalue()
