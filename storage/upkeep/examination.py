"""Examine every file of a store, from the marker down to the last shard: one pass for both `verify` and `repair`.

Each layer is judged by the one above it: a dataset by the digest in its name, an index by the dataset's identity, metadata by identities,
objects by records. A damaged file is repaired before the files that depend on it are judged, so that damage of one is not reported as
damage of the others. A file that cannot be judged because a file above it is lost is left alone and reported.
"""

import contextlib
import time

from ..core.errors import CacheDamaged, EupeError
from ..core.identity import digest, short
from ..core.urls import is_url
from ..features.features import FeatureReader
from ..images.dataset import ImageDataset
from ..objects.content_addressed import MARKER, read_identity
from ..objects.damaged_files import read_or_flaw, replace_verified, set_aside
from ..shards.commit import MAX_RECORD_BYTES, parse_record, record_key
from ..store import MARKER_BYTES, marker_flaw
from ..views.view_set import ViewSet
from .examine_datasets import examine_dataset
from .examine_groups import examine_group
from .examine_sets import examine_features, examine_identity, examine_strays, examine_views, lost_features, lost_views
from .examine_subsets import examine_subset
from .examiner import Examiner
from .leases import holders


def examine(examiner: Examiner, key: str | None = None) -> dict[str, FeatureReader]:
    """Examine the store, or what the feature set `key` needs of it; return the feature sets that can be opened."""
    _examine_marker(examiner)
    store, views = examiner.store, dict[str, ViewSet]()
    identities = {name: _examine_features_identity(examiner, name) for name in ([key] if key is not None else store.list_features())}
    views_digest = None if key is None or identities[key] is None else str((identities[key] or {}).get("views"))
    view_keys = [name for name in store.list_view_sets() if views_digest is None or name.endswith(f"@{short(views_digest)}")]
    datasets = _examine_datasets(examiner, view_keys, key is not None)
    intact = {name: dataset for name, (dataset, _) in datasets.items() if dataset is not None}
    has_writers = _has_writers(examiner)
    for view_key in view_keys:
        view_set = _examine_views(examiner, view_key, intact)
        if view_set is not None:
            views[view_set.digest] = view_set
            referenced = _ReferencedRecords(examiner, view_set)
            examine_group(examiner, view_set, datasets[view_set.dataset.key][1], referenced.digests, has_writers)
    readers = {}
    for features_key, identity in identities.items():
        if identity is None:
            continue
        feature_views = views.get(str(identity.get("views")))
        if feature_views is None:
            _report_missing_views(examiner, features_key, f"@{short(str(identity.get('views')))}")
            continue
        reader = examine_features(examiner, features_key, identity, feature_views)
        if reader is not None:
            readers[features_key] = reader
            examine_group(examiner, reader, datasets[feature_views.dataset.key][1], lambda shard: set(), has_writers)
    if key is None:
        for subset_key in store.list_subsets():
            examine_subset(examiner, subset_key, {dataset.digest for dataset in intact.values()})
        examine_strays(examiner)
    _examine_leases(examiner)
    return readers


def _report_missing_views(examiner: Examiner, key: str, views_key: str) -> None:
    if any(view_key.endswith(views_key) for view_key in examiner.store.list_view_sets()):
        way_out = "the views first, as is said of them"
    else:
        way_out = "they are not in the store: run the same `eupe-pipeline extract-features` again that made the set, with the same options"
    examiner.add_finding("identity", f"features/{key}", f"cannot be judged without its views {views_key}", "", way_out)


def _examine_marker(examiner: Examiner) -> None:
    flaw = marker_flaw(examiner.objects)
    if not flaw and read_or_flaw(examiner.objects, MARKER)[0] != MARKER_BYTES:
        flaw = "is not what the format says"
    if flaw:
        replace_verified(examiner.objects, MARKER, MARKER_BYTES)
        examiner.add_finding("marker", MARKER, flaw, "the format's definition")


def _examine_features_identity(examiner: Examiner, key: str) -> dict[str, object] | None:
    return examine_identity(examiner, "features", key, lambda: lost_features(examiner, key))


def _examine_datasets(examiner: Examiner, view_keys: list[str], only_needed: bool) -> dict[str, tuple[ImageDataset | None, bool]]:
    """Examine all datasets, or those that the views name as far as readable; return each with whether its index is intact."""
    needed, has_unreadable = set(), False
    for key in view_keys:
        try:
            needed.add(short(str(read_identity(examiner.objects, f"views/{key}", "views").get("dataset"))))
        except EupeError:
            has_unreadable = True
    keys = examiner.store.list_datasets()
    chosen = [key for key in keys if not only_needed or has_unreadable or key.rpartition("@")[2] in needed]
    return {key: examine_dataset(examiner, key) for key in chosen}


def _examine_views(examiner: Examiner, key: str, datasets: dict[str, ImageDataset]) -> ViewSet | None:
    identity = examine_identity(examiner, "views", key, lambda: lost_views(examiner, key, list(datasets.values())))
    if identity is None:
        return None
    dataset = next((candidate for candidate in datasets.values() if candidate.digest == identity.get("dataset")), None)
    if dataset is None:
        dataset_key = f"@{short(str(identity.get('dataset')))}"
        if any(known.endswith(dataset_key) for known in examiner.store.list_datasets()):
            way_out = "the dataset first, as is said of it"
        else:
            again = examiner.command("index", "SOURCE", "--name", key.rpartition("@")[0])
            way_out = f"it is not in the store: run {again}, where SOURCE is the place where its images lie"
        examiner.add_finding("identity", f"views/{key}", f"cannot be judged without its dataset {dataset_key}", "", way_out)
        return None
    return examine_views(examiner, key, identity, dataset)


def _has_writers(examiner: Examiner) -> bool:
    """Return whether an extraction holds a lease, and so may be writing shards; by this machine's clock, since nothing may be written."""
    return any(holders(examiner.objects, key, time.time) for key in examiner.objects.names("leases"))


def _examine_leases(examiner: Examiner) -> None:
    """Move folders in the place of lease files out of the way; the content of leases does not matter."""
    if is_url(examiner.url):  # there are no folders
        return
    for key in examiner.objects.names("leases"):
        for name in examiner.objects.names(f"leases/{key}"):
            where = f"leases/{key}/{name}"
            if examiner.objects.size(where) is None and name in examiner.objects.names(f"leases/{key}"):
                if examiner.may_write:
                    set_aside(examiner.objects, where)
                examiner.add_finding("lease", where, "is a folder", "nothing: it is set aside")


class _ReferencedRecords:
    """The records of views from which feature sets say that they were made."""

    def __init__(self, examiner: Examiner, views: ViewSet) -> None:
        self._examiner, self._sets = examiner, dict[str, str]()
        for key in examiner.store.list_features():
            with contextlib.suppress(EupeError):
                identity = examiner.store.features_identity(key)
                if identity.get("views") == views.digest:
                    self._sets[key] = digest(identity)

    def digests(self, shard: int) -> set[str]:
        """Return the digests of a shard's record of views that records of features refer to."""
        digests = set()
        for key, group in self._sets.items():
            where = f"features/{key}/{record_key(shard)}"
            data, flaw = read_or_flaw(self._examiner.objects, where, MAX_RECORD_BYTES)
            with contextlib.suppress(CacheDamaged):
                if data is not None and not flaw:
                    digests.add(parse_record(data, where=where, group=group, shard=shard).views_record)
        return digests - {""}
