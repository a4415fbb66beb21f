"""One source is one place, however it is written."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.core.identity import canonical_json, digest
from eupe_pipeline.storage.images.indexing import build_index
from eupe_pipeline.storage.images.locations import canonical_source
from eupe_pipeline.storage.index import IndexOptions, index
from eupe_pipeline.storage.store import FeatureStore

from ..damaged_tars import pack, picture


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "photos"
    (folder / "cat").mkdir(parents=True)
    (folder / "cat/1.png").write_bytes(picture(1))
    monkeypatch.chdir(tmp_path)
    return folder


SPELLINGS: dict[str, Callable[[Path], str]] = {
    "a path": str,
    "a slash behind": lambda folder: f"{folder}/",
    "two slashes": lambda folder: f"{folder.parent}//{folder.name}//",
    "two slashes before": lambda folder: f"/{folder}",
    "relative": lambda folder: folder.name,
    "from here": lambda folder: f"./{folder.name}/",
    "with dots": lambda folder: f"{folder}/./",
    "up and down": lambda folder: f"{folder}/../{folder.name}",
    "a URL": lambda folder: f"file://{folder}",
    "a URL with a slash": lambda folder: f"file://{folder}/",
    "another URL": lambda folder: f"local://{folder}",
    "a relative URL": lambda folder: f"file://{folder.name}",
}


@pytest.mark.parametrize("first", ["a path", "a URL with a slash"])
@pytest.mark.parametrize("then", SPELLINGS)
def test_a_source_is_the_same_however_it_is_written(tmp_path: Path, photos: Path, first: str, then: str) -> None:
    store = FeatureStore.create(str(tmp_path / "store"))
    made = build_index(store.objects, SPELLINGS[first](photos), "photos")
    assert build_index(store.objects, SPELLINGS[then](photos), "photos").key == made.key
    assert store.dataset("photos").sources == [str(photos)]


def test_an_index_of_before_whose_source_was_written_otherwise_is_known(tmp_path: Path, photos: Path) -> None:
    """Older indexes keep the URL as it was typed."""
    store = FeatureStore.create(str(tmp_path / "store"))
    made = build_index(store.objects, str(photos), "photos")
    path = tmp_path / "store/datasets" / made.key / "identity.json"
    described = json.loads(path.read_bytes())
    del described["file_digest"]
    described["source"] = f"file://{photos}/"
    path.unlink()
    path.write_bytes(canonical_json({**described, "file_digest": digest(described)}))
    build_index(store.objects, str(photos), "photos")
    assert store.dataset("photos").sources == [f"file://{photos}/"]
    assert store.dataset("photos").read_image_bytes(0) == picture(1)


def test_a_copy_and_a_link_are_places_of_their_own(tmp_path: Path, photos: Path) -> None:
    store = FeatureStore.create(str(tmp_path / "store"))
    build_index(store.objects, str(photos), "photos")
    shutil.copytree(photos, tmp_path / "copy")
    (tmp_path / "link").symlink_to(photos)
    for place in ("copy/", "link", f"file://{tmp_path}/link/"):
        build_index(store.objects, place, "photos")
    assert sorted(store.dataset("photos").sources) == [str(tmp_path / "copy"), str(tmp_path / "link"), str(photos)]


def test_up_from_a_link_is_where_the_link_leads(tmp_path: Path, photos: Path) -> None:
    (tmp_path / "far/away").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far/away")
    assert os.path.realpath(canonical_source(f"{tmp_path}/link/..")) == str(tmp_path / "far")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("s3://bucket/photos", "s3://bucket/photos/"),
        ("s3://bucket/photos", "s3a://bucket/photos"),
        ("s3://bucket", "S3://bucket/"),
        ("gs://bucket/photos", "gcs://bucket/photos/"),
        ("https://host/photos", "https://host/photos/"),
    ],
)
def test_urls_of_one_source_are_one(one: str, other: str) -> None:
    assert canonical_source(one) == canonical_source(other) == one


def test_a_remote_source_is_the_same_with_a_slash(tmp_path: Path) -> None:
    store = FeatureStore.create(str(tmp_path / "store"))
    fsspec.filesystem("memory").pipe_file("/spelt/a.tar", pack({"1.png": picture(1)}))
    made = build_index(store.objects, "memory://spelt", "photos")
    assert build_index(store.objects, "memory://spelt/", "photos").key == made.key
    assert store.dataset("photos").sources == ["memory://spelt"]


@pytest.mark.parametrize(
    "place", ["photos/store", "photos/empty", "photos/cat/deep/store", "linked/store", "photos/out/store", "file://photos/store"]
)
def test_a_store_inside_its_source_is_refused_before_it_is_made(tmp_path: Path, photos: Path, place: str) -> None:
    (tmp_path / "linked").symlink_to("photos")
    for folder in (tmp_path / "elsewhere", photos / "empty"):
        folder.mkdir()
    (photos / "out").symlink_to("../elsewhere")  # the walk follows it
    before = sorted(tmp_path.rglob("*"))
    for source in ("photos", "linked", f"file://{photos}/", "./photos/../photos"):
        with pytest.raises(BadInput, match=r"would lie in .*; give --store a folder outside of it"):
            index(IndexOptions(source, place, "photos"))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_store_that_the_walk_does_not_come_to_may_lie_anywhere(tmp_path: Path, photos: Path) -> None:
    for source, store in (
        ("photos", "store"), ("photos", "photos2"), ("photos", "photos/.store"), ("photos/cat/1.png", "photos/cat/store"),
    ):  # fmt: skip
        assert index(IndexOptions(source, store, "photos"))["images"] == 1
    with pytest.raises(BadInput, match=r"holds a feature store \(cat/store/eupe-store.json\)"):
        index(IndexOptions("photos", "photos/cat/store", "photos"))
