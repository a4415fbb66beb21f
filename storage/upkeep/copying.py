"""Copy a feature set to another store, with all that another machine needs to continue it.

Copied are the dataset's index and its recorded subsets, the views and the features; each shard is verified against its record and committed
in the target as a writer does, so that a copy can be killed and run again. The measured statistics are copied too, because a measurement
on another machine differs in the last digits and would start another set, and so is the teacher's canary. A dataset that the target has
indexed itself, wherever its images are, is the same dataset. Several shards are copied at once, so that reading one store does not wait
for writing the other; the price is their memory.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from ..core.checksums import xxh3_128
from ..core.errors import CacheDamaged
from ..core.events import OnEvent, ignore_event
from ..features.features import FeatureReader
from ..features.teacher_files import note_teacher_file
from ..features.teacher_terms import note_terms
from ..images.locations import add_location
from ..objects.objects import Objects, walk_keys
from ..shards.commit import record_key
from ..shards.shards import ShardedGroup
from ..store import FeatureStore, canary_key

_MAX_PENDING = 4
_MEMORY_BYTES = 1 << 30  # of the shards under way


def copy_features(source: FeatureStore, key: str, target: FeatureStore, on_event: OnEvent = ignore_event) -> FeatureReader:
    """Copy a feature set with its views and dataset to another store; what is there already is kept. Raise `CacheDamaged`."""
    features = source.features(key)
    views = features.views
    _copy_dataset(source, target, views.dataset.key)
    _copy_subsets(source, target, views.dataset.digest)
    for prefix in (f"views/{views.key}", f"features/{features.key}"):
        _copy_files(source.objects, target.objects, prefix)
    _copy_statistics_and_canary(source, features, target, on_event)
    opened = target.features(features.key)
    for ours, theirs in ((views.group, opened.views.group), (features.group, opened.group)):
        shards = sorted(ours.committed() - theirs.committed())
        for done, _ in enumerate(_copy_shards(ours, theirs, shards), start=1):
            on_event({"event": "progress", "stage": f"copy {ours.prefix}", "done": done, "total": len(shards), "unit": "shards"})
    return opened


def _copy_dataset(source: FeatureStore, target: FeatureStore, key: str) -> None:
    """Copy the index and the locations of the images; where the target has the dataset, only locations that its index fits."""
    prefix = f"datasets/{key}"
    if target.objects.size(f"{prefix}/identity.json") is None:
        _copy_files(source.objects, target.objects, prefix)
        return
    ours, theirs = source.dataset(key), target.dataset(key)
    if ours.digest != theirs.digest:
        raise CacheDamaged(f"{prefix} in {target.url} is {theirs.digest}, in {source.url} {ours.digest}; copy to another store")
    if ours.index_sha256 == theirs.index_sha256:
        for location in ours.sources:
            add_location(target.objects, key, location, [])


def _copy_subsets(source: FeatureStore, target: FeatureStore, dataset_digest: str) -> None:
    """Copy the subsets of a dataset; raise `CacheDamaged` for one whose bits differ from its identity."""
    for key in source.list_subsets():
        subset = source.subset(key)
        if subset.dataset_digest == dataset_digest:
            subset.mask()
            _copy_files(source.objects, target.objects, f"subsets/{key}")


def _copy_files(source: Objects, target: Objects, prefix: str) -> None:
    """Copy everything but shards and records, the identity last."""
    names = [name for name in walk_keys(source, prefix) if "/c." not in name or "/statistics/" in name]
    names = [name for name in names if name.split("/")[2] not in ("commits", "ledgers", "discarded")]
    for name in sorted(names, key=lambda name: name.endswith("/identity.json")):
        data = source.read(name)
        if not target.create(name, [data]) and target.read(name) != data:
            raise CacheDamaged(f"{name} in {target.url} differs from the one in {source.url}; remove it there, or copy to another store")


def _copy_statistics_and_canary(source: FeatureStore, features: FeatureReader, target: FeatureStore, on_event: OnEvent) -> None:
    """Copy the stored statistics and the canary that an extraction looks up; those of the target stay."""
    for key in source.keys_of_statistics(features.statistics):
        data = source.objects.read(key)
        if not target.objects.create(key, [data]) and target.objects.read(key) != data:
            text = f"{target.url} has measured {key} itself: to go on with this set there, extract with --statistics-from {features.key}"
            on_event({"event": "warning", "text": text})
    canary = canary_key(features.identity["teacher"])
    if source.objects.size(canary) is not None:
        target.objects.create(canary, [source.objects.read(canary)])
    for teacher_file in features.teacher_files():
        note_teacher_file(target.objects, features.identity["teacher"], teacher_file)
    for terms in features.teacher_terms():
        note_terms(target.objects, features.identity["teacher"], terms)


def _copy_shards(source: ShardedGroup, target: ShardedGroup, shards: list[int]) -> Iterator[None]:
    """Copy several shards at once, in order; yield for each one committed in the target. Raise the first error."""
    largest = source.shard_rows * sum(spec.row_bytes for spec in source.specs.values())
    max_pending = max(1, min(_MAX_PENDING, _MEMORY_BYTES // largest))
    pending: deque[Future[None]] = deque()
    with ThreadPoolExecutor(max_pending, thread_name_prefix="copy") as pool:
        try:
            for shard in shards:
                pending.append(pool.submit(_copy_shard, source, target, shard))
                if len(pending) > max_pending:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BaseException:  # an error, Ctrl-C, SIGTERM: what has not begun does not begin
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _copy_shard(source: ShardedGroup, target: ShardedGroup, shard: int) -> None:
    record = source.record(shard)
    assert record is not None
    for entry in record.objects.values():
        data = source.objects.read(f"{source.prefix}/{entry.key}")
        if xxh3_128([data]) != entry.xxh3_128:
            raise CacheDamaged(f"shard {shard} of {source.prefix} ({entry.key}) is damaged: xxh3 differs from its record; repair it first")
        where = f"{target.prefix}/{entry.key}"
        if not target.objects.create(where, [data]) and xxh3_128([target.objects.read(where)]) != entry.xxh3_128:
            raise CacheDamaged(f"{where} in {target.objects.url} is not the copied object; remove it there and copy again")
    target.objects.create(f"{target.prefix}/{record_key(shard)}", [record.to_bytes()])
