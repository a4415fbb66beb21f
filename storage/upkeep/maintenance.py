"""Keep a store sound: verify a set's shards by instalments, delete what nobody needs.

`verify` never writes, and judges shards alone: what lies around them must be whole (`examination` judges every file of a store).
`prune` deletes in the order opposite to creation: the identity first, and nothing that a lease protects.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

from ..core.errors import BadInput, CacheDamaged, StoreUnavailable
from ..core.events import OnEvent, ignore_event
from ..core.identity import ids_digest
from ..core.urls import is_url
from ..features.features import FeatureReader
from ..objects.objects import below
from ..store import FeatureStore
from ..views.view_set import ViewSet
from .leases import drop_expired, refuse_leased


class Damage(NamedTuple):
    """A shard that is not what its record says, and why."""

    shard: int
    reason: str


def verify(one: FeatureReader | ViewSet, part: tuple[int, int] = (1, 1), on_event: OnEvent = ignore_event) -> list[Damage]:
    """Read every byte of part k of n of a set's committed shards and compare with the records; returns the damaged shards.

    The n parts together cover every shard once. Raises `BadInput` for a part that is none,
    `CacheDamaged` where the dataset's index is damaged.
    """
    number, parts = checked_part(part)
    shards = [shard for shard in sorted(one.group.committed()) if shard % parts == number - 1]
    found = []
    for done, shard in enumerate(shards, start=1):
        reason = _why_damaged(one, shard)
        if reason is not None:
            found.append(Damage(shard, reason))
        on_event({"event": "progress", "stage": f"verify {one.key}", "done": done, "total": len(shards), "unit": "shards"})
    return found


def checked_part(part: tuple[int, int]) -> tuple[int, int]:
    """Part k of n; raises `BadInput` for one that is none."""
    number, parts = part
    if not 1 <= number <= parts:
        raise BadInput(f"part {number} of {parts} does not exist; parts go from 1/{parts} to {parts}/{parts}")
    return number, parts


def _why_damaged(one: FeatureReader | ViewSet, shard: int) -> str | None:
    views = one.views if isinstance(one, FeatureReader) else one
    ids = ids_digest(views.dataset.ids(*views.shard_images(shard)))  # a damaged index is no damage of the shard
    try:
        one.group.forget(shard)
        one.group.verify(shard)
        record = one.group.record(shard)
        if record is None:
            return None
        if record.image_ids_sha256 != ids:
            return "its record is of other images"
        if isinstance(one, FeatureReader) and record.views_record:
            of_views = views.group.record(shard)
            if of_views is None or of_views.digest != record.views_record:
                return "it was made from other views than those that are committed now"
    except (CacheDamaged, StoreUnavailable) as error:
        if isinstance(error, StoreUnavailable) and is_url(one.group.objects.url):  # the network is no damage of the store
            raise
        return str(error)
    return None


def _deletion_order(key: str) -> tuple[int, str]:
    """Identity, records, objects, metadata: the opposite of creation."""
    parts = key.split("/")
    if parts[-1] == "identity.json":
        return 0, key
    if parts[2] in ("commits", "ledgers", "discarded"):
        return 1, key
    return (3 if parts[-1] == "zarr.json" else 2), key


def prune(
    store: FeatureStore, key: str, *, dry_run: bool, clock: Callable[[], float] = time.time, on_event: OnEvent = ignore_event
) -> list[str]:
    """Delete a feature set or a recorded subset; returns the objects that go, or with `dry_run` would go, in order.

    Also finishes a deletion that was killed. Raises `BadInput` for an unknown key and while somebody holds a lease.
    """
    kind = "subsets" if key in store.list_subsets() else "features"
    if kind == "features" and key not in store.list_features():
        raise BadInput(f"{store.url} has no feature set {key!r}; give the whole key, one of: {', '.join(store.list_features()) or 'none'}")
    refuse_leased(store.objects, key, clock)
    going = sorted(below(store.objects, f"{kind}/{key}"), key=_deletion_order)
    if dry_run:
        return going
    # The first to go is the identity; after it nobody can open the set.
    for place, name in enumerate(going):
        held = store.objects.read(name) if place == 0 else b""
        store.objects.remove(name)
        if place == 0:
            _restore_when_leased(store, key, name, held, clock)
        on_event({"event": "progress", "stage": f"prune {key}", "done": place + 1, "total": len(going), "unit": "files"})
    drop_expired(store.objects, key, clock)
    store.objects.sweep(f"{kind}/{key}")
    store.objects.drop_empty(f"{kind}/{key}")
    return going


def _restore_when_leased(store: FeatureStore, key: str, name: str, data: bytes, clock: Callable[[], float]) -> None:
    """A reader takes its lease and then opens the set; one that came between our check and the removal gets its set back."""
    try:
        refuse_leased(store.objects, key, clock)
    except BadInput:
        store.objects.create(name, [data])
        raise
