"""Records, ledgers and objects of one set of views or features, shard by shard.

A record is proved by its own digest, an object by its record. What is left of a shard is used before anything is computed: a record from
the ledger or from the file itself, an object from its rows. Views are then drawn again; of features the shards that need their teacher are
listed for whoever can run it.
"""

from collections.abc import Callable, Iterator
from functools import partial

from ..core.errors import CacheDamaged, EupeError
from ..core.identity import ids_digest
from ..features.features import FeatureReader
from ..objects.damaged_files import read_or_flaw, replace_verified, without_advice
from ..shards.commit import MAX_RECORD_BYTES, Record, record_key
from ..shards.healing import damaged_arrays, from_rows, standing_record
from ..shards.shards import ShardedGroup
from ..views.view_set import ViewSet
from .examiner import ITSELF, Examiner, ToExtract
from .findings import Kind
from .heal_views import heal_views
from .ledger_salvage import damaged_ledgers, salvage_ledger

TEACHER = "its teacher and the images"
DRAWN = "the dataset's images"
_NO_RECORD = "is missing, though its objects are there: it was removed, or a writer was killed before it"
Said = tuple[Kind, str, str]


def examine_group(examiner: Examiner, one: ViewSet | FeatureReader, indexed: bool, known: Callable[[int], set[str]], busy: bool) -> None:
    """Judge every committed shard of the examiner's part, and those that have objects and no record.

    `indexed`: the dataset's index is whole; `known`: digests of a views' record that features were made from; `busy`: a writer may be
    between its objects and its record.
    """
    group = one.group
    for number, (where, flaw) in damaged_ledgers(group).items():
        salvage_ledger(group, number)
        examiner.found("ledger", where, flaw, "its records")
    committed = group.committed()
    number, parts = examiner.part
    shards = sorted(shard for shard in committed | (set() if busy else _with_objects(group)) if shard % parts == number - 1)
    judged = 0
    for shard in shards:
        if shard in committed:
            judged += 1
        _examine_shard(examiner, one, shard, indexed, known)
        if shard in committed:
            examiner.on_event({"event": "progress", "stage": f"verify {one.key}", "done": judged, "total": len(shards), "unit": "shards"})


def _examine_shard(examiner: Examiner, one: ViewSet | FeatureReader, shard: int, indexed: bool, known: Callable[[int], set[str]]) -> None:
    group = one.group
    record, flaw = _record(examiner, group, shard)
    kind: Kind = "record"
    where, what = f"{group.prefix}/{record_key(shard)}", flaw
    if record is not None:
        what, bad = _stranger(one, record, indexed), damaged_arrays(group, record)
        if not what and bad:
            kind, where = "shard", f"{group.prefix}/{record.objects[next(iter(bad))].key}"
            what = f"of shard {shard}: " + "; ".join(f"{record.objects[name].key} {flaw}" for name, flaw in bad.items())
            if (healed := from_rows(group, record)) is not None:
                examiner.heal(group, healed)
                examiner.found("shard", where, what, "its rows, which are whole", shard=shard)
                return
        if not what:
            return
    _make_again(examiner, one, shard, (kind, where, what), indexed, known)


def _make_again(
    examiner: Examiner, one: ViewSet | FeatureReader, shard: int, said: Said, indexed: bool, known: Callable[[int], set[str]]
) -> None:
    kind, where, what = said
    unfinished = what == _NO_RECORD and not known(shard)
    if isinstance(one, FeatureReader):
        finding = examiner.found(kind, where, what, TEACHER, examiner.repair, shard, unfinished=unfinished)
        examiner.to_extract.append(ToExtract(one, shard, finding))
        return
    why = "" if examiner.images else examiner.repair
    if examiner.images and not indexed:
        why = f"the index of datasets/{one.dataset.key} must be whole first; then {examiner.repair}"
    elif examiner.images:
        try:
            examiner.heal(one.group, heal_views(one, shard, lambda: known(shard)))
        except EupeError as error:
            why = f"it cannot be now: {error}; then {examiner.repair}"
    examiner.found(kind, where, what, DRAWN, why, shard, unfinished=unfinished)


def _stranger(one: ViewSet | FeatureReader, record: Record, indexed: bool) -> str:
    """Return why a record that is whole is not of these images and views, "" when it is as far as can be told."""
    views = one.views if isinstance(one, FeatureReader) else one
    if indexed and record.image_ids_sha256 != ids_digest(views.dataset.ids(*views.shard_images(record.shard))):
        return "is of other images"
    if isinstance(one, FeatureReader) and record.views_record:
        of_views = standing_record(views.group, record.shard)  # one that is damaged is said of the views
        if of_views is not None and of_views.digest != record.views_record:
            return "was made from other views than those that are committed now"
    return ""


def _record(examiner: Examiner, group: ShardedGroup, shard: int) -> tuple[Record | None, str]:
    """Return a shard's record as it is or from what is left of it, and what was wrong with it."""
    group.forget(shard)
    where = f"{group.prefix}/{record_key(shard)}"
    data, flaw = read_or_flaw(examiner.objects, where, MAX_RECORD_BYTES)
    compacted = group.ledgers.record(shard)
    if flaw == "is missing":
        data, flaw = compacted, _NO_RECORD
        if compacted is None:
            return None, flaw
    if data is not None:
        try:
            record = group.parse(shard, data)
        except CacheDamaged as error:
            flaw = without_advice(error)
        else:
            if compacted not in (None, data):  # a compaction would take the ledger's for the truth and remove this one
                group.ledgers.discard(shard)
                mark = f"{group.prefix}/discarded/{shard:06d}"
                examiner.found("ledger", mark, "is missing, and its ledger holds an older record", "the record in commits/")
            return record, ""
    for candidate, source in _left_of(examiner, group, shard, data, compacted):
        if candidate is not None and (found := _parsed(group, shard, candidate)) is not None:
            group.ledgers.discard(shard)
            replace_verified(examiner.objects, where, candidate)
            examiner.found("record", where, flaw, source, shard=shard)
            return found, flaw
    return None, flaw


def _left_of(
    examiner: Examiner, group: ShardedGroup, shard: int, data: bytes | None, compacted: bytes | None
) -> Iterator[tuple[bytes | None, str]]:
    yield compacted, "the ledger's"
    yield examiner.undo_bit_flip(data, partial(group.parse, shard)), ITSELF


def _parsed(group: ShardedGroup, shard: int, data: bytes) -> Record | None:
    try:
        return group.parse(shard, data)
    except CacheDamaged:
        return None


def _with_objects(group: ShardedGroup) -> set[int]:
    """Return the shards of which any object lies there."""
    found = set()
    for name in group.specs:
        for entry in group.objects.names(f"{group.prefix}/{name}"):
            words = entry.split(".")
            if words[0] == "c" and len(words) > 1 and words[1].isdecimal() and int(words[1]) < group.shards:
                found.add(int(words[1]))
    return found
