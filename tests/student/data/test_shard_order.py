"""Shards at a time: every image once an epoch, few shards in reach, the same for any start, any ranks, and any number of absent images."""

import time
from itertools import product

import numpy as np
import pytest
from eupe_pipeline.student.data.order import KeyedPermutation
from eupe_pipeline.student.data.shard_order import ShardOrder
from hypothesis import given, settings
from hypothesis import strategies as st

RANKS = (1, 2, 3, 4, 6, 8)


@settings(max_examples=100, deadline=None)
@given(size=st.integers(1, 3000), number=st.integers(0, 5))
def test_the_inverse_undoes_a_permutation(size: int, number: int) -> None:
    permutation, positions = KeyedPermutation(size, 3, "test", number), np.arange(size, dtype=np.int64)
    assert np.array_equal(permutation.inverse(permutation(positions)), positions)


@settings(max_examples=60, deadline=None)
@given(
    images=st.integers(1, 300),
    a_shard=st.integers(1, 40),
    window=st.integers(1, 6),
    bad=st.sets(st.integers(0, 299), max_size=40),
    seed=st.integers(0, 3),
)
def test_each_epoch_has_every_image_that_is_not_excluded_once(images: int, a_shard: int, window: int, bad: set[int], seed: int) -> None:
    excluded = np.array(sorted(one for one in bad if one < images), np.int64)
    if len(excluded) == images:
        return
    order = ShardOrder(images, 2, seed, excluded, images_per_shard=a_shard, window_shards=window)
    wanted = sorted(set(range(images)) - set(excluded.tolist()))
    for epoch in (0, 1, 5):
        seen = order.at_positions(epoch * order.epoch_length, (epoch + 1) * order.epoch_length).image_B
        assert sorted(seen.tolist()) == wanted


def test_two_windows_of_shards_are_all_that_a_stretch_of_a_window_touches() -> None:
    order = ShardOrder(64 * 128 - 5, 1, 0, np.array([7, 900], np.int64), images_per_shard=64, window_shards=8)
    for start in range(0, order.epoch_length - 512, 300):
        assert len(np.unique(order.at_positions(start, start + 512).image_B // 64)) <= 16
    whole = order.at_positions(0, order.epoch_length).image_B // 64
    firsts = {shard: int(np.flatnonzero(whole == shard)[0]) for shard in range(128)}
    lasts = {shard: int(np.flatnonzero(whole == shard)[-1]) for shard in range(128)}
    assert max(lasts[shard] - firsts[shard] for shard in range(128)) < 8 * 64  # each shard comes once, within one window


def test_epochs_go_through_other_windows_in_another_order() -> None:
    order = ShardOrder(1024, 1, 0, images_per_shard=16, window_shards=4)
    first, second = (order.at_positions(epoch * 1024, epoch * 1024 + 64).image_B // 16 for epoch in (0, 1))
    assert set(first.tolist()) != set(second.tolist())
    assert abs(np.corrcoef(np.arange(64), order.at_positions(0, 64).image_B)[0, 1]) < 0.5


def test_views_follow_the_same_rule_as_in_the_global_order() -> None:
    order = ShardOrder(96, 3, 1, images_per_shard=8, window_shards=2)
    seen = {(int(i), int(k)) for e in range(3) for i, k in zip(*order.at_positions(e * 96, e * 96 + 96)[:2], strict=True)}
    assert len(seen) == 96 * 3


@pytest.mark.parametrize(("before", "after"), list(product(RANKS, RANKS)))
def test_a_resume_with_any_number_of_ranks_sees_what_the_uninterrupted_run_sees(before: int, after: int) -> None:
    def rows(first: int, last: int, ranks: int) -> list[int]:
        order = ShardOrder(101, 3, 7, np.array([3, 50], np.int64), images_per_shard=8, window_shards=3)
        parts = [order.batch(step, 24, rank, ranks) for step in range(first, last) for rank in range(ranks)]
        return [row for part in parts for row in part.row_B.tolist()]

    assert rows(0, 5, before) + rows(5, 12, after) == rows(0, 12, 1)


def test_a_billion_images_cost_as_little_as_ten() -> None:
    excluded = np.arange(0, 1_000_000, 10, dtype=np.int64)
    started = time.process_time()
    order = ShardOrder(1_700_000_000, 2, 0, excluded, images_per_shard=1024)
    order.batch(150_000, 8192)
    assert time.process_time() - started < 2


def test_the_first_images_of_a_run_never_change() -> None:
    """A change here would break the resume of every run that stands on somebody's disk."""
    order = ShardOrder(100, 1, 0, np.array([4], np.int64), images_per_shard=10, window_shards=3)
    assert order.at_positions(0, 12).image_B.tolist() == FIRST


FIRST = [20, 80, 81, 29, 11, 16, 18, 12, 22, 88, 87, 23]
