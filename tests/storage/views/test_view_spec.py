"""Views are a function of (spec, image id, size, k) alone, and every box lies in its image."""

import numpy as np
import pytest
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.views.photometric import MODES
from eupe_pipeline.storage.views.view_spec import INTERPOLATIONS, ViewSpec, cut, draw, empty_views, pixel_digest, render
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

sizes = st.tuples(st.integers(1, 5000), st.integers(1, 5000)) | st.tuples(st.integers(1, 3), st.integers(1, 5000))


def images(count: int, seed: int = 0) -> tuple[list[str], NDArray[np.int32]]:
    sizes_hw = np.random.default_rng(seed).integers(1, 900, (count, 2)).astype(np.int32)
    return [f"folder/{n}.png" for n in range(count)], sizes_hw


@settings(max_examples=400)
@given(sizes, st.integers(0, 2**63), st.text(max_size=8), st.sampled_from([(0.05, 0.2), (0.32, 1.0), (1.0, 1.0)]))
def test_boxes_lie_inside_images_of_any_size(size: tuple[int, int], seed: int, image_id: str, scale: tuple[float, float]) -> None:
    views = draw(ViewSpec(views_per_image=3, seed=seed, scale=scale), [image_id], np.array([size], np.int32))
    top, left, height, width = views.crop.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (height >= 1).all()
    assert (width >= 1).all()
    assert (top + height <= size[0]).all()
    assert (left + width <= size[1]).all()


@given(sizes, st.floats(0.01, 1.0))
def test_centre_boxes_are_square_inside_and_central(size: tuple[int, int], fraction: float) -> None:
    views = draw(ViewSpec(kind="center", crop_fraction=fraction), ["x"], np.array([size], np.int32))
    top, left, height, width = views.crop[0].tolist()
    assert height == width == max(1, round(fraction * min(size)))
    assert abs(2 * top + height - size[0]) <= 1
    assert abs(2 * left + width - size[1]) <= 1
    assert not views.flip.any()


@given(st.permutations(range(12)), st.integers(1, 12), st.sampled_from(sorted(MODES)))
def test_any_subset_in_any_order_draws_the_same_views(order: list[int], count: int, mode: str) -> None:
    spec = ViewSpec(views_per_image=2, seed=11, photometric=mode)
    ids, sizes_hw = images(12)
    whole = draw(spec, ids, sizes_hw)
    some = order[:count]
    part = draw(spec, [ids[n] for n in some], sizes_hw[some])
    rows = [2 * n + k for n in some for k in range(2)]
    np.testing.assert_array_equal(part.crop, whole.crop[rows])
    np.testing.assert_array_equal(part.flip, whole.flip[rows])
    np.testing.assert_array_equal(part.photometric, whole.photometric[rows])


def test_the_first_views_are_the_same_however_many_are_drawn() -> None:
    ids, sizes_hw = images(6)
    two, four = draw(ViewSpec(views_per_image=2), ids, sizes_hw), draw(ViewSpec(views_per_image=4), ids, sizes_hw)
    np.testing.assert_array_equal(two.crop.reshape(6, 2, 4), four.crop.reshape(6, 4, 4)[:, :2])


def test_seed_image_and_k_all_change_a_view() -> None:
    size = np.array([[900, 700]], np.int32)
    draws = [draw(ViewSpec(views_per_image=2, seed=seed), [name], size).crop.tolist() for seed in (0, 1) for name in ("a", "b")]
    assert len({tuple(crop) for crops in draws for crop in crops}) == 8


def test_drawn_values_are_frozen_for_ever() -> None:
    """A store redrawn by a later version must give these; if this test fails, the view spec needs a new `kind`, not new numbers."""
    views = draw(ViewSpec(views_per_image=2, seed=42), ["n01440764/a.JPEG", "é.png"], np.array([[375, 500], [32, 32]], np.int32))
    assert views.crop.tolist() == GOLDEN_CROPS
    assert views.flip.tolist() == GOLDEN_FLIPS


