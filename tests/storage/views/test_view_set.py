"""Committed views are what a redraw gives, and are read in any order."""

from pathlib import Path

import numpy as np
import pytest
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.images.indexing import build_index
from eupe_pipeline.storage.views.photometric import MODES
from eupe_pipeline.storage.views.view_set import ViewSet
from eupe_pipeline.storage.views.view_spec import ViewSpec, cut, pixel_digest
from hypothesis import given
from hypothesis import strategies as st

from ..made_up_store import Made, drawn_with_digests, plan, reopen


def test_a_redraw_equals_what_is_stored(pristine: Made) -> None:
    fresh = reopen(pristine).views
    for shard in range(fresh.shards):
        drawn, stored = fresh.draw_shard(shard), fresh.read_shard(shard)
        assert stored is not None
        np.testing.assert_array_equal(drawn.crop, stored.crop)
        np.testing.assert_array_equal(drawn.flip, stored.flip)
        np.testing.assert_array_equal(drawn.photometric, stored.photometric)


@pytest.mark.parametrize("mode", MODES)
def test_a_redraw_equals_what_is_stored_in_every_photometric_mode(tmp_path: Path, mode: str) -> None:
    made = plan(tmp_path, images=6)
    spec = ViewSpec(views_per_image=3, seed=9, photometric=mode)
    views = ViewSet.create(made.store.objects, made.dataset, spec, images_per_shard=4)
    for shard in range(views.shards):
        views.commit_shard(shard, drawn_with_digests(views, shard), {})
    stored = reopen(made).store.view_set(views.key)
    rows = np.random.default_rng(0).permutation(stored.rows)[:11]  # a subset, out of order
    found = stored.read(rows)
    for n, row in enumerate(rows.tolist()):
        again = stored.draw_image(row // 3)
        np.testing.assert_array_equal(found.crop[n], again.crop[row % 3])
        np.testing.assert_array_equal(found.photometric[n], again.photometric[row % 3])
        assert found.flip[n] == again.flip[row % 3]
    assert found.photometric.any() == (mode != "none")


@given(st.lists(st.integers(0, 39), max_size=50))
def test_any_rows_are_read_in_their_order(pristine: Made, rows: list[int]) -> None:
    whole, some = pristine.views.read(np.arange(40)), pristine.views.read(np.array(rows, np.int64))
    picked = np.array(rows, np.int64)
    np.testing.assert_array_equal(some.crop, whole.crop[picked])
    np.testing.assert_array_equal(some.flip, whole.flip[picked])
    np.testing.assert_array_equal(some.photometric, whole.photometric[picked])
    np.testing.assert_array_equal(some.digest, whole.digest[picked])


def test_the_same_images_under_another_name_have_the_same_views(tmp_path: Path) -> None:
    made = plan(tmp_path, images=6)
    other = build_index(made.store.objects, made.dataset.source, "other")
    assert other.key != made.dataset.key
    again = ViewSet.create(made.store.objects, other, made.views.spec, made.views.images_per_shard)
    assert again.key == made.views.key
    assert again.dataset.key == other.key
    assert len(made.store.list_view_sets()) == 1


def test_digests_are_those_of_the_images_pixels(pristine: Made) -> None:
    views = pristine.views.read(np.arange(40))
    for row in range(40):
        pixels = cut(pristine.dataset.read_image(row // 2), views.crop[row])
        assert views.digest[row].tobytes() == pixel_digest(pixels)


def test_the_last_shard_may_be_short(tmp_path: Path) -> None:
    made = plan(tmp_path, images=5)
    assert (made.views.shards, made.views.rows) == (2, 10)
    assert made.views.shard_images(1) == (4, 5)
    drawn = made.views.draw_shard(1)
    made.views.commit_shard(1, drawn, {})
    np.testing.assert_array_equal(reopen(made).views.read(np.array([9, 8])).crop, drawn.crop[::-1])


def test_failed_images_are_named_in_the_record(tmp_path: Path) -> None:
    made = plan(tmp_path)
    made.views.commit_shard(0, made.views.draw_shard(0), {"class0/0000.png": "cut"})
    assert reopen(made).views.failed_images(0) == {"class0/0000.png": "cut"}
    assert made.views.failed_images(1) == {}


def test_every_field_of_the_spec_and_the_shard_size_make_another_set(tmp_path: Path) -> None:
    made = plan(tmp_path)
    base = ViewSpec(views_per_image=2, seed=3)
    specs = [
        base,
        ViewSpec(views_per_image=2, seed=4),
        ViewSpec(views_per_image=3, seed=3),
        ViewSpec(views_per_image=2, seed=3, scale=(0.4, 1.0)),
        ViewSpec(views_per_image=2, seed=3, ratio=(0.8, 1.2)),
        ViewSpec(views_per_image=2, seed=3, flip_probability=0.0),
        ViewSpec(kind="center"),
        ViewSpec(kind="center", crop_fraction=0.875),
    ]
    keys = {ViewSet.create(made.store.objects, made.dataset, spec, 4).key for spec in specs}
    keys |= {ViewSet.create(made.store.objects, made.dataset, base, 8).key}
    assert len(keys) == len(specs) + 1
    assert ViewSet.create(made.store.objects, made.dataset, base, 4).key == made.views.key


@pytest.mark.parametrize("images", [0, -1, (1 << 20) + 1])
def test_absurd_shard_sizes_are_refused(pristine: Made, images: int) -> None:
    with pytest.raises(BadInput, match="images per shard"):
        ViewSet.create(pristine.store.objects, pristine.dataset, ViewSpec(), images)
