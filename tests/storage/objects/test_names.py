"""What lies in a store by accident (backups, desktops' files, copies that were stopped) stands in nobody's way; URLs have one spelling."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from eupe_pipeline.pipeline.reports.catalog import copy_feature_set, list_store, prune_features, show_features, verify_features
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.objects.content_addressed import is_key
from eupe_pipeline.storage.objects.objects import open_objects
from eupe_pipeline.storage.objects.remote import RemoteObjects
from eupe_pipeline.storage.sources.sources import open_source
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.views.view_set import ViewSet
from eupe_pipeline.storage.views.view_spec import ViewSpec

from ..made_up_store import Made, everything, reopen, same


def silent(event: object) -> None:
    """Say nothing."""


def litter(made: Made) -> None:
    """Everything that people and desktops leave."""
    for kind, key in (("datasets", made.dataset.key), ("views", made.views.key), ("features", made.features.key)):
        folder = made.folder / kind
        for copy in (f"{key}.bak", f"{key} copy", f"Copy of {key}", f"{key}.tmp", f"{key}~"):
            shutil.copytree(folder / key, folder / copy)
        (folder / "old@backup").mkdir()
        (folder / "@").mkdir()
        (folder / f"{key}.tar").write_bytes(b"x")
        (folder / "notes.txt").write_text("mine")
        for place in (folder, folder / key, *(path for path in (folder / key).iterdir() if path.is_dir())):
            (place / ".DS_Store").write_bytes(b"desktop")
            (place / "._zarr.json").write_bytes(b"desktop")
        commits = folder / key / "commits"
        if commits.is_dir():
            (commits / "000000.json.bak").write_bytes(b"x")
            (commits / "000001 copy.json").write_bytes(b"x")
    for name in ("leases", f"leases/{made.features.key}", "statistics", "canaries", ""):
        (made.folder / name).mkdir(exist_ok=True)
        (made.folder / name / ".DS_Store").write_bytes(b"desktop")
    (made.folder / "leases" / "notes.txt").write_text("mine")
    (made.folder / "statistics" / "notes.txt").write_text("mine")


def test_only_a_name_and_a_digest_make_a_key() -> None:
    key = "photos@0123456789ab"
    assert is_key(key)
    assert is_key("a.b_c+d@0123456789ab")
    strange = ["photos", "photos@", "@0123456789ab", "photos@0123456789AB", f"{key}.bak", f"{key} copy", f"Copy of {key}", f"{key}~"]
    for name in [*strange, f"x@{key}"]:
        assert not is_key(name), name


def test_litter_breaks_nothing(copied: Callable[[], Made], tmp_path: Path) -> None:
    made = copied()
    wanted = everything(made)
    litter(made)
    url, key = made.store.url, made.features.key
    assert same(everything(reopen(made)), wanted)
    store = FeatureStore.open(url)
    assert (store.list_datasets(), store.list_view_sets(), store.list_features()) == ([made.dataset.key], [made.views.key], [key])
    assert store.features("made-up").key == key
    assert ViewSet.create(store.objects, store.dataset("photos"), ViewSpec(views_per_image=2, seed=3), 4).key == made.views.key
    listed = list_store(store=url, on_event=silent)
    assert list(listed["features"]) == [key]
    assert "unreadable" not in listed
    assert show_features(key="made-up", store=url, on_event=silent)["complete"]
    found = verify_features(store=url, key=key, on_event=silent)
    assert (found["verified"], found["findings"]) == (5, [])
    copy = copy_feature_set(key=key, store=url, target=str(tmp_path / "target"), on_event=silent)
    assert copy["complete"]
    assert (FeatureStore.open(tmp_path / "target").features(key).read(np.arange(40)).patch == made.features.read(np.arange(40)).patch).all()
    assert not [path for path in (tmp_path / "target").rglob("*") if path.name.startswith(".")]
    prune_features(key=key, store=url, dry_run=False, on_event=silent)
    assert FeatureStore.open(url).list_features() == []
    assert (made.folder / "features" / f"{key}.bak" / "identity.json").is_file()


def test_a_key_is_taken_before_a_name_and_what_has_an_identity_before_what_has_none(copied: Callable[[], Made]) -> None:
    made = copied()
    (made.folder / "features" / "made-up@000000000000").mkdir()
    (made.folder / "views" / f"a-copy@{made.views.key.partition('@')[2]}").mkdir()
    (made.folder / "datasets" / f"a-copy@{made.dataset.key.partition('@')[2]}").write_bytes(b"a file")
    store = FeatureStore.open(made.store.url)
    assert store.features("made-up").key == made.features.key
    assert store.features(made.features.key).views.key == made.views.key
    shutil.copytree(made.folder / "features" / made.features.key, made.folder / "features" / f"{made.features.key}.bak")
    assert store.features(made.features.key).key == made.features.key


def test_hadoops_scheme_is_the_same_store() -> None:
    one, other = open_objects("s3a://bucket/store"), open_objects("s3://bucket/store")
    assert isinstance(one, RemoteObjects)
    assert one.url == other.url == "s3://bucket/store"
    assert open_objects("S3A://bucket/store").url == "s3://bucket/store"


@pytest.mark.parametrize("url", ["s3://minio:9000/bucket/store", "s3a://10.0.0.7:9000/bucket/store", "s3://localhost:9000/bucket/store"])
def test_a_server_in_the_place_of_the_bucket_gets_advice(url: str) -> None:
    for use in (open_objects, open_source, FeatureStore.open):
        with pytest.raises(BadInput, match=r"export AWS_ENDPOINT_URL=http://.*:9000 .*s3://bucket/store"):
            use(url)


def test_an_access_point_is_a_bucket() -> None:
    assert open_objects("s3://arn:aws:s3:us-east-1:123456789012:accesspoint/mine/store").url.startswith("s3://arn:aws")
