"""Every file of a store against what it must be, from the marker down to the last shard: one pass for `verify` and for `repair`.

Each layer is judged by the one above: a dataset by the digest in its name, an index by the dataset's identity, metadata by identities,
objects by records. So a damaged file is put right before what lies below it is judged, and damage of one is never taken for damage of the
other. What cannot be judged because something above it is lost is left as it is, and said.
"""

import contextlib

from ..core.errors import CacheDamaged, EupeError
from ..core.identity import digest, short
from ..core.urls import is_url
from ..features.features import FeatureReader
from ..images.dataset import ImageDataset
from ..objects.content_addressed import MARKER, read_identity
from ..objects.mending import held, put, set_aside
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
    """Judge the store, or what the feature set `key` needs of it; returns the feature sets that can be opened."""
    _marker(examiner)
    store, views = examiner.store, dict[str, ViewSet]()
    of_features = {one: _features_identity(examiner, one) for one in ([key] if key is not None else store.list_features())}
    wanted = None if key is None or of_features[key] is None else str((of_features[key] or {}).get("views"))
    view_keys = [one for one in store.list_view_sets() if wanted is None or one.endswith(f"@{short(wanted)}")]
    datasets = _datasets(examiner, view_keys, key is not None)
    whole = {name: dataset for name, (dataset, _) in datasets.items() if dataset is not None}
    busy = _busy(examiner)
    for one in view_keys:
        found = _views(examiner, one, whole)
        if found is not None:
            views[found.digest] = found
            known = _Known(examiner, found)
            examine_group(examiner, found, datasets[found.dataset.key][1], known.digests, busy)
    readers = {}
    for one, identity in of_features.items():
        if identity is None:
            continue
        of_views = views.get(str(identity.get("views")))
        if of_views is None:
            _without_views(examiner, one, f"@{short(str(identity.get('views')))}")
            continue
        reader = examine_features(examiner, one, identity, of_views)
        if reader is not None:
            readers[one] = reader
            examine_group(examiner, reader, datasets[of_views.dataset.key][1], lambda shard: set(), busy)
    if key is None:
        for one in store.list_subsets():
            examine_subset(examiner, one, {dataset.digest for dataset in whole.values()})
        examine_strays(examiner)
    _leases(examiner)
    return readers


def _without_views(examiner: Examiner, key: str, wanted: str) -> None:
    if any(one.endswith(wanted) for one in examiner.store.list_view_sets()):
        way_out = "the views first, as is said of them"
    else:
        way_out = "they are not in the store: run the same `eupe-pipeline extract-features` again that made the set, with the same options"
    examiner.found("identity", f"features/{key}", f"cannot be judged without its views {wanted}", "", way_out)


def _marker(examiner: Examiner) -> None:
    flaw = marker_flaw(examiner.objects)
    if not flaw and held(examiner.objects, MARKER)[0] != MARKER_BYTES:
        flaw = "is not what the format says"
    if flaw:
        put(examiner.objects, MARKER, MARKER_BYTES)
        examiner.found("marker", MARKER, flaw, "the format's definition")


def _features_identity(examiner: Examiner, key: str) -> dict[str, object] | None:
    return examine_identity(examiner, "features", key, lambda: lost_features(examiner, key))


def _datasets(examiner: Examiner, view_keys: list[str], only_needed: bool) -> dict[str, tuple[ImageDataset | None, bool]]:
    """All datasets, or those that the views name as far as that can be read; each with whether its index is whole."""
    needed, unknown = set(), False
    for key in view_keys:
        try:
            needed.add(short(str(read_identity(examiner.objects, f"views/{key}", "views").get("dataset"))))
        except EupeError:
            unknown = True
    keys = examiner.store.list_datasets()
    chosen = [key for key in keys if not only_needed or unknown or key.rpartition("@")[2] in needed]
    return {key: examine_dataset(examiner, key) for key in chosen}


def _views(examiner: Examiner, key: str, datasets: dict[str, ImageDataset]) -> ViewSet | None:
    identity = examine_identity(examiner, "views", key, lambda: lost_views(examiner, key, list(datasets.values())))
    if identity is None:
        return None
    dataset = next((one for one in datasets.values() if one.digest == identity.get("dataset")), None)
    if dataset is None:
        wanted = f"@{short(str(identity.get('dataset')))}"
        if any(one.endswith(wanted) for one in examiner.store.list_datasets()):
            way_out = "the dataset first, as is said of it"
        else:
            again = examiner.command("index", "SOURCE", "--name", key.rpartition("@")[0])
            way_out = f"it is not in the store: run {again}, where SOURCE is the place where its images lie"
        examiner.found("identity", f"views/{key}", f"cannot be judged without its dataset {wanted}", "", way_out)
        return None
    return examine_views(examiner, key, identity, dataset)


def _busy(examiner: Examiner) -> bool:
    """Whether somebody may be writing shards: who extracts holds a lease."""
    return any(holders(examiner.objects, key) for key in examiner.objects.names("leases"))


def _leases(examiner: Examiner) -> None:
    """A lease's content does not matter; a folder in the place of one blocks whoever clears up."""
    if is_url(examiner.url):  # there are no folders
        return
    for key in examiner.objects.names("leases"):
        for name in examiner.objects.names(f"leases/{key}"):
            where = f"leases/{key}/{name}"
            if examiner.objects.size(where) is None and name in examiner.objects.names(f"leases/{key}"):
                if examiner.acting:
                    set_aside(examiner.objects, where)
                examiner.found("lease", where, "is a folder", "nothing: it is set aside")


class _Known:
    """What feature sets say of the records of the views that they were made from."""

    def __init__(self, examiner: Examiner, views: ViewSet) -> None:
        self._examiner, self._sets = examiner, dict[str, str]()
        for key in examiner.store.list_features():
            with contextlib.suppress(EupeError):
                identity = examiner.store.features_identity(key)
                if identity.get("views") == views.digest:
                    self._sets[key] = digest(identity)

    def digests(self, shard: int) -> set[str]:
        """Digests of a shard's record of views, as records of features name it."""
        found = set()
        for key, group in self._sets.items():
            where = f"features/{key}/{record_key(shard)}"
            data, flaw = held(self._examiner.objects, where, MAX_RECORD_BYTES)
            with contextlib.suppress(CacheDamaged):
                if data is not None and not flaw:
                    found.add(parse_record(data, where=where, group=group, shard=shard).views_record)
        return found - {""}
