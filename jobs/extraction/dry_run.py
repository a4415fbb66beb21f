"""The dry run of an extraction: what it would do, with nothing written to the store.

Keys follow from identities: what the store lacks is made in memory over it (`storage.objects.dry_run_objects`), for its key and size. A
feature set's key holds its statistics; where those are still to be measured it is not known yet, and sizes follow from the shapes.
"""

from collections.abc import Mapping
from typing import Any

from ...storage.earlier_sets import EarlierSets
from ...storage.features.features import FeatureReader, features_identity
from ...storage.features.layout import FeatureLayout
from ...storage.store import FeatureStore
from ...storage.views.view_set import ViewSet
from .measure_statistics import Normalisation


def dry_summary(store: FeatureStore, views: ViewSet, layouts: Mapping[str, FeatureLayout], normalisation: Normalisation) -> dict[str, Any]:
    """Return the shards that a run would compute, the bytes it would write by teacher, and the statistics it would measure first.

    What an earlier version of the dataset gives, as far as its records say, is not counted.
    `store` writes to memory only (`storage.objects.dry_run_objects`).
    """
    missing: dict[str, set[int]] = {}
    rows: dict[str, int] = {}
    keys: dict[str, str | None] = {}
    view_rows: dict[int, int] = {}
    for name, layout in layouts.items():
        reader = _reader(store, views, name, layout, normalisation)
        keys[name], missing[name], rows[name] = None if reader is None else reader.key, set(), 0
        earlier = EarlierSets.of(store, views, [] if reader is None else [reader])
        for shard in range(views.shards) if reader is None else reader.missing_shards():
            known = 0 if reader is None else earlier.known_rows(shard, reader)
            if known < rows_of_shard(views, shard):
                missing[name].add(shard)
            rows[name] += rows_of_shard(views, shard) - known
            view_rows[shard] = rows_of_shard(views, shard) - earlier.known_view_rows(shard)
    shards = set().union(*missing.values())
    absent = set(view_rows) - views.group.committed()
    again = 0 if normalisation.whole else normalisation.sampled
    return {
        "event": "summary",
        "dry_run": True,
        "features": keys,
        "views": views.key,
        "images": len(views.dataset),
        "rows": views.rows,
        "shards": views.shards,
        "shards_missing": len(shards),
        "rows_to_compute": rows,
        "statistics_missing": normalisation.missing,
        "statistics_views": dict.fromkeys(normalisation.missing, normalisation.sampled),
        "forwards_expected": {name: rows[name] + (again if name in normalisation.missing else 0) for name in layouts},
        "bytes_expected": {name: rows[name] * layout.view_bytes for name, layout in layouts.items()},
        "views_bytes_expected": sum(view_rows[shard] for shard in absent) * sum(spec.row_bytes for spec in views.group.specs.values()),
    }


def _reader(store: FeatureStore, views: ViewSet, name: str, layout: FeatureLayout, normalisation: Normalisation) -> FeatureReader | None:
    """Return a teacher's feature set, None where its key is not known yet."""
    known = normalisation.known.get(name)
    if known is None:
        return None
    identity = features_identity(normalisation.specs[name].identity(), views, known, normalisation.sampling[name], layout)
    return FeatureReader.create(store.objects, name, views, identity, known)


def rows_of_shard(views: ViewSet, shard: int) -> int:
    """Return how many views a shard has."""
    first, last = views.group.shard_span(shard)
    return last - first
