"""The number of views in a forward: found, halved when memory runs out, and never a reason for other tokens."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from eupe_pipeline.jobs.extraction.batch_size import LARGEST, SizedTeacher, is_out_of_memory
from eupe_pipeline.storage.core.errors import EupeError
from eupe_pipeline.teachers.registry.canary import canary_images
from eupe_pipeline.teachers.registry.resolve import load_teacher
from eupe_pipeline.teachers.registry.teacher import Teacher
from torch import nn


@pytest.fixture
def teacher(tiny_store: Any) -> Teacher:
    return load_teacher(tiny_store.teacher.spec)


def with_room_for(teacher: Teacher, views: int, error: Exception) -> Teacher:
    """The teacher on a device whose memory holds so many views."""

    def refuse(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if len(inputs[0]) > views:
            raise error

    teacher.register_forward_pre_hook(refuse)
    return teacher


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    MemoryError(),
]


@pytest.mark.fault(6, "recovered")
@pytest.mark.parametrize("error", ERRORS)
def test_out_of_memory_halves_the_number_until_it_fits_and_the_tokens_are_the_same(teacher: Teacher, error: Exception) -> None:
    pixels = canary_images(11, 16)
    expected = teacher(torch.from_numpy(pixels))
    sized = SizedTeacher(with_room_for(teacher, 3, error), 8)
    tokens = sized(pixels)
    assert (sized.views, sized.backoffs) == (2, 2)
    torch.testing.assert_close(tokens.patch_BHWD, expected.patch_BHWD, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tokens.cls_BD, expected.cls_BD, rtol=1e-4, atol=1e-5)
    sized(pixels)
    assert sized.backoffs == 2


@pytest.mark.fault(6, "detected")
def test_a_device_without_room_for_one_view_is_an_error_that_says_what_to_change(teacher: Teacher) -> None:
    sized = SizedTeacher(with_room_for(teacher, 0, ERRORS[0]), 4)
    with pytest.raises(EupeError, match=r"no memory for a single view .*--workers"):
        sized(canary_images(2, 16))


def test_an_error_that_is_not_about_memory_is_not_tried_again(teacher: Teacher) -> None:
    sized = SizedTeacher(with_room_for(teacher, 1, RuntimeError("shapes cannot be multiplied")), 4)
    with pytest.raises(RuntimeError, match="multiplied"):
        sized(canary_images(2, 16))
    assert (sized.views, sized.backoffs) == (4, 0)


def test_the_found_number_stays_within_what_fits(teacher: Teacher) -> None:
    found = SizedTeacher(teacher, None)
    assert 1 <= found.views <= LARGEST["cpu"]
    small = SizedTeacher(with_room_for(teacher, 2, ERRORS[0]), None)
    assert (small.views <= 2, small.backoffs) == (True, 0)


@pytest.mark.parametrize(("seconds", "views"), [([9, 8, 4, 2, 1, 1], 16), ([9, 8, 8], 2), ([9, 1, 0.5, 0.4, 0.4], 8)])
def test_a_doubling_is_kept_while_a_view_gets_cheaper(
    teacher: Teacher, monkeypatch: pytest.MonkeyPatch, seconds: list[float], views: int
) -> None:
    costs: Iterator[float] = iter(seconds)
    monkeypatch.setattr(SizedTeacher, "_seconds_per_view", lambda self, views: next(costs) / 1000)
    assert SizedTeacher(teacher, None).views == views


def test_a_batch_stays_short_enough_for_a_prompt_stop(teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SizedTeacher, "_seconds_per_view", lambda self, views: 2.5 / views**0.5)
    assert SizedTeacher(teacher, None).views == 2


def test_only_memory_errors_are_memory_errors() -> None:
    assert all(map(is_out_of_memory, ERRORS))
    assert not is_out_of_memory(ValueError("out of memory"))
    assert not is_out_of_memory(RuntimeError("out of range"))


def test_pixels_are_not_changed(teacher: Teacher) -> None:
    pixels = canary_images(3, 16)
    before = pixels.copy()
    SizedTeacher(teacher, 2)(pixels)
    np.testing.assert_array_equal(pixels, before)
