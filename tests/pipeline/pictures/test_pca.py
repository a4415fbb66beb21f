"""Patch tokens become colours in which the strongest directions are seen, the same in every run."""

import numpy as np
import pytest
from eupe_pipeline.pipeline.pictures.pca import basis, colours, foreground, otsu, pictures
from eupe_pipeline.storage.core.errors import BadInput
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray


def tokens(seed: int, photos: int = 3, grid: int = 6, width: int = 16, noise: float = 0.01) -> NDArray[np.float32]:
    """Tokens whose strong directions are the column, then the row, then a disc."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:grid, 0:grid] / grid
    disc = (y - 0.5) ** 2 + (x - 0.5) ** 2 < 0.1
    truth_HWC = np.stack([9 * x, 4 * y, 2.0 * disc], -1)
    mix, _ = np.linalg.qr(random.normal(size=(width, 3)))
    found = np.stack([truth_HWC] * photos) @ mix.T + random.normal(0, noise, (photos, grid, grid, width))
    return np.asarray(found, np.float32)


def correlation(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    return float(abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]))


def test_red_is_the_strongest_direction_and_green_the_next() -> None:
    rgb = colours(tokens(0)).astype(float)
    y, x = np.mgrid[0:6, 0:6] / 6.0
    assert correlation(rgb[0, ..., 0], x) > 0.95
    assert correlation(rgb[0, ..., 1], y) > 0.9


def test_colours_use_the_whole_range() -> None:
    rgb = colours(tokens(1))
    assert rgb.dtype == np.uint8
    assert rgb.shape == (3, 6, 6, 3)
    assert (rgb.reshape(-1, 3).min(0) == 0).all()
    assert (rgb.reshape(-1, 3).max(0) == 255).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_a_rotation_of_the_channels_does_not_change_the_picture(seed: int) -> None:
    found = tokens(seed, noise=0.0)
    rotation, _ = np.linalg.qr(np.random.default_rng(seed + 1).normal(size=(16, 16)))
    turned = (found @ rotation).astype(np.float32)
    difference = np.abs(colours(found).astype(int) - colours(turned))[..., :2]
    assert np.median(difference) <= 1


def test_the_directions_are_orthonormal_and_their_signs_do_not_depend_on_the_order_of_photos() -> None:
    flat = tokens(3).reshape(-1, 16)
    _, directions = basis(flat)
    _, reversed_ = basis(flat[::-1].copy())
    assert np.allclose(directions.T @ directions, np.eye(3), atol=1e-6)
    assert np.allclose(directions, reversed_, atol=1e-4)


def test_tokens_of_two_channels_leave_blue_empty() -> None:
    assert (colours(tokens(4)[..., :2])[..., 2] == 0).all()


def test_constant_tokens_are_one_colour_and_no_error() -> None:
    assert len(np.unique(colours(np.ones((2, 3, 3, 8), np.float32)))) == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_tokens_that_are_not_finite_are_refused(bad: float) -> None:
    found = tokens(5)
    found[1, 2, 3, 4] = bad
    with pytest.raises(BadInput, match="NaN or infinity"):
        colours(found)


@pytest.mark.parametrize("shape", [(4, 4, 8), (0, 4, 4, 8)])
def test_tokens_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(BadInput, match="got shape"):
        colours(np.zeros(shape, np.float32))


def test_a_picture_holds_its_photo_and_every_encoders_colours() -> None:
    photos = [np.full((8, 8, 3), n, np.uint8) for n in range(3)]
    found = pictures(["a", "b", "c"], photos, {"one": tokens(6), "two": tokens(7, grid=4)})
    assert [one.label for one in found] == ["a", "b", "c"]
    assert found[2].tokens["two"].shape == (4, 4, 3)
    assert (found[1].image == photos[1]).all()
    assert (found[1].tokens["one"] == colours(tokens(6))[1]).all()


def test_a_count_that_does_not_fit_is_refused() -> None:
    with pytest.raises(BadInput, match="3 photos need as many"):
        pictures(["a", "b", "c"], [np.zeros((2, 2, 3), np.uint8)] * 3, {"one": tokens(0, photos=2)})


def objects(photos: int = 4, grid: int = 12) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Tokens of photos with one object each on a background of the photo's own, and where the object is."""
    random = np.random.default_rng(3)
    y, x = np.mgrid[0:grid, 0:grid]
    inside = np.stack([(y - 5 - n % 2) ** 2 + (x - 4 - n) ** 2 < 9 for n in range(photos)])
    background, thing = random.normal(0, 4, (photos, 1, 1, 24)), random.normal(0, 4, (photos, 1, 1, 24))
    found = np.where(inside[..., None], thing, background) + random.normal(0, 0.3, (*inside.shape, 24))
    return found.astype(np.float32), inside


def test_the_foreground_is_the_object_of_every_photo_though_backgrounds_differ() -> None:
    found, inside = objects()
    assert [(foreground(patch) == truth).all() for patch, truth in zip(found, inside, strict=True)] == [True] * len(found)


def test_the_background_is_black_and_the_foreground_is_not() -> None:
    found, inside = objects()
    rgb = colours(found, foreground_only=True)
    assert (rgb[~inside] == 0).all()
    assert rgb[inside].min() > 50


def test_tokens_that_are_all_alike_are_all_foreground() -> None:
    assert foreground(np.ones((4, 5, 8), np.float32)).all()


def test_the_cut_lies_between_two_heaps_of_any_size() -> None:
    random = np.random.default_rng(0)
    values = np.concatenate([random.normal(0, 1, 900), random.normal(20, 1, 60)])
    assert 4 < otsu(values) < 17
