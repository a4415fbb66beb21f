"""The order of a run: a true permutation, each view once in K epochs, the same however it is asked for."""

import time
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.student.data.order import KeyedPermutation, Order
from hypothesis import given, settings
from hypothesis import strategies as st


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 3000), seed=st.integers(0, 2**63 - 1), number=st.integers(0, 1000))
def test_a_keyed_permutation_is_a_bijection(size: int, seed: int, number: int) -> None:
    found = KeyedPermutation(size, seed, "epoch", number)(np.arange(size))
    assert np.array_equal(np.sort(found), np.arange(size))


def test_epochs_and_seeds_give_unrelated_permutations() -> None:
    base = KeyedPermutation(10_000, 1, "epoch", 0)(np.arange(10_000))
    for other in (KeyedPermutation(10_000, 2, "epoch", 0), KeyedPermutation(10_000, 1, "epoch", 1), KeyedPermutation(10_000, 1, "x", 0)):
        assert (other(np.arange(10_000)) == base).mean() < 0.005


def test_a_permutation_looks_shuffled() -> None:
    found = KeyedPermutation(50_000, 0, "epoch", 0)(np.arange(50_000))
    assert abs(np.corrcoef(found, np.arange(50_000))[0, 1]) < 0.02
    assert abs(np.corrcoef(found[1:], found[:-1])[0, 1]) < 0.02
    counts = np.histogram(found[:5_000], bins=10, range=(0, 50_000))[0]
    assert counts.min() > 420
    assert counts.max() < 580


def test_positions_outside_are_refused() -> None:
    with pytest.raises(ValueError, match="leave"):
        KeyedPermutation(10, 0, "epoch", 0)(np.array([10]))


@settings(max_examples=40, deadline=None)
@given(data=st.data(), images=st.integers(1, 60), views=st.integers(1, 4), seed=st.integers(0, 100))
def test_every_epoch_shows_each_image_that_did_not_fail_once(data: st.DataObject, images: int, views: int, seed: int) -> None:
    excluded = data.draw(st.sets(st.integers(0, images - 1), max_size=images - 1))
    order = Order(images, views, seed, np.array(sorted(excluded), np.int64))
    length = order.epoch_length
    for epoch in range(3):
        places = order.at_positions(epoch * length, (epoch + 1) * length)
        assert sorted(places.image_B.tolist()) == sorted(set(range(images)) - excluded)


def test_k_epochs_show_every_view_of_every_image_once() -> None:
    order = Order(31, 4, 9)
    rows = order.at_positions(0, 31 * 4).row_B
    assert np.array_equal(np.sort(rows), np.arange(31 * 4))


def test_views_of_one_epoch_are_mixed() -> None:
    views = Order(1000, 4, 9).at_positions(0, 1000).view_B
    assert np.bincount(views).min() > 200


@settings(max_examples=40, deadline=None)
@given(cuts=st.lists(st.integers(0, 200), max_size=6), seed=st.integers(0, 10))
def test_the_order_does_not_depend_on_how_it_is_cut(cuts: list[int], seed: int) -> None:
    order = Order(23, 3, seed, np.array([4, 11]))
    edges = [0, *sorted(cuts), 200]
    parts = [order.at_positions(start, stop).row_B for start, stop in pairwise(edges)]
    assert np.array_equal(np.concatenate(parts), order.at_positions(0, 200).row_B)


def test_1_7e9_images_start_at_once_in_little_memory() -> None:
    tracemalloc.start()
    started = time.process_time()
    order = Order(1_689_000_000, 2, 5)
    rows = order.at_positions(900_000_000_000, 900_000_000_000 + 8192).row_B
    seconds, peak_bytes = time.process_time() - started, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(np.unique(rows)) == 8192
    assert seconds < 2
    assert peak_bytes < 10_000_000


def test_the_first_positions_of_a_run_never_change() -> None:
    """A change here would break the resume of every run that stands on somebody's disk."""
    assert Order(10, 2, 0).at_positions(0, 10).row_B.tolist() == FIRST_ROWS


FIRST_ROWS = [3, 10, 9, 15, 12, 16, 4, 6, 1, 18]


def test_nothing_left_to_train_on_is_refused() -> None:
    with pytest.raises(BadInput, match="no image is left"):
        Order(2, 1, 0, np.array([0, 1]))
