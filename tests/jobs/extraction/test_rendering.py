"""A second extraction over views that keep their pixels: read, not decoded, and the same to the bit; one image is broken."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from eupe_pipeline.jobs.extraction.extract import extract_features
from eupe_pipeline.jobs.extraction.rendering import RenderedBatch, RenderedShard
from eupe_pipeline.storage.images.dataset import ImageDataset
from eupe_pipeline.storage.images.indexing import build_index
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.views.view_spec import Input, StoredPixels, ViewSpec

from .test_extract import break_image

OWN = Input(16)  # of the tiny teacher
OTHER = Input(24)


@pytest.fixture
def kept(photos: Any) -> Any:
    """A feature set over views that keep their pixels at the teacher's size: store, options, summary."""
    store, options, root = photos
    break_image(root)
    build_index(store.objects, str(root / "images"), "broken")
    spec = ViewSpec(views_per_image=2, seed=3, pixels=StoredPixels(OWN[0]))
    options = replace(options, data="broken", views=spec, max_bad_share=0.1)
    return store, options, extract_features(options)


def batches(store: FeatureStore, key: str, shard: int, inputs: set[Input]) -> list[RenderedBatch]:
    views = store.view_set(key)
    drawn = views.read_shard(shard)
    assert drawn is not None
    with RenderedShard(views, shard, drawn, inputs, 4) as rendered:
        return list(rendered)


def refuse(*_: object) -> None:
    raise AssertionError("an image was decoded")


def test_pixels_that_serve_every_teacher_are_read_and_no_image_is_touched(kept: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store, options, first = kept
    monkeypatch.setattr(ImageDataset, "read_image", refuse)
    second = extract_features(replace(options, tokens_per_view=2))
    assert (second["views"], second["views_done"], second["shards_missing"]) == (first["views"], first["rows"], 0)
    assert (list(second["failed"]), second["images_failed"]) == (["class1/004.png"], 1)
    left, right = (store.features(one["features"]["teacher"]) for one in (first, second))
    assert left.failed_rows().tolist() == right.failed_rows().tolist() == [18, 19]
    good = np.setdiff1d(np.arange(left.rows), left.failed_rows())
    np.testing.assert_array_equal(left.read_cls(good), right.read_cls(good))


@pytest.mark.parametrize("shard", [0, 1])  # the second one holds the broken image
def test_both_ways_give_the_same_batches(kept: Any, shard: int) -> None:
    store, _, first = kept
    for one, other in zip(batches(store, first["views"], shard, {OWN}), batches(store, first["views"], shard, {OWN, OTHER}), strict=True):
        np.testing.assert_array_equal(one.pixels[OWN], other.pixels[OWN])
        assert (one.first, one.count, one.failed) == (other.first, other.count, other.failed)


def test_a_teacher_of_another_size_decodes_the_images(kept: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store, _, first = kept
    monkeypatch.setattr(ImageDataset, "read_image", refuse)
    assert len(batches(store, first["views"], 0, {OWN})) == 4
    with pytest.raises(AssertionError, match="was decoded"):
        batches(store, first["views"], 0, {OWN, OTHER})
