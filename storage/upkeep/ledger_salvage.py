"""Recover a damaged ledger: its records carry digests of themselves, so intact records can be recognised wherever they are.

A ledger's index follows from its records; its records may also still exist as JSON, when a compaction was killed before it removed them.
Records in neither are lost, and only those shards must be committed again: a record then goes to `commits/`, where it takes precedence, and
`discarded/` keeps a later compaction from removing it. A file of records is not rewritten while it holds the only copy of one.
"""

import contextlib
import json

import numpy as np

from ..core.errors import CacheDamaged
from ..objects.damaged_files import read_or_flaw, replace_verified, without_advice
from ..shards.commit import MAX_RECORD_BYTES, Record, parse_record, record_key
from ..shards.ledger import index_bytes
from ..shards.shards import ShardedGroup

_RECORD_START = b'{"digest":"'  # of every record in canonical JSON; cannot stand within a string, whose quotes are escaped


def damaged_ledgers(group: ShardedGroup) -> dict[int, tuple[str, str]]:
    """Return the ledgers that are damaged, wholly or for some shards, with the file and what is wrong with it."""
    flaws = {}
    names = (name.partition(".")[0] for name in group.objects.names(f"{group.prefix}/ledgers"))
    for number in sorted({int(stem) for stem in names if stem.isdecimal()}):
        ledgers, (first, last) = group.ledgers, group.ledgers.span(number)
        if first >= last:
            continue
        index, flaw = read_or_flaw(group.objects, ledgers.key(number))
        if index is None and flaw == "is missing" and len(_json_records(group, number)) == last - first:
            continue  # a compaction that was killed; the next one goes on
        for key, allowed_flaw in (
            (ledgers.key(number), ""),
            (ledgers.records_key(number), "is empty"),
        ):  # all of them may be lost, and said so
            _, flaw = read_or_flaw(group.objects, key)
            if flaw and flaw != allowed_flaw:
                flaws[number] = key, flaw
        if number not in flaws:
            try:
                group.ledgers.forget(number)
                group.ledgers.opened(number)
            except CacheDamaged as error:
                flaws[number] = ledgers.key(number), without_advice(error)
        if number not in flaws and (count := _count_displaced(group, number)):
            flaws[number] = ledgers.key(number), f"does not say where {count} of its records lie"
    return flaws


def salvage_ledger(group: ShardedGroup, number: int) -> None:
    """Write a ledger's index, and its records if all exist as JSON, so that every intact record is found."""
    ledgers, (first, last) = group.ledgers, group.ledgers.span(number)
    json_records = _json_records(group, number)
    if len(json_records) == last - first:
        replace_verified(group.objects, ledgers.records_key(number), b"".join(json_records[shard] for shard in range(first, last)))
    data, _ = read_or_flaw(group.objects, ledgers.records_key(number))
    if data is None:
        replace_verified(group.objects, ledgers.records_key(number), b"")
    replace_verified(group.objects, ledgers.key(number), _index_of(group, number, data or b""))
    ledgers.forget(number)


def scan(group: ShardedGroup, data: bytes) -> dict[int, tuple[int, Record]]:
    """Return the intact records in a ledger's bytes: shard → (offset, record)."""
    records, text, start = {}, data.decode("latin-1"), data.find(_RECORD_START)  # latin-1: a character a byte
    while start >= 0:
        with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError, CacheDamaged):
            described, end = json.JSONDecoder().raw_decode(text, start)
            shard = described["shard"]
            records[shard] = start, parse_record(data[start:end], where=group.prefix, group=group.group_digest, shard=shard)
        start = data.find(_RECORD_START, start + 1)
    return records


def _index_of(group: ShardedGroup, number: int, data: bytes) -> bytes:
    first, last = group.ledgers.span(number)
    scanned, columns = scan(group, data), np.zeros((4, last - first), np.int64)
    spans = {shard: (start, start + len(record.to_bytes())) for shard, (start, record) in scanned.items()}
    for column, shard in enumerate(range(first, last)):
        if shard in scanned:
            start, record = scanned[shard]
            size = sum(entry.bytes for entry in record.objects.values())
            columns[:, column] = start, spans[shard][1] - start, size, len(record.failed)
        else:  # the bytes between its neighbours: damaged, but one flipped bit can still be undone
            begin, end = spans.get(shard - 1, (0, 0))[1], spans.get(shard + 1, (len(data), 0))[0]
            neighbours_known = (shard == first or shard - 1 in spans) and (shard + 1 == last or shard + 1 in spans)
            columns[:2, column] = (begin, min(end - begin, MAX_RECORD_BYTES)) if neighbours_known and end > begin else (0, 0)
    return index_bytes(*columns)


def _json_records(group: ShardedGroup, number: int) -> dict[int, bytes]:
    """Return the intact JSON records of a ledger's span."""
    records, (first, last) = {}, group.ledgers.span(number)
    for name in group.objects.names(f"{group.prefix}/commits"):
        stem = name.partition(".")[0]
        if stem.isdecimal() and first <= int(stem) < last:
            data, flaw = read_or_flaw(group.objects, f"{group.prefix}/{record_key(int(stem))}", MAX_RECORD_BYTES)
            with contextlib.suppress(CacheDamaged):
                if data is not None and not flaw:
                    parse_record(data, where=name, group=group.group_digest, shard=int(stem))
                    records[int(stem)] = data
    return records


def _count_displaced(group: ShardedGroup, number: int) -> int:
    """Return how many intact records are at another offset than the index says."""
    unreadable, (first, last) = [], group.ledgers.span(number)
    for shard in set(range(first, last)) - group.ledgers.discarded():
        data = group.ledgers.record(shard)
        try:
            parse_record(data or b"", where=group.prefix, group=group.group_digest, shard=shard)
        except CacheDamaged:
            unreadable.append(shard)
    if not unreadable:
        return 0
    scanned = scan(group, group.objects.read(group.ledgers.records_key(number)))
    return sum(shard in scanned for shard in unreadable)
