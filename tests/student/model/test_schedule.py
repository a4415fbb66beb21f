"""The learning rate of each step, by hand and at its ends."""

import math
from itertools import pairwise

import pytest
from eupe_pipeline.student.model.recipe import OptimizerConfig
from eupe_pipeline.student.model.schedule import learning_rate, warmup_steps

CONFIG = OptimizerConfig(learning_rate=1.0, warmup_share=0.1, final_learning_rate=0.2)


def test_the_warm_up_rises_linearly_to_the_peak() -> None:
    assert [learning_rate(step, 40, CONFIG) for step in range(4)] == pytest.approx([0.25, 0.5, 0.75, 1.0])


def test_the_cosine_starts_at_the_peak_and_is_halfway_in_the_middle() -> None:
    assert learning_rate(4, 40, CONFIG) == pytest.approx(1.0)
    assert learning_rate(22, 40, CONFIG) == pytest.approx(0.6)


def test_the_last_step_is_one_step_before_the_final_rate() -> None:
    expected = 0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * 35 / 36))
    assert learning_rate(39, 40, CONFIG) == pytest.approx(expected)


def test_it_never_rises_after_the_warm_up_and_stays_in_range() -> None:
    rates = [learning_rate(step, 200, CONFIG) for step in range(200)]
    assert all(later <= earlier for earlier, later in pairwise(rates[20:]))
    assert 0 < min(rates) <= max(rates) == 1.0


def test_a_run_of_one_step_has_no_warm_up() -> None:
    assert warmup_steps(1, 0.05) == 0
    assert learning_rate(0, 1, CONFIG) == 1.0


@pytest.mark.parametrize("step", [-1, 40])
def test_steps_outside_the_run_are_refused(step: int) -> None:
    with pytest.raises(ValueError, match="outside the run"):
        learning_rate(step, 40, CONFIG)
