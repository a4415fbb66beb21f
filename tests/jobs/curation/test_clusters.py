"""Balanced subsets: as many as asked for, the rare kinds kept, the same for a seed; any number of images."""

import numpy as np
import pytest
from eupe_pipeline.jobs.curation.clusters import balanced, even_shares, evenness, hierarchy, k_means, levels_of
from eupe_pipeline.jobs.curation.duplicates import generator_of
from eupe_pipeline.jobs.curation.image_tokens import Tokens
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

Skewed = tuple[Tokens, NDArray[np.int64]]
SIZES = [1500, 300, 60, 40]


@pytest.fixture(scope="module")
def skewed() -> Skewed:
    """Four kinds of very different numbers, and the kind of each image."""
    random = np.random.default_rng(1)
    kinds = np.repeat(np.arange(4), SIZES)
    random.shuffle(kinds)
    centres = 3 * random.normal(size=(4, 48))
    return Tokens.of((centres[kinds] + random.normal(size=(len(kinds), 48))).astype(np.float32)), kinds


def test_a_balanced_subset_is_closer_to_uniform_and_keeps_the_rare(
    skewed: Skewed,
) -> None:
    tokens, kinds = skewed
    tree = hierarchy(tokens, 0)
    stays = balanced(tree, 400, 0)
    assert stays.sum() == 400
    before, after = np.bincount(kinds) / len(kinds), np.bincount(kinds[stays]) / 400
    assert after.max() < before.max() - 0.15
    assert after[2] > 2 * before[2]
    assert after[3] > 2 * before[3]
    coarsest = tree.label_LN[-1]
    assert evenness(coarsest[stays], tree.clusters[-1]) > evenness(coarsest, tree.clusters[-1])
    assert evenness(kinds[stays], 4) > evenness(kinds, 4) + 0.1


def test_a_seed_decides_the_subset(skewed: Skewed) -> None:
    tokens, _ = skewed
    first, again, other = (balanced(hierarchy(tokens, seed), 500, seed) for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_levels_follow_the_rule() -> None:
    assert levels_of(60_000) == [490, 49, 4]
    assert levels_of(1_281_167) == [2264, 226, 22, 2]
    assert (levels_of(24), levels_of(1), levels_of(2)) == ([10], [1], [2])


@given(st.integers(1, 40), st.integers(0, 100))
def test_any_number_of_any_images_can_be_drawn(count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    values = random.normal(size=(count, 5)).astype(np.float32)
    values[: count // 2] = values[0]  # equal ones leave clusters without images
    tree = hierarchy(Tokens.of(values), seed)
    labels, _ = k_means(Tokens.of(values), tree.clusters[0], generator_of(seed, 10))
    assert np.bincount(labels, minlength=tree.clusters[0]).min() >= 1
    for wanted in {1, (count + 1) // 2, count}:
        assert balanced(tree, wanted, seed).sum() == wanted


@given(st.lists(st.integers(1, 50), min_size=1, max_size=12), st.integers(0, 600), st.integers(0, 9))
def test_shares_sum_to_what_is_wanted_and_are_as_equal_as_can_be(sizes: list[int], wanted: int, seed: int) -> None:
    wanted = min(wanted, sum(sizes))
    shares = even_shares(np.array(sizes), wanted, np.random.default_rng(seed))
    assert shares.sum() == wanted
    assert (shares <= sizes).all()
    not_used_up = shares[shares < sizes]
    if len(not_used_up):
        assert not_used_up.max() - not_used_up.min() <= 1
        assert shares.max() <= not_used_up.min() + 1
