"""Stored pixels are the rendered views, guarded like everything in a store, and plain Zarr to anybody else."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from eupe_pipeline.storage.core.errors import BadInput, CacheDamaged
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.upkeep.copying import copy_features
from eupe_pipeline.storage.upkeep.maintenance import verify
from eupe_pipeline.storage.upkeep.repair_views import repair_views
from eupe_pipeline.storage.views.view_set import ViewSet
from eupe_pipeline.storage.views.view_spec import StoredPixels, ViewSpec, render
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from .made_up_store import Made, commit, drawn_with_digests, plan, rendered, reopen, with_features

SIZE_PX = 12
SPEC = ViewSpec(views_per_image=2, seed=3, pixels=StoredPixels(SIZE_PX))


def with_pixels(root: Path, images: int = 20) -> Made:
    """The made-up store with a second, complete set of views that keeps pixels, and a feature set over it."""
    made = plan(root, images=images)
    views = ViewSet.create(made.store.objects, made.dataset, SPEC, images_per_shard=4)
    made = with_features(made._replace(views=views), "int8", name="over-pixels")
    for shard in range(views.shards):
        views.commit_shard(shard, drawn_with_digests(views, shard), {}, rendered(views, shard))
        commit(made, shard)
    return made


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Read only."""
    return with_pixels(tmp_path_factory.mktemp("pixels"))


@pytest.fixture
def copied(made: Made, tmp_path: Path) -> Made:
    """A copy to be damaged."""
    shutil.copytree(made.folder, tmp_path / "copy")
    return reopen(made._replace(store=FeatureStore.open(str(tmp_path / "copy"))))


