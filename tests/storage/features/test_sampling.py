"""Token places: a pure function of seed, image, view and grid; uniform; without replacement; nested."""

import itertools

import numpy as np
import pytest
from eupe_pipeline.storage.features.sampling import draw_positions, first_bad_row, take_positions
from hypothesis import given, settings
from hypothesis import strategies as st

IDS = [f"class{n % 3}/{n:04d}.png" for n in range(12)]


@settings(max_examples=60)
@given(st.integers(-5, 2**40), st.integers(1, 3), st.integers(1, 300), st.data())
def test_places_ascend_in_the_grid_and_never_repeat(seed: int, views: int, cells: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, cells))
    drawn = draw_positions(seed, IDS, views, cells, count)
    assert (drawn.shape, drawn.dtype) == ((12 * views, count), np.dtype(np.uint16))
    assert first_bad_row(drawn, cells) is None


@given(st.permutations(range(12)), st.integers(1, 12))
def test_any_subset_in_any_order_on_any_machine_has_the_same_cells(order: list[int], kept: int) -> None:
    whole = draw_positions(7, IDS, 2, 40, 9).reshape(12, 2, 9)
    some = draw_positions(7, [IDS[n] for n in order[:kept]], 2, 40, 9).reshape(kept, 2, 9)
    np.testing.assert_array_equal(some, whole[order[:kept]])


def test_the_places_of_a_few_tokens_are_among_those_of_more() -> None:
    for few, more in itertools.pairwise((1, 5, 16, 64, 256)):
        pairs = zip(draw_positions(0, IDS, 1, 256, few), draw_positions(0, IDS, 1, 256, more), strict=True)
        assert all(set(a.tolist()) <= set(b.tolist()) for a, b in pairs)


def test_all_tokens_of_a_grid_stand_in_their_order() -> None:
    assert (draw_positions(3, IDS, 1, 16, 16) == np.arange(16)).all()
    assert draw_positions(3, IDS[:1], 1, 1 << 16, 1 << 16)[0, -1] == 65_535


def test_seed_image_and_view_each_change_the_places() -> None:
    one = draw_positions(0, IDS, 2, 256, 64)
    assert len({row.tobytes() for row in one}) == len(one)
    assert not (draw_positions(1, IDS, 2, 256, 64) == one).all(axis=1).any()


def test_places_are_these_on_every_machine() -> None:
    """A second implementation must draw these; numpy keeps Philox's raw stream stable."""
    assert draw_positions(42, ["a.png", "b.png"], 2, 16, 4).tolist() == [[2, 8, 13, 15], [1, 5, 10, 14], [1, 9, 11, 12], [0, 2, 6, 8]]


def test_every_set_of_places_is_equally_likely() -> None:
    """Uniform over subsets is what makes the loss unbiased: 3 of 6 cells, 20 subsets, a chi-square with 19 degrees of freedom."""
    drawn = draw_positions(0, [str(n) for n in range(8_000)], 1, 6, 3)
    _, counts = np.unique(drawn @ np.array([36, 6, 1]), return_counts=True)
    assert len(counts) == 20
    assert ((counts - 400.0) ** 2 / 400).sum() < 43.8  # the 99.9th percentile; the draw is fixed, so the test is as well


def test_tokens_are_taken_where_the_places_say() -> None:
    patch = np.arange(2 * 2 * 3 * 4, dtype=np.float32).reshape(2, 2, 3, 4)
    found = take_positions(patch, np.array([[0, 5], [2, 3]], np.uint16))
    np.testing.assert_array_equal(found, [[patch[0, 0, 0], patch[0, 1, 2]], [patch[1, 0, 2], patch[1, 1, 0]]])


@pytest.mark.parametrize("bad", [[1, 1], [2, 1], [0, 6]])
def test_places_that_repeat_fall_or_leave_the_grid_are_found(bad: list[int]) -> None:
    assert first_bad_row(np.array([[0, 5], bad], np.uint16), 6) == 1


@pytest.mark.parametrize("count", [1, 5, 9])
def test_places_in_the_image_come_before_those_in_the_padding(count: int) -> None:
    taught = np.random.default_rng(1).random((12, 20)) < 0.4
    taught[3], taught[4] = True, False
    found, anywhere = draw_positions(8, IDS, 1, 20, count, taught), draw_positions(8, IDS, 1, 20, count)
    assert first_bad_row(found, 20) is None
    np.testing.assert_array_equal(found[3:5], anywhere[3:5])  # nothing is padded, or everything is
    for row, places in enumerate(found.tolist()):
        seen = np.flatnonzero(taught[row])
        inside = [place for place in places if taught[row, place]]
        assert len(inside) == min(count, len(seen))
        if len(seen) <= count:
            assert set(seen.tolist()) <= set(places)


def test_places_in_the_image_follow_the_document_and_are_nested() -> None:
    """The cells of the image by their words, then those of the padding by theirs."""
    taught = np.array([[True, True, False, False] * 4, [False] * 12 + [True] * 4])
    few, some, more = (draw_positions(42, ["a.png"], 2, 16, count, taught) for count in (3, 4, 6))
    assert few.tolist() == [[8, 9, 13], [12, 13, 14]]
    assert some.tolist() == [[1, 8, 9, 13], [12, 13, 14, 15]]
    assert more.tolist() == [[1, 4, 8, 9, 12, 13], [1, 10, 12, 13, 14, 15]]


def test_each_token_of_the_image_is_drawn_as_often_as_another() -> None:
    taught = np.tile([True, False, True, True, False, True], (4_000, 1))
    drawn = draw_positions(0, [str(n) for n in range(4_000)], 1, 6, 2, taught)
    counts = np.bincount(drawn.ravel().astype(np.int64), minlength=6)
    assert counts[[1, 4]].tolist() == [0, 0]
    np.testing.assert_allclose(counts[[0, 2, 3, 5]] / 4_000, 0.5, atol=0.03)
