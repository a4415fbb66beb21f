"""Verify the shards of a set by instalments; delete a set that is no longer needed.

`verify` never writes, and judges shards only: the files around them must be intact (`examination` examines every file of a store). `prune`
deletes in the reverse order of creation, the identity first, and refuses to delete what a lease protects.
"""

from typing import NamedTuple

from ..core.errors import BadInput, CacheDamaged, StoreUnavailable
from ..core.events import OnEvent, ignore_event
from ..core.identity import ids_digest
from ..core.urls import is_url
from ..features.features import FeatureReader
from ..objects.objects import walk_keys
from ..store import FeatureStore
from ..views.view_set import ViewSet
from .leases import Clock, drop_expired, holders, refuse_leased


class Damage(NamedTuple):
    """A shard that is not what its record says, and why."""

    shard: int
    reason: str


def verify(group_set: FeatureReader | ViewSet, part: tuple[int, int] = (1, 1), on_event: OnEvent = ignore_event) -> list[Damage]:
    """Read every byte of part k of n of a set's committed shards and compare with the records; return the damaged shards.

    The n parts together cover every shard once. Raise `BadInput` for a part that is none,
    `CacheDamaged` where the dataset's index is damaged.
    """
    number, parts = checked_part(part)
    shards = [shard for shard in sorted(group_set.group.committed()) if shard % parts == number - 1]
    damaged = []
    for done, shard in enumerate(shards, start=1):
        reason = _why_damaged(group_set, shard)
        if reason is not None:
            damaged.append(Damage(shard, reason))
        on_event({"event": "progress", "stage": f"verify {group_set.key}", "done": done, "total": len(shards), "unit": "shards"})
    return damaged


def checked_part(part: tuple[int, int]) -> tuple[int, int]:
    """Return part k of n; raise `BadInput` unless 1 ≤ k ≤ n."""
    number, parts = part
    if not 1 <= number <= parts:
        raise BadInput(f"part {number} of {parts} does not exist; parts go from 1/{parts} to {parts}/{parts}")
    return number, parts


def _why_damaged(group_set: FeatureReader | ViewSet, shard: int) -> str | None:
    views = group_set.views if isinstance(group_set, FeatureReader) else group_set
    ids = ids_digest(views.dataset.ids(*views.shard_images(shard)))  # a damaged index is no damage of the shard
    try:
        group_set.group.forget(shard)
        group_set.group.verify(shard)
        record = group_set.group.record(shard)
        if record is None:
            return None
        if record.image_ids_sha256 != ids:
            return "its record is of other images"
        if isinstance(group_set, FeatureReader) and record.views_record:
            of_views = views.group.record(shard)
            if of_views is None or of_views.digest != record.views_record:
                return "it was made from other views than those that are committed now"
    except (CacheDamaged, StoreUnavailable) as error:
        if isinstance(error, StoreUnavailable) and is_url(group_set.group.objects.url):  # the network is no damage of the store
            raise
        return str(error)
    return None


def _deletion_order(key: str) -> tuple[int, str]:
    """Return a sort key in the reverse order of creation: identity, records, objects, metadata."""
    parts = key.split("/")
    if parts[-1] == "identity.json":
        return 0, key
    if parts[2] in ("commits", "ledgers", "discarded"):
        return 1, key
    return (3 if parts[-1] == "zarr.json" else 2), key


def prune(store: FeatureStore, key: str, *, dry_run: bool, clock: Clock | None = None, on_event: OnEvent = ignore_event) -> list[str]:
    """Delete a feature set or a recorded subset; return the objects that go, or with `dry_run` would go, in order.

    Also finishes a deletion that was killed, and takes what killed writers left of the set, however lately: its folder would be listed.
    Raise `BadInput` for an unknown key and while somebody holds a lease.
    """
    kind = "subsets" if key in store.list_subsets() else "features"
    if kind == "features" and key not in store.list_features():
        raise BadInput(f"{store.url} has no feature set {key!r}; give the whole key, one of: {', '.join(store.list_features()) or 'none'}")
    refuse_leased(store.objects, key, clock)
    to_delete = sorted(walk_keys(store.objects, f"{kind}/{key}"), key=_deletion_order)
    if dry_run:
        return to_delete
    # The first to go is the identity; after it nobody can open the set.
    for position, name in enumerate(to_delete):
        identity = store.objects.read(name) if position == 0 else b""
        store.objects.remove(name)
        if position == 0:
            _restore_when_leased(store, key, name, identity, clock)
        on_event({"event": "progress", "stage": f"prune {key}", "done": position + 1, "total": len(to_delete), "unit": "files"})
    drop_expired(store.objects, key, clock)
    if not holders(store.objects, key, clock):  # else the same extraction begins anew
        store.objects.sweep(f"{kind}/{key}", at_any_age=True)
    store.objects.sweep("views")  # of views that no extraction comes back to, nobody else sweeps
    for prefix in (f"{kind}/{key}", f"leases/{key}"):
        store.objects.drop_empty(prefix)
    return to_delete


def _restore_when_leased(store: FeatureStore, key: str, name: str, data: bytes, clock: Clock | None) -> None:
    """Restore the identity if a reader took a lease between the check and the removal, and raise `BadInput`."""
    try:
        refuse_leased(store.objects, key, clock)
    except BadInput:
        store.objects.create(name, [data])
        raise
