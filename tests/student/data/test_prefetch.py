"""The memory of batches made ahead: counted to the byte, held while training at every input size, and refused where two do not fit."""

from dataclasses import replace
from typing import Any

import pytest
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.student.data.order import Order
from eupe_pipeline.student.data.prefetch import MOST_SLOTS, largest_inputs, prefetch_of, slots_within
from eupe_pipeline.student.data.stream import Stream
from eupe_pipeline.student.data.targets import STUDENT, CachedTargets, LiveTargets, Rendering, TargetSource
from eupe_pipeline.student.model.ranks import ALONE, Ranks
from eupe_pipeline.student.model.recipe import RunConfig, StudentConfig, TeacherConfig, TrainRecipe

SIZES = (16, 32, 48)
RECIPE = TrainRecipe(student=StudentConfig(sizes_px=SIZES), run=RunConfig(batch_size=24, prefetch_megabytes=1))


def cached(tiny: Any) -> TargetSource:
    return CachedTargets({"one": tiny.features("tiny-teacher"), "other": tiny.features("tiny-int8")})


def live(tiny: Any) -> TargetSource:
    return LiveTargets({"one": tiny.teacher}, {"one": tiny.features().statistics}, sizes_px=(16, 48))


@pytest.mark.parametrize("make", [cached, live])
def test_a_stream_takes_the_bytes_that_were_counted_and_no_more_at_any_size(tiny_store: Any, make: Any) -> None:
    reader, source = tiny_store.features(), make(tiny_store)
    allowed = prefetch_of(RECIPE, source, ALONE)
    assert 2 < allowed.slots < MOST_SLOTS
    stream = Stream(
        reader.views, source, Order(24, 2, 0), lambda step: Rendering(STUDENT, SIZES[step % 3], "bicubic"),
        batch_size=24, largest_px=largest_inputs(RECIPE, source), slots=allowed.slots,
    )  # fmt: skip
    held: dict[int, int] = {}
    for batch in stream.batches(0, 2 * allowed.slots):
        held |= {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in batch.tensors.values()}
    assert sum(held.values()) == allowed.bytes <= 1_000_000 == allowed.limit_bytes
    assert allowed.bytes + allowed.slot_bytes > allowed.limit_bytes


def test_a_rank_counts_its_own_share(tiny_store: Any) -> None:
    whole, half = (prefetch_of(RECIPE, cached(tiny_store), Ranks(0, count)) for count in (1, 2))
    assert half.slot_bytes * 2 == whole.slot_bytes
    assert half.slots >= 2 * whole.slots


def test_small_batches_are_not_made_ahead_without_end() -> None:
    assert slots_within(4096, 1000).slots == MOST_SLOTS
    assert "the most that are made ahead" in slots_within(4096, 1000).why()
    assert slots_within(10, 3_000_000).why() == "3 batches of 3.0 MB  # run.prefetch_megabytes = 10"


def test_a_bound_below_two_batches_is_refused_with_the_bound_that_would_do() -> None:
    assert slots_within(10, 5_000_000).slots == 2
    with pytest.raises(BadInput, match=r"a batch of this run takes 5\.0 MB .* set it to 11 or more, or lower run\.batch_size"):
        slots_within(10, 5_000_001)
    with pytest.raises(BadInput, match=r"12\.0 MB .* set it to 24 or more"):
        slots_within(10, 12_000_000)


def test_the_bound_changes_nothing_that_decides_a_run() -> None:
    other = replace(RECIPE, run=replace(RECIPE.run, prefetch_megabytes=77))
    assert other.decisive() == RECIPE.decisive()
    assert other.to_dict() != RECIPE.to_dict()


def test_teachers_with_a_size_of_their_own_count_at_that(tiny_store: Any) -> None:
    source = LiveTargets({"one": tiny_store.teacher}, {"one": tiny_store.features().statistics})
    recipe = replace(RECIPE, teacher=TeacherConfig("live"))
    assert largest_inputs(recipe, source) == {STUDENT: 48, "one": 16}
