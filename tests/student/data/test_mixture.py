"""Mixtures: homogeneous batches, in the asked-for shares, each dataset in its own permutation, whatever the ranks and resumes."""

import time
from itertools import product

import numpy as np
import pytest
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.student.data.mixture import Mixture
from eupe_pipeline.student.data.order import Order

PAPER = {"imagenet-1k": 0.10, "lvd": 0.90}
RANKS = (1, 2, 3, 4, 6, 8)
ORDERS = {"imagenet-1k": Order(31, 2, 5), "lvd": Order(200, 1, 5)}
BATCH = 24


def test_the_shares_are_those_of_the_recipe_and_steps_are_independent() -> None:
    drawn = Mixture(PAPER, 0).drawn(0, 200_000) == 0
    assert abs(drawn.mean() - 0.10) < 0.003
    assert abs(np.corrcoef(drawn[1:], drawn[:-1])[0, 1]) < 0.01


def test_each_dataset_goes_through_its_own_permutation_without_a_gap() -> None:
    mixture = Mixture(PAPER, 3)
    seen: dict[str, list[int]] = {name: [] for name in PAPER}
    for step in range(120):
        name, indices = mixture.batch(ORDERS, step, BATCH)
        seen[name] += indices.row_B.tolist()
    for name, rows in seen.items():
        assert rows == ORDERS[name].at_positions(0, len(rows)).row_B.tolist()
        assert len(rows) > ORDERS[name].images


@pytest.mark.parametrize(("before", "after"), list(product(RANKS, RANKS)))
def test_any_number_of_ranks_before_and_after_a_resume_sees_the_same(before: int, after: int) -> None:
    def rows(first: int, last: int, ranks: int) -> list[tuple[str, int]]:
        mixture = Mixture(PAPER, 8)  # a resumed process starts anew
        parts = [mixture.batch(ORDERS, step, BATCH, rank, ranks) for step in range(first, last) for rank in range(ranks)]
        return [(name, row) for name, indices in parts for row in indices.row_B.tolist()]

    assert rows(0, 11, before) + rows(11, 30, after) == rows(0, 30, 1)


def test_a_turn_does_not_depend_on_what_was_asked_before() -> None:
    late, early = Mixture(PAPER, 1), Mixture(PAPER, 1)
    steps = [0, 65_535, 65_536, 65_537, 140_000]
    assert [early.turn(step) for step in steps] == [late.turn(step) for step in reversed(steps)][::-1]
    assert late.turn(140_000).number == int((late.drawn(0, 140_000) == late.drawn(140_000, 140_001)[0]).sum())


def test_the_last_step_of_the_longest_run_is_found_at_once() -> None:
    started = time.process_time()
    Mixture(PAPER, 0).turn(600_000 - 1)
    assert time.process_time() - started < 2


def test_the_first_turns_of_a_run_never_change() -> None:
    """A change here would break the resume of every run that stands on somebody's disk."""
    assert np.flatnonzero(Mixture(PAPER, 0).drawn(0, 60) == 0).tolist() == FIRST


FIRST = [22, 26, 48, 53, 54]


@pytest.mark.parametrize("shares", [{}, {"a": 1.2}, {"a": 0.5, "b": 0.4}, {"a": 1.0, "b": 0.0}])
def test_shares_that_do_not_sum_to_one_are_refused(shares: dict[str, float]) -> None:
    with pytest.raises(BadInput, match="sum to 1"):
        Mixture(shares, 0)
