"""The order of a run shared by ranks: whatever their number before and after a resume, nothing twice, nothing missed (FAULTS 13)."""

from itertools import product

import numpy as np
import pytest
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.student.data.order import Order
from eupe_pipeline.student.model.ranks import ALONE, Ranks, rank_span
from hypothesis import given, settings
from hypothesis import strategies as st

RANKS = (1, 2, 3, 4, 6, 8)
STEPS, BATCH = 12, 24
RESUMES = (1, 5, 7, 11)
EACH_STEP = tuple(range(STEPS + 1))


def rows_of(order: Order, first: int, last: int, ranks: int) -> list[int]:
    """Rows of steps [first, last) in run order, put together from every rank's own spans."""
    return [
        row
        for step in range(first, last)
        for rank in range(ranks)
        for row in order.batch(step, BATCH, rank, ranks).row_B.tolist()
    ]  # fmt: skip


@pytest.mark.parametrize(
    "resumes",
    [
        pytest.param(RESUMES, marks=pytest.mark.fault(13, "right", len(RESUMES))),
        pytest.param(EACH_STEP, marks=[pytest.mark.fault(13, "right", len(EACH_STEP)), pytest.mark.long]),
    ],
)
@pytest.mark.parametrize(("before", "after"), list(product(RANKS, RANKS)))
def test_a_resume_with_any_number_of_ranks_sees_what_the_uninterrupted_run_sees(before: int, after: int, resumes: tuple[int, ...]) -> None:
    order = Order(101, 3, 7, np.array([3, 50], np.int64))
    whole = order.at_positions(0, STEPS * BATCH).row_B.tolist()
    for step in resumes:
        assert rows_of(order, 0, step, before) + rows_of(order, step, STEPS, after) == whole


@settings(max_examples=200, deadline=None)
@given(batch_size=st.integers(1, 500), ranks=st.integers(1, 64))
def test_the_spans_of_all_ranks_tile_a_batch_evenly(batch_size: int, ranks: int) -> None:
    if batch_size < ranks:
        with pytest.raises(BadInput, match="cannot be shared"):
            rank_span(batch_size, 0, ranks)
        return
    spans = [rank_span(batch_size, rank, ranks) for rank in range(ranks)]
    assert [spans[0][0], *(stop for _, stop in spans)] == [start for start, _ in spans] + [batch_size]
    sizes = [stop - start for start, stop in spans]
    assert max(sizes) - min(sizes) <= 1


def test_one_process_is_the_whole_batch_and_speaks_to_nobody() -> None:
    assert ALONE.span(7) == (0, 7)
    assert ALONE.first
    assert ALONE.any(True)
    assert not Ranks(1, 2).first
    ALONE.barrier()
