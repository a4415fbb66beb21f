"""A store: datasets, views, feature sets and subsets below one folder or URL, found by name.

    STORE/
      eupe-store.json        says that this is a store, and of which format
      datasets/<name>@<digest>/   views/<name>@<digest>/   features/<name>@<digest>/   subsets/<name>@<digest>/
      statistics/<name>@<digest>.json     measured before the first shard is written; never replaced

A name without its digest is enough while it is the only one of its kind. Of a dataset with versions it means the newest, and so does the
name of what was made of them; otherwise the error lists the candidates.
"""

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .core.errors import BadInput, CacheDamaged, command, unknown_name
from .core.identity import canonical_json, digest, short
from .features.features import FeatureReader
from .features.statistics import Statistics
from .images.dataset import ImageDataset, read_description
from .images.subsets import ImageSubset
from .images.versions import Earlier, earlier_versions
from .objects.content_addressed import MARKER, MAX_IDENTITY_BYTES, is_key, parsing, read_identity
from .objects.damaged_files import read_or_flaw
from .objects.held_shards import HeldObjects
from .objects.objects import Objects, open_objects
from .objects.remote import RemoteObjects
from .objects.shard_cache import DEFAULT_LIMIT_BYTES, CachedObjects
from .views.view_set import ViewSet

FORMAT = 1
MARKER_BYTES = canonical_json({"format": FORMAT, "kind": "eupe-pipeline store"})
MAX_STATISTICS_BYTES = 256 << 20  # two PHI-S matrices of 4,096 channels in base64


