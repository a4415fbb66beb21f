"""The functions of the `features` commands: list a store, show one set in full, verify every committed byte; prune, copy, compact.

Listing, showing and verifying never write. Verifying reads every file (`storage.upkeep.examination`), each object of each committed shard
once; damage is named and the check goes on, so that one run finds all of it. Pruning, copying and compacting are done by the storage room;
here their results are put in words.
"""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...storage.core.errors import BadInput, CacheDamaged, StoreUnavailable
from ...storage.core.events import OnEvent, ignore_event
from ...storage.core.identity import short
from ...storage.core.urls import is_url
from ...storage.features.features import FeatureReader
from ...storage.features.layers import patch_array
from ...storage.features.statistics import STD_FLOOR, Statistics
from ...storage.images.dataset import ImageDataset
from ...storage.images.growth import versions_named
from ...storage.index import version_fields
from ...storage.objects.dry_run_objects import DryRunObjects
from ...storage.store import FeatureStore
from ...storage.upkeep.copying import copy_features
from ...storage.upkeep.examination import examine
from ...storage.upkeep.examiner import Examiner
from ...storage.upkeep.findings import Finding
from ...storage.upkeep.maintenance import checked_part, prune
from ...storage.views.input_size import size_text
from ...storage.views.view_set import ViewSet

_NAMED_CHANNELS = 16


def list_store(*, store: str, on_event: OnEvent = ignore_event) -> dict[str, Any]:
    """Return every dataset, view set, feature set and subset with its size and how much of it is there.

    Those that cannot be opened, because they were altered or never finished, stand under "unreadable", each with the reason.
    """
    opened = FeatureStore.open(store)
    unreadable: dict[str, str] = {}

    def listed(kind: str, keys: list[str], row: Callable[[FeatureStore, str], dict[str, Any]]) -> dict[str, Any]:
        rows = {}
        for key in keys:
            try:
                rows[key] = row(opened, key)
            except (CacheDamaged, StoreUnavailable) as error:  # one unfinished or damaged set must not hide the others
                unreadable[f"{kind}/{key}"] = str(error)
        return rows

    features = listed("features", opened.list_features(), _features_row)
    if any("layers" in row for row in features.values()):
        features = {key: {**row, "layers": row.get("layers")} for key, row in features.items()}  # alike, so that they are one table
    sections: dict[str, Any] = {
        "datasets": listed("datasets", opened.list_datasets(), _dataset_row),
        "views": listed("views", opened.list_view_sets(), _views_row),
        "features": features,
        "subsets": listed("subsets", opened.list_subsets(), _subset_row),
    }
    return {"store": opened.url, **sections, **({"unreadable": unreadable} if unreadable else {})}


def _dataset_row(store: FeatureStore, key: str) -> dict[str, Any]:
    dataset = store.dataset(key)
    return {"images": len(dataset), "labels": len(dataset.label_names), **_version(store, dataset)}


def _version(store: FeatureStore, dataset: ImageDataset) -> dict[str, Any]:
    """Return which version a dataset is, what it continues and what continues it; {} of one that stands alone."""
    later = [
        newer.key
        for newer in versions_named(store.objects, dataset.name)
        if dataset.digest in {version.digest for version in newer.earlier}
    ]
    versions = version_fields(dataset)
    return {**(versions or {"version": 1}), "continued_by": later} if later else versions


def _views_row(store: FeatureStore, key: str) -> dict[str, Any]:
    view_set = store.view_set(key)
    return {
        "dataset": view_set.dataset.key,
        "kind": view_set.spec.kind,
        "views_per_image": view_set.views_per_image,
        "photometric": view_set.spec.photometric,
        "pixels": _pixels(view_set),
    }


def _features_row(store: FeatureStore, key: str) -> dict[str, Any]:
    reader = store.features(key)
    missing = len(reader.missing_shards())
    dataset = reader.views.dataset
    return {
        "views": reader.views.key,
        **({"dataset": dataset.key, "version": dataset.version} if _version(store, dataset) else {}),
        "rows": reader.rows,
        "codec": reader.codec,
        "tokens": math.prod(reader.layout.token_shape),
        "bytes": reader.stored_bytes(),
        "shards": f"{reader.shards - missing} of {reader.shards}",
        **_layers(reader),
    }


def _layers(reader: FeatureReader) -> dict[str, str]:
    """Return {"layers": …}, the blocks whose tokens stand beside the final ones; {} without any."""
    return {"layers": ", ".join(map(str, reader.layout.layers))} if reader.layout.layers else {}


