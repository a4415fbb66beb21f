"""Similarity maps are the cosines, in every tile of every sheet, and a patch means the same place for every encoder."""

import numpy as np
import pytest
from eupe_pipeline.pipeline.pictures.similarity import (
    LEVELS,
    PALETTE,
    cosines,
    heat_sheet,
    levels,
    named_maps,
    pickable,
    same_cell,
    similarity_pictures,
)
from eupe_pipeline.storage.core.errors import BadInput
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray


def tokens(height: int, width: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 1, (height, width, 12)).astype(np.float32)


def test_a_patch_is_wholly_alike_to_itself_and_cosines_are_those_of_numpy() -> None:
    patch = tokens(4, 5)
    found = cosines(patch, (1, 2))
    assert found[1, 2] == pytest.approx(1)
    a, b = patch[1, 2], patch[3, 0]
    assert found[3, 0] == pytest.approx(float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)), abs=1e-6)


def test_a_token_of_zeros_is_like_nothing() -> None:
    patch = tokens(2, 2)
    patch[0, 1] = 0
    assert cosines(patch, (0, 0))[0, 1] == 0


@pytest.mark.parametrize("place", [(4, 0), (0, 5), (-1, 0)])
def test_a_patch_outside_of_the_grid_is_refused_with_the_grid(place: tuple[int, int]) -> None:
    with pytest.raises(BadInput, match="rows 0 to 3, columns 0 to 4"):
        cosines(tokens(4, 5), place)


def test_every_tile_of_a_sheet_is_the_map_of_its_patch() -> None:
    patch = tokens(3, 4)
    sheet = heat_sheet(patch, (3, 4))
    for row in range(3):
        for column in range(4):
            tile = sheet.codes[row * 3 : row * 3 + 3, column * 4 : column * 4 + 4]
            assert (tile == levels(cosines(patch, (row, column)), sheet.low)).all()


@given(st.integers(1, 40), st.integers(1, 40))
def test_a_place_in_another_grid_covers_the_patchs_centre(ours: int, theirs: int) -> None:
    for row in range(ours):
        found, _ = same_cell((row, 0), (ours, ours), (theirs, theirs))
        assert found / theirs <= (row + 0.5) / ours <= (found + 1) / theirs


def test_readers_pick_from_the_coarsest_grid_and_not_from_too_fine_a_one() -> None:
    assert pickable([(16, 20), (7, 9)]) == (7, 9)
    assert pickable([(64, 64)]) == (14, 14)


def test_the_scale_goes_from_dark_to_bright() -> None:
    assert PALETTE.shape == (LEVELS, 3)
    assert (np.diff(PALETTE.astype(int) @ [2, 7, 1]) >= 0).all()
    assert levels(np.array([-1, 0.2, 1.0], np.float32), 0.2).tolist() == [0, 0, LEVELS - 1]


def test_a_named_patch_gives_a_map_an_encoder_each_in_its_own_grid() -> None:
    found = named_maps({"fine": tokens(8, 8)[None], "coarse": tokens(4, 4)[None]}, 0, (7, 2))
    assert {label: rgb.shape for label, (rgb, _) in found.items()} == {"fine": (8, 8, 3), "coarse": (4, 4, 3)}
    assert (found["coarse"][0][3, 1] == PALETTE[-1]).all()
    with pytest.raises(BadInput, match="outside of the grid"):
        named_maps({"coarse": tokens(4, 4)[None]}, 0, (7, 2))


def test_a_page_starts_at_a_patch_that_shows_something() -> None:
    patch = np.zeros((1, 6, 6, 3), np.float32)
    patch[..., 0] = 1
    patch[0, 2:4, 2:4] = [0, 1, 0]
    patch[0, 0, 0] = [1, 1, 0]  # equally like the object and its background: its map is flat
    (found,) = similarity_pictures(["x"], [np.zeros((30, 30, 3), np.uint8)], {"one": patch})
    assert found.chosen in {(2, 2), (2, 3), (3, 2), (3, 3)}
    assert (found.picked_from, found.image.shape) == ((6, 6), (30, 30, 3))
