"""What a store holds, for people and scripts: lists, one set in full, and a check of every committed byte.

Nothing here writes, `verify` least of all. Verifying reads each object of each committed shard once and compares length and hash with
the commit record; a damaged shard is named and the check goes on, so that one run finds all of them.
"""

from typing import Any

from ..storage.errors import CacheDamaged
from ..storage.store import FeatureStore
from .progress import OnEvent


def list_store(*, store: str, on_event: OnEvent) -> dict[str, Any]:
    """Return every dataset, view set and feature set with its size and how much of it is there."""
    opened = FeatureStore.open(store)
    datasets, views, features = {}, {}, {}
    for key in opened.list_datasets():
        dataset = opened.dataset(key)
        datasets[key] = {"images": len(dataset), "labels": len(dataset.label_names)}
    for key in opened.list_view_sets():
        view_set = opened.view_set(key)
        views[key] = {"dataset": view_set.dataset.key, "kind": view_set.spec.kind, "views_per_image": view_set.views_per_image}
    for key in opened.list_features():
        reader = opened.features(key)
        missing = len(reader.missing_shards())
        features[key] = {
            "views": reader.views.key,
            "rows": reader.rows,
            "codec": reader.codec,
            "bytes": reader.stored_bytes(),
            "shards": f"{reader.shards - missing} of {reader.shards}",
        }
    return {"store": opened.url, "datasets": datasets, "views": views, "features": features}


def show_features(*, key: str, store: str, on_event: OnEvent) -> dict[str, Any]:
    """Return one feature set: identity, shape, what is missing, which rows failed."""
    reader = FeatureStore.open(store).features(key)
    return {
        "key": reader.key,
        "dataset": reader.views.dataset.key,
        "views": reader.views.key,
        "rows": reader.rows,
        "grid": "×".join(map(str, reader.grid)),
        "class_token_width": reader.cls_dim,
        "patch_token_width": reader.patch_dim,
        "codec": reader.codec,
        "bytes": reader.stored_bytes(),
        "complete": reader.complete,
        "missing_shards": reader.missing_shards(),
        "failed_rows": reader.failed_rows().tolist(),
        "identity": reader.identity,
    }


def verify_features(*, key: str, store: str, on_event: OnEvent) -> dict[str, Any]:
    """Return {verified shards, missing shards, damaged: {shard: what is wrong}} of one feature set."""
    reader = FeatureStore.open(store).features(key)
    missing = reader.missing_shards()
    there = sorted(set(range(reader.shards)) - set(missing))
    damaged: dict[str, str] = {}
    for done, shard in enumerate(there, start=1):
        try:
            reader.group.verify(shard)
        except CacheDamaged as error:
            damaged[str(shard)] = str(error)
            on_event({"event": "warning", "text": str(error)})
        on_event({"event": "progress", "stage": f"verify {reader.key}", "done": done, "total": len(there), "unit": "shards"})
    return {"key": reader.key, "verified": len(there) - len(damaged), "missing_shards": missing, "damaged": damaged}