def _subset_row(store: FeatureStore, key: str) -> dict[str, Any]:
    subset = store.subset(key)
    dataset = next((key for key in store.list_datasets() if key.endswith(f"@{short(subset.dataset_digest)}")), None)
    return {"dataset": dataset or f"@{short(subset.dataset_digest)}, not in this store", "kept": subset.kept, "images": subset.images}


def _pixels(views: ViewSet) -> str | None:
    """Return what pixels a set of views stores, in words."""
    stored = views.spec.pixels
    return None if stored is None else f"{size_text(stored.size_px)} px, {stored.interpolation}, raw uint8"


def show_features(*, key: str, store: str, on_event: OnEvent = ignore_event, html: Path | None = None) -> dict[str, Any]:
    """Return one feature set: what its tokens are, bytes, completeness, which rows failed, its statistics in short, its identity.

    With `html` also write a page to look at.
    """
    opened = FeatureStore.open(store)
    reader = opened.features(key)
    missing, layout = reader.missing_shards(), reader.layout
    if html is not None:
        from .cache_page import write_cache_page

        write_cache_page(reader, html, on_event)
    return {
        **({} if html is None else {"page": str(html)}),
        "key": reader.key,
        "dataset": reader.views.dataset.key,
        **({"versions": versions} if (versions := _version(opened, reader.views.dataset)) else {}),
        "views": reader.views.key,
        "photometric": reader.views.spec.photometric,
        "pixels": _pixels(reader.views),
        "views_bytes": reader.views.stored_bytes(),
        "rows": reader.rows,
        "grid": "×".join(map(str, reader.grid)),
        "resampled_from": None if layout.resampled_from is None else "×".join(map(str, layout.resampled_from)),
        "tokens_per_view": math.prod(layout.token_shape),
        **_layers(reader),
        "class_token_width": reader.cls_dim,
        "patch_token_width": reader.patch_dim,
        "codec": reader.codec,
        "bytes": reader.stored_bytes(),
        "bytes_of_a_view": layout.view_bytes,
        "complete": not missing,
        "shards": reader.shards,
        "missing_shards": missing,
        "failed_rows": reader.failed_rows().tolist(),
        "statistics": summarised(reader.statistics),
        "identity": reader.identity,
    }


def summarised(statistics: Statistics) -> dict[str, Any]:
    """Return statistics in a few figures: method, views, digest, and for class, patch and each layer's tokens the spread over channels.

    Near-dead channels are those whose deviation is the floor: they are divided by it, and the first few are named.
    """
    kinds = {"cls": (statistics.cls_mean, statistics.cls_std), "patch": (statistics.patch_mean, statistics.patch_std)}
    kinds |= {
        patch_array(layer): (layer_statistics.patch_mean, layer_statistics.patch_std)
        for layer, layer_statistics in statistics.layers.items()
    }
    spread: dict[str, dict[str, float]] = {}
    near_dead: dict[str, dict[str, Any]] = {}
    for kind, (mean, std) in kinds.items():
        if mean is not None and std is not None:
            spread |= {f"{kind}_mean": _spread(mean), f"{kind}_std": _spread(std)}
            dead = np.flatnonzero(std <= np.float32(STD_FLOOR)).tolist()
            near_dead[kind] = {"count": len(dead), "of": len(std), "first": dead[:_NAMED_CHANNELS]}
    described = {"method": statistics.method, "count": statistics.count, "digest": statistics.digest, "deviation_floor": STD_FLOOR}
    return {**described, "over_channels": spread, "near_dead_channels": near_dead}


def _spread(values: NDArray[np.float32]) -> dict[str, float]:
    return {name: float(value) for name, value in zip(("least", "median", "greatest"), np.percentile(values, (0, 50, 100)), strict=True)}


def verify_features(*, store: str, on_event: OnEvent = ignore_event, key: str | None = None, subset: str = "1/1") -> dict[str, Any]:
    """Return all damage of a store, or of one feature set and what it needs: its dataset, its views, its statistics, its canary.

    Every file is checked, and the check goes on after each finding; `subset` k/n checks a part of the shards. `findings` says of each what
    is wrong, what it can be made again from, and the command that helps. Of one set, {verified shards, missing shards, damaged: {shard:
    what is wrong}, views_damaged} as well: figures of that part, so that those of the n parts add up to those of the whole.
    """
    opened = FeatureStore.open_damaged(store)
    full_key = None if key is None else opened.features_key(key)
    number, _, parts = subset.partition("/")
    if not (number.isdecimal() and parts.isdecimal()):
        raise BadInput(f"--subset takes k/n, such as 1/10, got {subset!r}")
    part = checked_part((int(number), int(parts)))
    examiner = Examiner(FeatureStore(DryRunObjects(opened.objects)), full_key, images=False, may_write=False, part=part, on_event=on_event)
    readers = examine(examiner, full_key)
    for finding in examiner.findings:
        if not finding.unfinished:
            on_event({"event": "warning", "text": str(finding)})
    figures = {name: _figures(examiner.findings, reader, part) for name, reader in readers.items()}
    listed = {
        name: [finding.as_json() for finding in examiner.findings if finding.unfinished == (name == "unfinished")]
        for name in ("findings", "unfinished")
    }
    if full_key is None:
        return {"store": opened.url, "features": figures, **listed}
    return {"key": full_key, **figures.get(full_key, {"verified": 0, "missing_shards": [], "damaged": {}, "views_damaged": {}}), **listed}