GOLDEN_CROPS = [[13, 13, 359, 460], [8, 11, 351, 355], [8, 8, 17, 19], [1, 1, 26, 20]]
GOLDEN_FLIPS = [True, True, True, True]


def test_shares_of_area_and_flips_follow_the_spec() -> None:
    ids = [str(n) for n in range(2000)]
    views = draw(ViewSpec(seed=5), ids, np.full((2000, 2), 400, np.int32))
    share = views.crop[:, 2] * views.crop[:, 3] / 400**2
    ratio = views.crop[:, 3] / views.crop[:, 2]
    assert share.min() > 0.31
    assert 0.60 < share.mean() < 0.67  # uniform in (0.32, 1), a little less because large elongated boxes do not fit
    assert 0.74 < ratio.min() <= ratio.max() < 1.345
    assert 0.46 < views.flip.mean() < 0.54


def test_a_flip_mirrors_the_rendered_pixels_and_nothing_else() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    crop = np.array([3, 5, 30, 50], np.int32)
    for interpolation in INTERPOLATIONS:
        plain = render(image, crop, False, 16, interpolation)
        np.testing.assert_array_equal(render(image, crop, True, 16, interpolation), plain[:, ::-1])
        assert plain.shape == (16, 16, 3)


def test_rendering_at_the_crops_own_size_changes_no_pixel() -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    crop = np.array([2, 3, 16, 16], np.int32)
    np.testing.assert_array_equal(render(image, crop, False, 16), cut(image, crop))


def test_shrinking_is_antialiased() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    shrunk = render(stripes, np.array([0, 0, 64, 64], np.int32), False, 8)
    assert np.abs(shrunk.astype(int) - 127).max() < 12


@pytest.mark.parametrize("crop", [(-1, 0, 2, 2), (0, 0, 0, 2), (0, 0, 11, 2), (9, 0, 2, 2), (0, 8, 2, 3)])
def test_a_box_that_leaves_the_image_is_refused(crop: tuple[int, int, int, int]) -> None:
    with pytest.raises(BadInput, match="leaves an image"):
        cut(np.zeros((10, 10, 3), np.uint8), np.array(crop, np.int32))


def test_the_digest_of_pixels_covers_shape_and_values() -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    changed = pixels.copy()
    changed[1, 2, 0] ^= 1
    digests = {pixel_digest(pixels), pixel_digest(changed), pixel_digest(pixels.reshape(4, 2, 3)), pixel_digest(pixels[:, ::-1])}
    assert len(digests) == 4
    assert pixel_digest(np.repeat(pixels, 2, axis=1)[:, ::2]) == pixel_digest(pixels)


@pytest.mark.parametrize(
    "values",
    [
        {"kind": "random"},
        {"photometric": "teacher"},
        {"views_per_image": 0},
        {"kind": "center", "views_per_image": 2},
        {"scale": (0.5, 0.2)},
        {"scale": (0.0, 1.0)},
        {"ratio": (0.0, 1.0)},
        {"flip_probability": 1.5},
        {"crop_fraction": 0.0},
    ],
)
def test_a_spec_out_of_range_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(BadInput):
        ViewSpec(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize("spec", [ViewSpec(), ViewSpec(kind="center", crop_fraction=0.875), ViewSpec(seed=9, views_per_image=4)])
def test_a_spec_comes_back_from_its_identity(spec: ViewSpec) -> None:
    assert ViewSpec.from_identity(spec.identity()).identity() == spec.identity()


def test_an_unknown_interpolation_is_refused() -> None:
    with pytest.raises(BadInput, match="bicubic"):
        render(np.zeros((4, 4, 3), np.uint8), np.array([0, 0, 4, 4], np.int32), False, 2, "bicubik")


def test_no_views_are_no_views() -> None:
    assert len(draw(ViewSpec(), [], np.zeros((0, 2), np.int32)).crop) == len(empty_views(0).flip) == 0
