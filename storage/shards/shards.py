"""A group of sharded arrays with commit records: publish a shard once, open it verified, read rows into the caller's memory.

Reading goes identity → record → length → index checksum → row checksum, and every step compares with the record. Open shards (descriptor,
index, expected checksums) are cached, so that a row costs one `preadv`; adjacent rows of a shard are read by one call, together with their
checksums. Publishing never replaces anything: an object that exists already is verified and accepted (`existing_objects`), and the record,
created last and exclusively, decides. View sets and feature sets are both such groups.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.checksums import xxh3_128
from ..core.errors import CacheDamaged
from ..core.forks import ForkSafeLock
from ..core.lru_cache import LruCache
from ..objects.held_shards import HeldObjects
from ..objects.objects import Objects, OpenObject
from ..objects.read_ahead import ReadAhead
from ..objects.read_threads import both, run_parallel, threads_for_files
from .commit import MAX_RECORD_BYTES, ObjectRecord, Record, parse_record, record_key, shard_number
from .existing_objects import accept_existing
from .ledger import LEDGER_SHARDS, Ledgers
from .rows import OpenArray, check_out, flat_bytes, group_by_shard, read_rows, refuse_fill_values, retry_with_fresh_copy
from .zarr_format import CRC_BYTES, ArraySpec, build_shard, parse_index

_KEPT_RECORDS = 4096
_RECORDS_AT_ONCE, _BLOCK = 16, 1024
_DENSE = 4  # a shard is fetched whole into memory for this part of its rows
_KEPT_CHUNKS = 1 << 21  # offsets and checksums of open shards, 12 bytes each an array


class _NotCommitted(Exception):
    """A shard has no record: nothing to keep, since it may have one next time."""


class ShardedGroup:
    """Arrays that share rows, shards and records, below one prefix of a store."""

    def __init__(
        self,
        objects: Objects,
        prefix: str,
        group_digest: str,
        specs: Sequence[ArraySpec],
        check_opened: Callable[[Record], None] = lambda record: None,
        checked_against: "ShardedGroup | None" = None,
    ) -> None:
        """Open the group below `prefix`; `check_opened` raises `CacheDamaged` for a shard not to be read despite an intact record.

        It looks at the same shard's record of the group `checked_against`, which is asked for at the same time.
        """
        self.objects, self.prefix, self.group_digest = objects, prefix, group_digest
        self.specs = {spec.name: spec for spec in specs}
        first = specs[0]
        self.rows, self.shard_rows = first.shape[0], first.shard_rows
        self.shards = -(-self.rows // self.shard_rows)
        self.ledgers = Ledgers(objects, prefix, self.shards)
        self._check_opened, self._checked_against = check_opened, checked_against
        self._lock = ForkSafeLock()
        self._records: LruCache[int, Record] = LruCache(_KEPT_RECORDS)
        self._open: LruCache[int, dict[str, OpenArray]] = LruCache(max(1, _KEPT_CHUNKS // self.shard_rows))
        array_bytes = {spec.name: spec.row_bytes * self.shard_rows for spec in specs}
        self._read_ahead = ReadAhead(self._fetch, objects.fetchers, self.shards, array_bytes) if objects.fetchers else None
        self._holder = objects if isinstance(objects, HeldObjects) else None
        self._next_rows: dict[frozenset[str], int] = {}  # by arrays, of readers that go on in order

    def shard_span(self, shard: int) -> tuple[int, int]:
        """Return the rows [first, last) of a shard."""
        return shard * self.shard_rows, min((shard + 1) * self.shard_rows, self.rows)

    def committed_mask(self) -> NDArray[np.bool_]:
        """Return which shards have a record, (shards,) bool, listed afresh."""
        mask = np.zeros(self.shards, np.bool_)
        self.ledgers.mark(mask)
        for name in self.objects.names(f"{self.prefix}/commits"):
            number = shard_number(name)
            if number is not None and number < self.shards:
                mask[number] = True
        return mask

    def committed(self) -> set[int]:
        """Return the shards that have a record, listed afresh."""
        return set(np.flatnonzero(self.committed_mask()).tolist())

    def record(self, shard: int) -> Record | None:
        """Return the verified record of a shard, None when it is not committed; raise `CacheDamaged`.

        What another thread looked for may have been committed since it began, so one that waited for it looks once more.
        """
        for _ in range(2):
            looked_itself = list[bool]()

            def look(looked: list[bool] = looked_itself) -> Record:
                looked.append(True)
                return self._committed_record(shard)

            with suppress(_NotCommitted):
                return self._records.get_or_make(shard, look)
            if looked_itself:
                break
        return None

    def _committed_record(self, shard: int) -> Record:
        data = self.ledgers.listed_record(shard) or self._read_record(shard)
        if data is None:
            raise _NotCommitted
        return self.parse(shard, data)

    def _read_record(self, shard: int) -> bytes | None:
        try:
            return self.objects.read(f"{self.prefix}/{record_key(shard)}", MAX_RECORD_BYTES)
        except FileNotFoundError:
            return self.ledgers.record(shard)

    def parse(self, shard: int, data: bytes) -> Record:
        """Return a shard's record from its bytes; raise `CacheDamaged` when it is altered, another shard's or another set's."""
        key = f"{self.prefix}/{record_key(shard)}"
        record = parse_record(data, where=key, group=self.group_digest, shard=shard)
        self._check_shape(record, key)
        return record

    def records(self, shards: Sequence[int]) -> Iterator[Record]:
        """Yield the records of the committed ones of these shards, in order; several are read at once for the sake of object stores."""
        if len(shards) <= _RECORDS_AT_ONCE:  # threads cost more than so few gain on a disk
            yield from (record for record in map(self.record, shards) if record is not None)
            return
        with ThreadPoolExecutor(_RECORDS_AT_ONCE, thread_name_prefix="records") as pool:
            for start in range(0, len(shards), _BLOCK):
                yield from (record for record in pool.map(self.record, shards[start : start + _BLOCK]) if record is not None)

    def _check_shape(self, record: Record, where: str) -> None:
        """Raise `CacheDamaged` for a record whose rows, arrays, keys or number of checksums are not this set's."""
        first, last = self.shard_span(record.shard)
        if record.rows != last - first or set(record.objects) != set(self.specs):
            raise CacheDamaged(f"{where}: holds {record.rows} rows of {sorted(record.objects)}, not those of this set")
        for name, spec in self.specs.items():
            entry = record.objects[name]
            if entry.key != spec.key(record.shard) or len(entry.chunk_hashes()) != spec.chunks_per_shard:
                raise CacheDamaged(f"{where}: describes {entry.key} with {len(entry.chunk_hashes())} chunks, not {spec.key(record.shard)}")

    def publish(
        self, record: Record, arrays: Mapping[str, NDArray[Any]], present: NDArray[np.bool_] | Mapping[str, NDArray[np.bool_]]
    ) -> Record:
        """Write a shard's objects and commit `record` with them; return the valid record, ours or another writer's.

        `present` says which rows exist, in all arrays alike or by array.
        """
        self.ledgers.forget_listing()
        complete = replace(record, objects=self._publish_arrays(record.shard, arrays, present))
        if self.objects.create(f"{self.prefix}/{record_key(record.shard)}", [complete.to_bytes()]):
            return complete
        committed = self.record(record.shard)
        assert committed is not None
        if committed.image_ids_sha256 != record.image_ids_sha256:
            raise CacheDamaged(f"{self.prefix}/{record_key(record.shard)} was committed for other images; run `features verify`")
        return committed

    def _publish_arrays(
        self, shard: int, arrays: Mapping[str, NDArray[Any]], present: NDArray[np.bool_] | Mapping[str, NDArray[np.bool_]]
    ) -> dict[str, ObjectRecord]:
        """Publish all arrays in parallel: a file system batches their fsyncs, an object store handles their puts concurrently."""
        rows = present if isinstance(present, Mapping) else dict.fromkeys(self.specs, present)
        with ThreadPoolExecutor(len(self.specs)) as pool:
            futures = {name: pool.submit(self._publish_array, spec, shard, arrays[name], rows[name]) for name, spec in self.specs.items()}
        return {name: future.result() for name, future in futures.items()}

    def _publish_array(self, spec: ArraySpec, shard: int, rows: NDArray[Any], present: NDArray[np.bool_]) -> ObjectRecord:
        """Write one array's object, hashed while it is written, or accept the existing one."""
        built, key = build_shard(spec, rows, present), spec.key(shard)
        where = f"{self.prefix}/{key}"
        if self.objects.create(where, built):
            return ObjectRecord.of(key, built.size, built.hashes())
        return accept_existing(spec, shard, built, self.objects.read(where), where)

    def _open_shard(self, shard: int, names: Iterable[str], whole: bool = False) -> dict[str, OpenArray]:
        """Return the open objects of the named arrays only: reading views does not fetch pixels, nor class tokens patch tokens.

        `whole` says that all of them will be read.
        """
        known = self._open.get(shard) or {}
        if known and known.keys() >= set(names):
            return known
        against = self._checked_against
        if against is None:
            record = self.record(shard)
        else:
            _, record = both(lambda: against.record(shard), lambda: self.record(shard), at_once=self.objects.fetchers is not None)
        if record is None:
            raise CacheDamaged(
                f"shard {shard} of {self.prefix} is not committed; run the same `extract-features` command again to complete it"
            )
        self._check_opened(record)
        opened = {name: self._open_array(self.specs[name], record, whole) for name in names if name not in known}
        with self._lock:  # another thread may have opened other arrays of it
            opened = {**opened, **(self._open.get(shard) or {})}
            self._open.put(shard, opened)
        return opened

    def _open_array(self, spec: ArraySpec, record: Record, whole: bool = False) -> OpenArray:
        entry = record.objects[spec.name]
        where = f"shard {record.shard} of {self.prefix} ({spec.key(record.shard)})"
        try:
            if whole:
                self._hold(record.shard, [spec.name])
            file = self.objects.open(f"{self.prefix}/{spec.key(record.shard)}", entry.xxh3_128)
        except FileNotFoundError as error:
            raise CacheDamaged(f"{where} is missing although it was committed; run `eupe-pipeline features verify`") from error
        return retry_with_fresh_copy(file, lambda: self._opened_array(spec, record, file, where))

    def _opened_array(self, spec: ArraySpec, record: Record, file: OpenObject, where: str) -> OpenArray:
        entry = record.objects[spec.name]
        if file.size != entry.bytes or file.size < spec.index_bytes:
            raise CacheDamaged(f"{where} is damaged: {file.size:,} bytes, its record says {entry.bytes:,}")
        tail = bytearray(spec.index_bytes)
        file.read_into([memoryview(tail)], file.size - spec.index_bytes)
        if int.from_bytes(tail[-CRC_BYTES:], "little") != entry.index_crc32c:
            raise CacheDamaged(f"{where} is damaged: its index is not the one that was committed")
        index = parse_index(spec, bytes(tail), file.size, where)
        offsets = memoryview(index[:, 0].astype(np.uint64))  # type: ignore[arg-type]  # numpy's stubs do not say that arrays are buffers
        return OpenArray(spec, file, offsets, memoryview(entry.chunk_hashes()), where)  # type: ignore[arg-type]

    def _hold(self, shard: int, names: Iterable[str]) -> None:
        """Have whole objects of a shard in memory, where this store holds any."""
        record = self.record(shard)
        if self._holder is not None and record is not None:
            for name in names:
                self._holder.hold(f"{self.prefix}/{self.specs[name].key(shard)}", record.objects[name].xxh3_128)

    def _drop(self, shard: int, names: Iterable[str]) -> None:
        """Drop objects of a shard that a reader in order is done with, so that their memory serves the next ones."""
        record = self._records.get(shard)
        if self._holder is not None and record is not None:
            for name in names:
                self._holder.drop(f"{self.prefix}/{self.specs[name].key(shard)}", record.objects[name].xxh3_128)

    def prefetch(self, rows: NDArray[np.int64], names: Iterable[str]) -> None:
        """Announce rows that will be read soon; with a shard cache their shards are downloaded in the background.

        Into memory as many as there is room for, and those alone of which a good part will be read.
        """
        if self._read_ahead is None:
            return
        shards, counts = np.unique(rows // self.shard_rows, return_counts=True)
        if self._holder is not None:
            shards = shards[counts * _DENSE >= self.shard_rows][: self._read_ahead.depth]
        self._read_ahead.prefetch(shards.tolist(), tuple(names))

    def _fetch(self, shard: int, names: Iterable[str]) -> None:
        """Open a shard that will be read soon, and keep its local copies from being evicted."""
        opened = self._open_shard(shard, names, whole=True)
        for array in opened.values():
            array.file.touch()
        self._hold(shard, names)

    def read(
        self,
        rows: NDArray[np.int64],
        names: Iterable[str],
        out: Mapping[str, NDArray[Any]],
        *,
        check: bool = True,
        threads: int | None = None,
    ) -> None:
        """Fill `out[name]` (n, …) with these rows, in their order; raise `CacheDamaged` naming the shard.

        By as many threads as pay for so many bytes from where they lie, or by at most `threads`.
        """
        targets = {name: out[name] for name in names}
        if not targets:
            return
        for name, array in targets.items():
            check_out(self.specs[name], array, len(rows))
        flat = {name: flat_bytes(array) for name, array in targets.items()}
        order = np.argsort(rows, kind="stable")
        size, whole = sum(map(len, flat.values())), self._note_read(rows, tuple(flat))
        parts = min(threads or (threads_for_files(size) if whole else self.objects.threads_for(size)), len(rows)) or 1
        run_parallel(partial(self._read_part, rows, part, arrays, check, whole) for part, arrays in self._parts(rows, order, flat, parts))
        for name, array in targets.items():
            if self.specs[name].chunk_rows > 1:
                refuse_fill_values(name, array, self.prefix)

    def _note_read(self, rows: NDArray[np.int64], names: Sequence[str]) -> bool:
        """Have the shards fetched that a reader in order will need; return whether its own are to be fetched whole into memory."""
        if self._read_ahead is None or not len(rows):
            return False
        whole = False
        if self._holder is not None:
            arrays = frozenset(names)
            goes_on, self._next_rows[arrays] = rows[0] == self._next_rows.get(arrays), int(rows[-1]) + 1
            is_dense = bool((np.diff(rows) == 1).all()) and (goes_on or len(rows) * _DENSE >= self.shard_rows)
            whole = is_dense and self._read_ahead.fits(names)
            if not (whole and (goes_on or rows[0] == 0)):
                return whole
            if not goes_on:
                self._read_ahead.begin()
            self._drop(int(rows[0]) // self.shard_rows - 1, names)
        for shard in np.unique(rows // self.shard_rows).tolist():
            self._read_ahead.note_read(shard, names)
        return whole

    def _parts(
        self, rows: NDArray[np.int64], order: NDArray[np.int64], flat: dict[str, memoryview], parts: int
    ) -> Iterator[tuple[NDArray[np.int64], dict[str, memoryview]]]:
        """Yield what each thread reads: output rows and arrays. Only arrays of one row a chunk are split within a shard.

        A chunk that rows share would else be read by each of the threads that want one of them.
        """
        if parts == 1:
            yield order, flat
            return
        unshared = {name: memory for name, memory in flat.items() if self.specs[name].chunk_rows == 1}
        shared = {name: memory for name, memory in flat.items() if name not in unshared}
        if unshared:
            yield from ((part, unshared) for part in np.array_split(order, parts))
        if shared:
            shards = np.split(order, np.flatnonzero(np.diff(rows[order] // self.shard_rows)) + 1)
            for shard_numbers in np.array_split(np.arange(len(shards)), min(parts, len(shards))):
                yield np.concatenate([shards[n] for n in shard_numbers]), shared

    def _read_part(
        self, rows: NDArray[np.int64], order: NDArray[np.int64], flat: Mapping[str, memoryview], check: bool, whole: bool
    ) -> None:
        """Read the rows at the output rows `order`, which is sorted by row; their shards `whole` into memory."""
        for shard, slots in group_by_shard(rows, order, self.shard_rows):
            if self._read_ahead is not None:
                self._read_ahead.wait_for(shard)
            opened = self._open_shard(shard, flat, whole)
            try:
                if whole:
                    self._hold(shard, flat)
                for name, memory in flat.items():
                    retry_with_fresh_copy(opened[name].file, partial(read_rows, opened[name], slots, memory, check))
            except FileNotFoundError as error:  # of a remote store: a file that is open stays readable
                raise CacheDamaged(
                    f"shard {shard} of {self.prefix} was removed while it was read ({error}); open the set again, or run `eupe-pipeline "
                    "features verify`"
                ) from error

    def uncompacted(self) -> list[int]:
        """Return the committed shards whose record is a file of its own, in order."""
        mask = np.zeros(self.shards, np.bool_)
        self.ledgers.mark(mask)
        shards: list[int] = np.flatnonzero(self.committed_mask() & ~mask).tolist()
        return shards

    def stored_bytes(self) -> int:
        """Return the bytes of the committed shards' objects, from their records."""
        uncompacted_bytes = sum(entry.bytes for record in self.records(self.uncompacted()) for entry in record.objects.values())
        return uncompacted_bytes + self.ledgers.totals()[0]

    def compact(self, on_shard: Callable[[int], None] = lambda shard: None) -> int:
        """Move the records of every complete span of 65,536 shards into its ledger; return the number of ledgers.

        `on_shard` hears of each shard whose record was read.
        """
        done = [self.ledgers.compact(number, self.group_digest, on_shard) for number in range(-(-self.shards // LEDGER_SHARDS))]
        return sum(done)

    def discard(self, shard: int) -> None:
        """Undo a commit: remove first the record, then the objects, so that readers see at most a shard without a record."""
        self.objects.remove(f"{self.prefix}/{record_key(shard)}")
        self.ledgers.discard(shard)
        for spec in self.specs.values():
            self.objects.remove(f"{self.prefix}/{spec.key(shard)}")
        self.forget(shard)

    def forget(self, shard: int) -> None:
        """Drop a shard from the caches and close its files, so that the next access reads the store."""
        self._records.pop(shard)
        self.ledgers.forget_listing()
        for array in (self._open.pop(shard) or {}).values():
            array.file.close()

    def verify(self, shard: int) -> None:
        """Compare a committed shard's objects with their record, byte by byte; raise `CacheDamaged`."""
        record = self.record(shard)
        if record is None:
            return
        for name, entry in record.objects.items():
            array = self._open_array(self.specs[name], record)
            array.file.close()
            if xxh3_128([self.objects.read(f"{self.prefix}/{entry.key}")]) != entry.xxh3_128:
                raise CacheDamaged(f"{array.where} is damaged: xxh3 differs from its record; run `eupe-pipeline features repair`")
