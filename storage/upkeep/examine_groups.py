"""Examine records, ledgers and objects of one view set or feature set, shard by shard.

A record is verified by its own digest, an object by its record. What is left of a shard is used before anything is computed: a record from
the ledger or from the damaged file, an object from its rows. Views are then drawn again; shards of features that need their teacher are
listed for the caller.
"""

from collections.abc import Callable, Iterator
from functools import partial

from ..core.errors import CacheDamaged, EupeError
from ..core.identity import ids_digest
from ..features.features import FeatureReader
from ..objects.damaged_files import read_or_flaw, replace_verified, without_advice
from ..shards.commit import MAX_RECORD_BYTES, Record, record_key
from ..shards.shard_repair import damaged_arrays, readable_record, rebuild_from_rows
from ..shards.shards import ShardedGroup
from ..views.view_set import ViewSet
from .examiner import ITSELF, Examiner, ToExtract
from .findings import Kind
from .ledger_salvage import damaged_ledgers, salvage_ledger
from .repair_views import repair_views

FROM_TEACHER = "its teacher and the images"
FROM_IMAGES = "the dataset's images"
_NO_RECORD = "is missing, though its objects are there: it was removed, or a writer was killed before it"
Flaw = tuple[Kind, str, str]


def examine_group(
    examiner: Examiner,
    group_set: ViewSet | FeatureReader,
    index_is_intact: bool,
    referenced_digests: Callable[[int], set[str]],
    has_writers: bool,
) -> None:
    """Judge every committed shard of the examiner's part, and those that have objects and no record.

    `indexed`: the dataset's index is whole; `known`: digests of a views' record that features were made from; `busy`: a writer may be
    between its objects and its record.
    """
    group = group_set.group
    for number, (where, flaw) in damaged_ledgers(group).items():
        salvage_ledger(group, number)
        examiner.add_finding("ledger", where, flaw, "its records")
    committed = group.committed()
    number, parts = examiner.part
    shards = sorted(shard for shard in committed | (set() if has_writers else _shards_with_objects(group)) if shard % parts == number - 1)
    done = 0
    for shard in shards:
        if shard in committed:
            done += 1
        _examine_shard(examiner, group_set, shard, index_is_intact, referenced_digests)
        if shard in committed:
            examiner.on_event(
                {"event": "progress", "stage": f"verify {group_set.key}", "done": done, "total": len(shards), "unit": "shards"}
            )


def _examine_shard(
    examiner: Examiner, group_set: ViewSet | FeatureReader, shard: int, index_is_intact: bool, referenced_digests: Callable[[int], set[str]]
) -> None:
    group = group_set.group
    record, flaw = _examine_record(examiner, group, shard)
    kind: Kind = "record"
    where, what = f"{group.prefix}/{record_key(shard)}", flaw
    if record is not None:
        what, damaged = _mismatch(group_set, record, index_is_intact), damaged_arrays(group, record)
        if not what and damaged:
            kind, where = "shard", f"{group.prefix}/{record.objects[next(iter(damaged))].key}"
            what = f"of shard {shard}: " + "; ".join(f"{record.objects[name].key} {flaw}" for name, flaw in damaged.items())
            if (repaired := rebuild_from_rows(group, record)) is not None:
                examiner.write_repaired(group, repaired)
                examiner.add_finding("shard", where, what, "its rows, which are whole", shard=shard)
                return
        if not what:
            return
    _rebuild(examiner, group_set, shard, (kind, where, what), index_is_intact, referenced_digests)


def _rebuild(
    examiner: Examiner,
    group_set: ViewSet | FeatureReader,
    shard: int,
    flaw_found: Flaw,
    index_is_intact: bool,
    referenced_digests: Callable[[int], set[str]],
) -> None:
    kind, where, what = flaw_found
    unfinished = what == _NO_RECORD and not referenced_digests(shard)
    if isinstance(group_set, FeatureReader):
        finding = examiner.add_finding(kind, where, what, FROM_TEACHER, examiner.repair, shard, unfinished=unfinished)
        examiner.to_extract.append(ToExtract(group_set, shard, finding))
        return
    why = "" if examiner.images else examiner.repair
    if examiner.images and not index_is_intact:
        why = f"the index of datasets/{group_set.dataset.key} must be whole first; then {examiner.repair}"
    elif examiner.images:
        try:
            examiner.write_repaired(group_set.group, repair_views(group_set, shard, lambda: referenced_digests(shard)))
        except EupeError as error:
            why = f"it cannot be now: {error}; then {examiner.repair}"
    examiner.add_finding(kind, where, what, FROM_IMAGES, why, shard, unfinished=unfinished)


def _mismatch(group_set: ViewSet | FeatureReader, record: Record, index_is_intact: bool) -> str:
    """Return why an intact record is not of these images and views, "" when it is as far as can be told."""
    views = group_set.views if isinstance(group_set, FeatureReader) else group_set
    if index_is_intact and record.image_ids_sha256 != ids_digest(views.dataset.ids(*views.shard_images(record.shard))):
        return "is of other images"
    if isinstance(group_set, FeatureReader) and record.views_record:
        of_views = readable_record(views.group, record.shard)  # one that is damaged is said of the views
        if of_views is not None and of_views.digest != record.views_record:
            return "was made from other views than those that are committed now"
    return ""


def _examine_record(examiner: Examiner, group: ShardedGroup, shard: int) -> tuple[Record | None, str]:
    """Return a shard's record, as stored or rebuilt, and what was wrong with it."""
    group.forget(shard)
    where = f"{group.prefix}/{record_key(shard)}"
    data, flaw = read_or_flaw(examiner.objects, where, MAX_RECORD_BYTES)
    ledger_record = group.ledgers.record(shard)
    if flaw == "is missing":
        data, flaw = ledger_record, _NO_RECORD
        if ledger_record is None:
            return None, flaw
    if data is not None:
        try:
            record = group.parse(shard, data)
        except CacheDamaged as error:
            flaw = without_advice(error)
        else:
            if ledger_record not in (None, data):  # a compaction would take the ledger's for the truth and remove this one
                group.ledgers.discard(shard)
                mark = f"{group.prefix}/discarded/{shard:06d}"
                examiner.add_finding("ledger", mark, "is missing, and its ledger holds an older record", "the record in commits/")
            return record, ""
    for candidate, source in _record_candidates(examiner, group, shard, data, ledger_record):
        if candidate is not None and (rebuilt := _parse_or_none(group, shard, candidate)) is not None:
            group.ledgers.discard(shard)
            replace_verified(examiner.objects, where, candidate)
            examiner.add_finding("record", where, flaw, source, shard=shard)
            return rebuilt, flaw
    return None, flaw


def _record_candidates(
    examiner: Examiner, group: ShardedGroup, shard: int, data: bytes | None, ledger_record: bytes | None
) -> Iterator[tuple[bytes | None, str]]:
    yield ledger_record, "the ledger's"
    yield examiner.undo_bit_flip(data, partial(group.parse, shard)), ITSELF


def _parse_or_none(group: ShardedGroup, shard: int, data: bytes) -> Record | None:
    try:
        return group.parse(shard, data)
    except CacheDamaged:
        return None


def _shards_with_objects(group: ShardedGroup) -> set[int]:
    """Return the shards that have at least one object."""
    shards = set()
    for name in group.specs:
        for entry in group.objects.names(f"{group.prefix}/{name}"):
            words = entry.split(".")
            if words[0] == "c" and len(words) > 1 and words[1].isdecimal() and int(words[1]) < group.shards:
                shards.add(int(words[1]))
    return shards