class FeatureStore:
    """The datasets, views and feature sets below a folder or URL."""

    def __init__(self, objects: Objects) -> None:
        self.objects, self.url = objects, objects.url

    @classmethod
    def open(cls, url: str | Path, *, shard_cache: Path | None = None, shard_cache_bytes: int = DEFAULT_LIMIT_BYTES) -> "FeatureStore":
        """Open an existing store; raise `BadInput` when there is none at `url`.

        With a `shard_cache` folder, whole shards of a remote store are downloaded and kept there, up to `shard_cache_bytes`. Without
        one, those of a reader that goes through them in order are held in memory for as long as it needs them (`held_shards`).
        """
        objects = open_objects(str(url))
        if isinstance(objects, RemoteObjects):
            objects = HeldObjects(objects.url) if shard_cache is None else CachedObjects(objects, shard_cache, shard_cache_bytes)
        flaw = marker_flaw(objects)
        if flaw:
            raise _not_a_store_error(objects, f"its {MARKER} {flaw}")
        return cls(objects)

    @classmethod
    def open_damaged(cls, url: str | Path) -> "FeatureStore":
        """Open a store for examination although its marker may be damaged; raise `BadInput` where there is no store at all."""
        objects = open_objects(str(url))
        flaw = marker_flaw(objects)
        if flaw and not _holds_sets(objects):
            raise _not_a_store_error(objects, f"its {MARKER} {flaw}")
        return cls(objects)

    @classmethod
    def create(cls, url: str | Path) -> "FeatureStore":
        """Open the store at `url`, creating it when there is none; raise `BadInput` for a folder with other files in it."""
        objects = open_objects(str(url), make=True)
        if objects.size(MARKER) is None:
            if _holds_sets(objects):
                raise _not_a_store_error(objects, f"its {MARKER} is missing")
            strangers = objects.names("")
            if strangers:
                raise BadInput(
                    f"{url} is not a feature store and is not empty (it holds {', '.join(strangers[:3])}); "
                    "give an empty or a new folder for --store"
                )
            objects.create(MARKER, [MARKER_BYTES])
        return cls.open(url)

    def __repr__(self) -> str:
        return f"FeatureStore({self.url!r})"

    def list_datasets(self) -> list[str]:
        """Return the keys of the datasets."""
        return self._keys("datasets")

    def list_view_sets(self) -> list[str]:
        """Return the keys of the view sets."""
        return self._keys("views")

    def list_features(self) -> list[str]:
        """Return the keys of the feature sets."""
        return self._keys("features")

    def list_subsets(self) -> list[str]:
        """Return the keys of the recorded subsets of datasets."""
        return self._keys("subsets")

    def subset_keys(self, name: str) -> list[str]:
        """Return the keys that match a name, a key or the beginning of one; raise `BadInput` when there is none."""
        keys = self.list_subsets()
        base_name, _, prefix = name.partition("@")
        matches = [key for key in keys if key.split("@")[0] == base_name and key.split("@")[1].startswith(prefix)]
        if not matches:
            raise unknown_name(f"subsets in {self.url}:", name, keys)
        return matches

    def subset(self, name: str) -> ImageSubset:
        """Return a recorded subset by name or key; raise `BadInput` when it is unknown or ambiguous."""
        return ImageSubset(self.objects, self._resolve("subsets", name))

    def _keys(self, kind: str) -> list[str]:
        """Return the names that are keys; other files and folders there (a backup copy, a stray file) are ignored."""
        return [name for name in self.objects.names(kind) if is_key(name)]

    def _resolve(self, kind: str, name: str) -> str:
        keys = self._keys(kind)
        if name in keys:
            return name
        base_name, _, prefix = name.partition("@")
        matches = [key for key in keys if key.split("@")[0] == base_name and key.split("@")[1].startswith(prefix)]
        if len(matches) > 1:  # what an interrupted deletion left, or a stray file of such a name, is not a candidate
            matches = self._with_identity(kind, matches) or matches
        if len(matches) > 1 and not prefix:
            matches = self.newest_versions(kind, matches)
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise BadInput(f"{name!r} is the name of several {kind} in {self.url}; say which: {', '.join(matches)}")
        raise unknown_name(f"{kind} in {self.url}:", name, keys)

    def newest_versions(self, kind: str, keys: Sequence[str]) -> list[str]:
        """Return the keys that are of a dataset's newest version, or of a version that nothing newer was made of among these."""
        datasets = {key: self._dataset_described(kind, key) for key in keys}
        extended = {version.digest for _, versions in datasets.values() for version in versions}
        return [key for key, (full_digest, _) in datasets.items() if full_digest not in extended]

    def _dataset_described(self, kind: str, key: str) -> tuple[str, tuple[Earlier, ...]]:
        """Return digest and earlier versions of the dataset that a set is of; ("", ()) where damage hides it."""
        try:
            if kind == "datasets":
                described = read_description(self.objects, f"datasets/{key}")
                return str(described["digest"]), earlier_versions(described)
            identity = read_identity(self.objects, f"{kind}/{key}", "subset" if kind == "subsets" else kind)
            if kind == "features":
                views = self.key_of("views", str(identity["views"]))
                return ("", ()) if views is None else self._dataset_described("views", views)
            dataset = self.key_of("datasets", str(identity["dataset"]))
            return ("", ()) if dataset is None else self._dataset_described("datasets", dataset)
        except (CacheDamaged, KeyError):
            return "", ()

    def _with_identity(self, kind: str, keys: list[str]) -> list[str]:
        return [key for key in keys if self.objects.size(f"{kind}/{key}/identity.json") is not None]

    def key_of(self, kind: str, full_digest: str) -> str | None:
        """Return the key of the set with this digest, or None; of several (copies), one that has an identity.json."""
        keys = [key for key in self._keys(kind) if key.endswith(f"@{short(full_digest)}")]
        with_identity = self._with_identity(kind, keys) if len(keys) > 1 else keys
        return next(iter(with_identity or keys), None)

    def dataset(self, name: str) -> ImageDataset:
        """Return a dataset by name or key; raise `BadInput` when it is unknown or ambiguous."""
        return ImageDataset(self.objects, self._resolve("datasets", name))

    def _dataset_of(self, full_digest: str) -> ImageDataset:
        if (key := self.key_of("datasets", full_digest)) is not None:
            return ImageDataset(self.objects, key)
        raise CacheDamaged(f"{self.url} has no dataset @{short(full_digest)}, over which these views were drawn; index it again")

    def view_set(self, name: str) -> ViewSet:
        """Return a view set by name or key; raise `BadInput` when it is unknown or ambiguous."""
        key = self._resolve("views", name)
        identity = read_identity(self.objects, f"views/{key}", "views")
        return ViewSet(self.objects, key, self._dataset_of(str(identity.get("dataset"))), identity)

    def _views_of(self, full_digest: str) -> ViewSet:
        if (key := self.key_of("views", full_digest)) is not None:
            return self.view_set(key)
        raise CacheDamaged(f"{self.url} has no views @{short(full_digest)}, over which these features were made")

    def features_identity(self, key: str) -> dict[str, Any]:
        """Return the verified identity of a feature set without opening the set; raise `CacheDamaged`."""
        return read_identity(self.objects, f"features/{key}", "features")

    def features_key(self, name: str) -> str:
        """Return the key of a feature set by name or key, without opening it; raise `BadInput` when it is unknown or ambiguous."""
        return self._resolve("features", name)

    def features(self, name: str) -> FeatureReader:
        """Return a feature set by name or key; raise `BadInput` when it is unknown or ambiguous."""
        key = self.features_key(name)
        identity = self.features_identity(key)
        return FeatureReader(self.objects, key, self._views_of(str(identity.get("views"))), identity)

    def keep_statistics(self, name: str, measured_on: dict[str, Any], statistics: Statistics) -> Statistics:
        """Store measured statistics under what they were measured on, unless another writer was first; return those that are stored."""
        self.objects.create(statistics_key(name, measured_on), [pack_kept_statistics(measured_on, statistics)])
        kept = self.kept_statistics(name, measured_on)
        assert kept is not None
        return kept

    def kept_statistics(self, name: str, measured_on: dict[str, Any]) -> Statistics | None:
        """Return the statistics stored for this teacher, these views and this sample, or None."""
        key = statistics_key(name, measured_on)
        try:
            kept = self.read_statistics(key)
        except FileNotFoundError:
            return None
        with parsing(key):
            if kept[0] != measured_on:
                raise ValueError("it was measured on something else; remove it to measure the statistics again")
        return kept[1]

    def read_statistics(self, key: str) -> tuple[dict[str, Any], Statistics]:
        """Return what stored statistics were measured on, and the statistics; raise FileNotFoundError or `CacheDamaged`."""
        return parse_kept_statistics(self.objects.read(key, MAX_STATISTICS_BYTES), key)

    def keys_of_statistics(self, statistics: Statistics) -> list[str]:
        """Return the keys of stored statistics that have these values, whatever they were measured on."""
        keys = [f"statistics/{name}" for name in self.objects.names("statistics") if is_key(name.removesuffix(".json"))]
        return [key for key in keys if self.read_statistics(key)[1].digest == statistics.digest]