@pytest.fixture(scope="module")
def expected(made: Made) -> NDArray[np.uint8]:
    """Every view rendered from its image, in the order of the rows."""
    views = made.views.read(np.arange(made.views.rows))
    images = [made.dataset.read_image(row // 2) for row in range(made.views.rows)]
    return np.stack([render(image, views.crop[n], bool(views.flip[n]), SIZE_PX) for n, image in enumerate(images)])


@given(st.lists(st.integers(0, 39), max_size=30))
def test_any_rows_in_any_order_are_the_rendered_views(made: Made, expected: NDArray[np.uint8], rows: list[int]) -> None:
    picked = np.array(rows, np.int64)
    np.testing.assert_array_equal(made.views.read_pixels(picked), expected[picked])


def test_pixels_go_into_the_callers_memory(made: Made, expected: NDArray[np.uint8]) -> None:
    memory = np.zeros((6, SIZE_PX, SIZE_PX, 3), np.uint8)
    made.views.read_pixels(np.array([4, 3]), memory[2:4])
    np.testing.assert_array_equal(memory[2:4], expected[[4, 3]])
    assert not memory[:2].any()
    assert not memory[4:].any()


def test_zarr_reads_them_with_names_axes_and_units(made: Made, expected: NDArray[np.uint8]) -> None:
    group = zarr.open_group(f"{made.folder}/views/{made.views.key}", mode="r")
    array = group["pixels"]
    assert isinstance(array, zarr.Array)
    np.testing.assert_array_equal(np.asarray(array[:]), expected)
    assert array.metadata.dimension_names == ("view", "y", "x", "colour")  # type: ignore[union-attr]  # zarr's union of formats 2 and 3
    assert array.attrs["units"] == "sRGB levels from 0 to 255"
    assert sorted(name for name, _ in group.arrays()) == ["crop", "flip", "photometric", "pixel_digest", "pixels"]


def test_views_with_other_pixels_or_none_are_other_views(made: Made) -> None:
    specs = [ViewSpec(views_per_image=2, seed=3), SPEC, ViewSpec(views_per_image=2, seed=3, pixels=StoredPixels(SIZE_PX, "bilinear"))]
    specs += [ViewSpec(kind="center", pixels=StoredPixels(8)), ViewSpec(kind="center")]
    assert len({repr(spec.identity()) for spec in specs}) == 5
    assert [ViewSpec.from_identity(spec.identity()).pixels for spec in specs] == [spec.pixels for spec in specs]
    assert "pixels" not in specs[0].identity()
    plain = ViewSet.create(made.store.objects, made.dataset, specs[0], 4)
    with pytest.raises(BadInput, match="--pixels"):
        plain.read_pixels(np.arange(2))


@pytest.mark.parametrize("wrong", [{"size_px": 0}, {"size_px": 4097}, {"size_px": 8.0}, {"size_px": 8, "interpolation": "bicubik"}])
def test_absurd_pixels_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        StoredPixels(**wrong)


def test_a_shard_is_committed_with_its_pixels_or_not_at_all(tmp_path: Path) -> None:
    made = plan(tmp_path, images=4)
    views = ViewSet.create(made.store.objects, made.dataset, SPEC, images_per_shard=4)
    with pytest.raises(BadInput, match="stores the arrays crop, flip, photometric, pixel_digest, pixels"):
        views.commit_shard(0, views.draw_shard(0), {})
    with pytest.raises(BadInput, match="stores the arrays"):
        made.views.commit_shard(0, made.views.draw_shard(0), {}, rendered(views, 0))
    assert views.group.committed() == set()


def test_failed_images_have_views_and_no_pixels(tmp_path: Path) -> None:
    made = plan(tmp_path, images=4)
    views = ViewSet.create(made.store.objects, made.dataset, SPEC, images_per_shard=4)
    views.commit_shard(0, views.draw_shard(0), {made.dataset.ids(1, 2)[0]: "cut"}, rendered(views, 0))
    fresh = FeatureStore.open(made.store.url).view_set(views.key)
    np.testing.assert_array_equal(fresh.read(np.arange(8)).crop, views.draw_shard(0).crop)
    assert fresh.read_pixels(np.array([0, 1, 4])).any()
    with pytest.raises(CacheDamaged, match="failed"):
        fresh.read_pixels(np.array([2]))


def test_a_flipped_bit_is_found_on_reading_and_by_verify_and_the_row_is_rendered_again(copied: Made, expected: NDArray[np.uint8]) -> None:
    path = copied.folder / "views" / copied.views.key / "pixels" / "c.2.0.0.0"
    data = bytearray(path.read_bytes())
    data[5] ^= 16
    path.write_bytes(data)
    fresh = reopen(copied).views
    np.testing.assert_array_equal(fresh.read_pixels(np.array([1])), expected[[1]])
    with pytest.raises(CacheDamaged, match=r"shard 2 of views/.*pixels"):
        fresh.read_pixels(np.array([16]))
    damaged = verify(fresh)
    assert [one.shard for one in damaged] == [2]
    repair_views(fresh, 2, set).write_to(fresh.group)
    assert verify(fresh) == []
    np.testing.assert_array_equal(fresh.read_pixels(np.arange(16, 24)), expected[16:24])


def test_reading_views_leaves_their_pixels_alone(copied: Made) -> None:
    """An extraction of a second teacher on an object store needs the crops, not the pixels, which are a hundred times as large."""
    (copied.folder / "views" / copied.views.key / "pixels" / "c.0.0.0.0").unlink()
    fresh = reopen(copied).views
    assert fresh.read(np.arange(8)).digest.any()
    with pytest.raises(CacheDamaged, match="missing although it was committed"):
        fresh.read_pixels(np.array([0]))
    assert [one.shard for one in verify(fresh)] == [0]


def test_what_another_writer_published_is_adopted_only_when_it_is_the_same_to_the_byte(copied: Made) -> None:
    record = copied.folder / "views" / copied.views.key / "commits" / "000001.json"
    record.unlink()
    fresh = reopen(copied).views
    other = rendered(fresh, 1)
    other[0, 0, 0, 0] ^= 1
    with pytest.raises(CacheDamaged, match="cannot be adopted"):
        fresh.commit_shard(1, drawn_with_digests(fresh, 1), {}, other)
    fresh.commit_shard(1, drawn_with_digests(fresh, 1), {}, rendered(fresh, 1))
    assert verify(fresh) == []


def test_copying_and_compacting_keep_them_and_their_bytes_are_counted(copied: Made, expected: NDArray[np.uint8], tmp_path: Path) -> None:
    before = copied.views.stored_bytes()
    assert before > 40 * SIZE_PX**2 * 3
    there = copy_features(copied.store, copied.features.key, FeatureStore.create(str(tmp_path / "there"))).views
    np.testing.assert_array_equal(there.read_pixels(np.arange(40)), expected)
    assert copied.views.group.compact() == 1
    fresh = reopen(copied).views
    assert fresh.stored_bytes() == before
    np.testing.assert_array_equal(fresh.read_pixels(np.arange(40)), expected)


def test_a_mirrored_view_is_a_view_of_its_own(tmp_path: Path) -> None:
    made = plan(tmp_path, images=4)
    sets = []
    for probability in (0.0, 1.0):
        spec = ViewSpec(views_per_image=2, seed=3, flip_probability=probability, pixels=StoredPixels(SIZE_PX))
        views = ViewSet.create(made.store.objects, made.dataset, spec, images_per_shard=4)
        views.commit_shard(0, drawn_with_digests(views, 0), {}, rendered(views, 0))
        sets.append(views)
    plain, mirrored = sets
    assert plain.key != mirrored.key
    rows = np.arange(8)
    np.testing.assert_array_equal(plain.read(rows).crop, mirrored.read(rows).crop)
    np.testing.assert_array_equal(plain.read_pixels(rows), mirrored.read_pixels(rows)[:, :, ::-1])
