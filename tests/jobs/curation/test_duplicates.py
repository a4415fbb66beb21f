"""Near duplicates: the same groups as comparing all pairs one by one, for any block, planted copies, none, one and all."""

import numpy as np
import pytest
from eupe_pipeline.jobs.curation.duplicates import (
    Groups,
    best_match,
    chosen_threshold,
    duplicate_groups,
    duplicated,
    histogram,
    nearest_of_a_sample,
    similar_pairs,
)
from eupe_pipeline.jobs.curation.image_tokens import Tokens
from eupe_pipeline.storage.core.errors import BadInput
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray


def oracle(values: NDArray[np.floating], threshold: float) -> list[int]:
    """The first member of each one's group, by a walk over all pairs in float64."""
    wide = values.astype(np.float64)
    unit = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    near, first = unit @ unit.T >= threshold, [-1] * len(values)
    for start in range(len(values)):
        open_ones = [start] if first[start] < 0 else []
        while open_ones:
            one = open_ones.pop()
            first[one] = start
            open_ones += [other for other in np.flatnonzero(near[one]).tolist() if first[other] < 0]
    return first


def noisy(seed: int, count: int, dim: int, noise: float) -> NDArray[np.float32]:
    """Some originals, each several times with noise."""
    random = np.random.default_rng(seed)
    originals = random.normal(size=(max(1, count // 3), dim))
    chosen = random.integers(0, len(originals), count)
    return (originals[chosen] + noise * random.normal(size=(count, dim))).astype(np.float32)


@given(st.integers(0, 10_000), st.integers(1, 60), st.sampled_from([3, 8, 96]), st.sampled_from([0.05, 0.3, 1.0]), st.integers(1, 70))
def test_groups_are_those_of_all_pairs_whatever_the_block(seed: int, count: int, dim: int, noise: float, block: int) -> None:
    values = noisy(seed, count, dim, noise)
    unit = values.astype(np.float64) / np.linalg.norm(values.astype(np.float64), axis=1, keepdims=True)
    threshold = 0.9
    if (np.abs(unit @ unit.T - threshold) < 1e-5).any():  # rounding decides there
        return
    assert duplicate_groups(Tokens.of(values), threshold, 0, block=block).first_N.tolist() == oracle(values, threshold)


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.8, 0.95])
def test_pairs_are_exact_at_thresholds_below_which_the_bound_refuses_nothing(threshold: float) -> None:
    values = noisy(4, 150, 200, 0.7)
    found = {
        (int(left), int(right))
        for pairs in similar_pairs(Tokens.of(values), None, threshold, 0, block=32)
        for left, right in zip(pairs.left_n, pairs.right_n, strict=True)
    }
    unit = values / np.linalg.norm(values, axis=1, keepdims=True)
    left, right = np.nonzero(np.triu(unit @ unit.T >= threshold, 1))
    assert found == set(zip(left.tolist(), right.tolist(), strict=True))


def test_five_hundred_planted_copies_are_found_and_nothing_else() -> None:
    random = np.random.default_rng(0)
    values = random.normal(size=(5_000, 192)).astype(np.float16)
    chosen = random.permutation(5_000)[:1_000]
    sources, copies = chosen[:500], chosen[500:]
    values[copies] = values[sources] + 0.2 * random.normal(size=(500, 192))
    tokens = Tokens.of(values)
    threshold, why = chosen_threshold(nearest_of_a_sample(tokens, 0))
    assert threshold == 0.9
    assert why.startswith("auto: median similarity of nearest neighbours 0.2")
    groups = duplicate_groups(tokens, threshold, 0)
    assert sorted(tuple(one.tolist()) for one in groups.members()) == sorted(
        (min(pair), max(pair)) for pair in zip(sources.tolist(), copies.tolist(), strict=True)
    )
    leaves = duplicated(groups, np.zeros(5_000, np.bool_))
    assert np.flatnonzero(leaves).tolist() == sorted(np.maximum(sources, copies).tolist())


def test_a_chain_is_one_group_and_its_first_stays() -> None:
    angles = np.deg2rad([0, 90, 10, 20, 200, 30])
    groups = duplicate_groups(Tokens.of(np.stack([np.cos(angles), np.sin(angles)], axis=1)), float(np.cos(np.deg2rad(11))), 0)
    assert [one.tolist() for one in groups.members()] == [[0, 2, 3, 5]]
    assert duplicated(groups, np.zeros(6, np.bool_)).tolist() == [False, False, True, True, False, True]


def test_where_the_first_of_a_group_is_a_leak_the_next_one_stays() -> None:
    groups = Groups(5)
    groups.join(np.array([0, 1]), np.array([1, 3]))
    banned = np.array([True, False, False, False, False])
    assert duplicated(groups, banned).tolist() == [False, False, False, True, False]
    assert duplicated(groups, np.array([True, True, False, True, False])).tolist() == [False] * 5


def test_one_image_has_no_duplicate_and_of_equal_ones_the_first_stays() -> None:
    one = Tokens.of(np.ones((1, 4), np.float32))
    assert duplicate_groups(one, 0.9, 0).members() == []
    assert chosen_threshold(nearest_of_a_sample(one, 0)) == (0.99, "auto: one image has no neighbour")
    alike = Tokens.of(np.tile(np.random.default_rng(0).normal(size=96), (3_000, 1)).astype(np.float16))
    threshold, why = chosen_threshold(nearest_of_a_sample(alike, 0))
    assert (threshold, why.endswith("kept between 0.90 and 0.99")) == (0.99, True)
    for asked in (threshold, 1.0):  # a copy's cosine is 1 but for rounding
        (group,) = duplicate_groups(alike, asked, 0, block=512).members()
        assert group.tolist() == list(range(3_000))


def test_a_token_that_is_not_finite_is_refused_and_one_of_zeros_is_like_nothing() -> None:
    values = np.ones((3, 4), np.float32)
    values[1, 2] = np.nan
    with pytest.raises(BadInput, match="the token of image 1 is not finite; 1 of 3 are not"):
        Tokens.of(values)
    values[1] = 0
    assert [one.tolist() for one in duplicate_groups(Tokens.of(values), 0.9, 0).members()] == [[0, 2]]


def test_the_likest_test_image_is_named_for_each_leak() -> None:
    angles, tests = np.deg2rad([0, 40, 80, 120]), np.deg2rad([83, 81, 300, 5])
    train, test = (Tokens.of(np.stack([np.cos(one), np.sin(one)], axis=1).astype(np.float32)) for one in (angles, tests))
    for block in (1, 2, 64):
        place, cosine = best_match(similar_pairs(train, test, 0.99, 0, block=block), 4)
        assert place.tolist() == [3, -1, 1, -1]
        np.testing.assert_allclose(cosine[[0, 2]], np.cos(np.deg2rad([5, 1])), atol=1e-6)


def test_the_histogram_counts_every_sampled_image() -> None:
    found = histogram(np.array([-0.2, 0.1, 0.96, 1.0, 1.0], np.float32))
    assert (found["-1 to 0"], found["0 to 0.2"], found["0.95 to 0.975"], found["0.99 to 1"]) == (1, 1, 1, 2)
    assert sum(found.values()) == 5