def marker_flaw(objects: Objects) -> str:
    """Return what is wrong with a store's marker file, "" when it is correct; raise `BadInput` for a store of another format."""
    data, flaw = read_or_flaw(objects, MARKER, MAX_IDENTITY_BYTES)
    if data is None or flaw or data == MARKER_BYTES:
        return flaw
    try:
        store_format = json.loads(data)["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        return f"cannot be read ({type(error).__name__}: {error})"
    if store_format != FORMAT:
        raise BadInput(
            f"{objects.url} is a store of format {store_format}, this version reads format {FORMAT}. Where no other version ever wrote to "
            f"it, {MARKER} was altered: remove that file, then run {command('features', 'repair', store=objects.url)}"
        )
    return ""


def _holds_sets(objects: Objects) -> bool:
    """Return whether there are datasets, views or features, whatever the marker file says."""
    return any(is_key(name) for kind in ("datasets", "views", "features") for name in objects.names(kind))


def _not_a_store_error(objects: Objects, why: str) -> BadInput:
    url = objects.url
    if _holds_sets(objects):
        advice = f"It holds sets as one does: run {command('features', 'repair', store=url)}"
        return BadInput(f"{url} is not a feature store: {why}. {advice}")
    return BadInput(f"{url} is not a feature store: {why}. Make one with `eupe-pipeline index SOURCE --store {url} --name NAME`")


def pack_kept_statistics(measured_on: dict[str, Any], statistics: Statistics) -> bytes:
    """Return the file content for measured statistics."""
    arrays = {array: base64.b64encode(values.astype("<f4").tobytes()).decode() for array, values in statistics.arrays().items()}
    body = {"measured_on": measured_on, "count": statistics.count, "arrays": arrays}
    return canonical_json({**body, "digest": digest(body)})


def parse_kept_statistics(data: bytes, key: str) -> tuple[dict[str, Any], Statistics]:
    """Return what the statistics in a file were measured on, and the statistics; raise `CacheDamaged` for an altered file."""
    with parsing(key):
        body = json.loads(data)
        claimed = body.pop("digest")
        if claimed != digest(body) or canonical_json({**body, "digest": claimed}) != data:
            raise ValueError("its own digest differs")
        arrays = {array: np.frombuffer(base64.b64decode(raw), "<f4").astype(np.float32) for array, raw in body["arrays"].items()}
        return body["measured_on"], Statistics.from_arrays(arrays, body["count"])


def canary_key(teacher_identity: dict[str, Any]) -> str:
    """Return the object key of a teacher's canary."""
    return f"canaries/{digest(teacher_identity)}.json"


def statistics_key(name: str, measured_on: dict[str, Any]) -> str:
    """Return the object key of a teacher's statistics."""
    return f"statistics/{name}@{short(digest(measured_on))}.json"
