"""The dry run of an extraction: what it would do, with nothing written to the store.

Keys follow from identities: what the store lacks is made in memory over it (`storage.objects.dry_run_objects`), for its key and size. A
feature set's key holds its statistics; where those are still to be measured it is not known yet, and sizes follow from the shapes.
"""

from collections.abc import Mapping
from typing import Any

from ...storage.features.features import FeatureReader, features_identity
from ...storage.features.layout import FeatureLayout
from ...storage.store import FeatureStore
from ...storage.views.view_set import ViewSet
from .measure_statistics import Normalisation


def dry_summary(store: FeatureStore, views: ViewSet, layouts: Mapping[str, FeatureLayout], normalisation: Normalisation) -> dict[str, Any]:
    """Return the shards that a run would compute, the bytes it would write by teacher, and the statistics it would measure first.

    `store` writes to memory only (`storage.objects.dry_run_objects`).
    """
    missing: dict[str, set[int]] = {}
    keys: dict[str, str | None] = {}
    for name, layout in layouts.items():
        keys[name], missing[name] = _missing(store, views, name, layout, normalisation)
    shards, again = set().union(*missing.values()), 0 if normalisation.whole else normalisation.sampled
    return {
        "event": "summary",
        "dry_run": True,
        "features": keys,
        "views": views.key,
        "images": len(views.dataset),
        "rows": views.rows,
        "shards": views.shards,
        "shards_missing": len(shards),
        "statistics_missing": normalisation.missing,
        "statistics_views": dict.fromkeys(normalisation.missing, normalisation.sampled),
        "forwards_expected": {name: _rows(views, missing[name]) + (again if name in normalisation.missing else 0) for name in layouts},
        "bytes_expected": {name: _rows(views, missing[name]) * layout.view_bytes for name, layout in layouts.items()},
        "views_bytes_expected": _rows(views, shards - views.group.committed()) * sum(spec.row_bytes for spec in views.group.specs.values()),
    }


def _missing(
    store: FeatureStore, views: ViewSet, name: str, layout: FeatureLayout, normalisation: Normalisation
) -> tuple[str | None, set[int]]:
    """Return a teacher's key, None where it is not known yet, and its shards without a record."""
    known = normalisation.known.get(name)
    if known is None:
        return None, set(range(views.shards))
    identity = features_identity(normalisation.specs[name].identity(), views, known, normalisation.sampling[name], layout)
    reader = FeatureReader.create(store.objects, name, views, identity, known)
    return reader.key, set(reader.missing_shards())


def _rows(views: ViewSet, shards: set[int]) -> int:
    spans = [views.group.shard_span(shard) for shard in shards]
    return sum(last - first for first, last in spans)