def _figures(findings: list[Finding], reader: FeatureReader, part: tuple[int, int]) -> dict[str, Any]:
    """Return the figures of a feature set's shards in one part of them."""
    number, parts = part
    missing = [shard for shard in reader.missing_shards() if shard % parts == number - 1]
    damaged = {
        kind: {str(finding.shard): finding.what for finding in findings if _is_of(finding, prefix)}
        for kind, prefix in (("damaged", reader.group.prefix), ("views_damaged", reader.views.group.prefix))
    }
    bad = set(map(int, damaged["damaged"])) - set(missing)
    return {"verified": len(range(number - 1, reader.shards, parts)) - len(missing) - len(bad), "missing_shards": missing, **damaged}


def _is_of(finding: Finding, prefix: str) -> bool:
    """Return whether a finding is damage of a shard of this set."""
    return finding.shard is not None and not finding.unfinished and finding.where.startswith(f"{prefix}/")


def prune_features(*, key: str, store: str, dry_run: bool, on_event: OnEvent = ignore_event) -> dict[str, Any]:
    """Delete one feature set or subset, or say what would go; refused while a run holds a lease on it.

    Of objects that a set over another version of the dataset shares (hard links), the bytes stay until that set goes as well.
    """
    opened = FeatureStore.open(store)
    whole = _prunable(opened, key)
    shared = _shared_objects(opened, prune(opened, whole, dry_run=True))
    removed = prune(opened, whole, dry_run=dry_run, on_event=on_event)
    note = {"shared_objects": shared, "note": "their bytes stay: sets over other versions of the dataset use them"} if shared else {}
    return {"key": whole, "dry_run": dry_run, "objects": len(removed), **note}


def _shared_objects(store: FeatureStore, keys: list[str]) -> int:
    """Return how many objects of a local store have a second name."""
    return 0 if is_url(store.url) else sum(Path(store.url, key).stat().st_nlink > 1 for key in keys)


def _prunable(store: FeatureStore, name: str) -> str:
    """Return the key of a feature set or subset; raises `BadInput` for a name that both kinds, several or none have."""
    word = name.partition("@")[0]
    of_sets, of_subsets = (
        [key for key in keys if key.startswith(name) and key.partition("@")[0] == word]
        for keys in (store.list_features(), store.list_subsets())
    )
    if len(of_sets) + len(of_subsets) > 1:  # also of versions of a dataset, where a name means the newest elsewhere
        raise BadInput(f"{name!r} is the name of several things in {store.url}; say which: {', '.join([*of_sets, *of_subsets])}")
    return of_subsets[0] if of_subsets else store.features_key(name)


def copy_feature_set(*, key: str, store: str, target: str, on_event: OnEvent = ignore_event) -> dict[str, Any]:
    """Copy one feature set with its views and dataset to another store, verified; run again, it copies what is missing."""
    from ...jobs.runs.reading_leases import leases

    opened = FeatureStore.open(store)
    full_key = opened.features_key(key)
    with leases(opened, [full_key], "cp", on_event):
        reader = copy_features(opened, full_key, FeatureStore.create(target), on_event)
    return {"key": reader.key, "store": target, "complete": reader.complete, "bytes": reader.stored_bytes()}


def _report_shard(on_event: OnEvent, stage: str, total: int, shard: int) -> None:
    on_event({"event": "progress", "stage": stage, "done": shard + 1, "total": total, "unit": "shards"})


def compact_features(*, key: str, store: str, on_event: OnEvent = ignore_event) -> dict[str, Any]:
    """Put the commit records of full spans of shards into ledgers, for the set and its views."""
    reader = FeatureStore.open(store).features(key)
    ledgers = {}
    for kind, group in (("features", reader.group), ("views", reader.views.group)):
        ledgers[kind] = group.compact(partial(_report_shard, on_event, f"compact {group.prefix}", group.shards))
    return {"key": reader.key, "ledgers": ledgers}
