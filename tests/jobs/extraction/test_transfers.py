"""Pixels there and tokens back: equal to the teacher's own, by the device's clock; on CUDA without a wait where there is one."""

import time
from typing import Any

import pytest
import torch
from eupe_pipeline.jobs.extraction.transfers import Arriving, StoredTokens, busy_seconds, compute, to_device
from eupe_pipeline.teachers.registry.canary import canary_images
from eupe_pipeline.teachers.registry.resolve import load_teacher

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"))]


@pytest.mark.parametrize("kind", DEVICES)
def test_several_batches_under_way_arrive_whole(tiny_store: Any, kind: str) -> None:
    device = torch.device(kind)
    teacher = load_teacher(tiny_store.teacher.spec, device)
    pixels = torch.from_numpy(canary_images(8, 16))
    batches = [pixels[start : start + 2] for start in range(0, 8, 2)]
    arriving = [compute(lambda batch=batch: StoredTokens(*teacher(to_device(batch, device))), teacher.device) for batch in batches]  # type: ignore[misc]
    for batch, one in zip(batches, arriving, strict=True):
        tokens, expected = one.wait(), tiny_store.teacher(batch)
        assert tokens.patch.device.type == "cpu"
        torch.testing.assert_close(tokens.patch, expected.patch_BHWD, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(tokens.cls_BD, expected.cls_BD, rtol=1e-3, atol=1e-4)
        assert one.device_s > 0


def test_the_device_s_time_is_that_of_the_forward() -> None:
    def slow() -> StoredTokens:
        time.sleep(0.05)
        return StoredTokens(None, torch.zeros(1, 1, 1, 4))

    one = compute(slow, torch.device("cpu"))
    assert one.wait().cls_BD is None
    assert 0.05 <= one.device_s < 1.0


def test_devices_are_busy_side_by_side_and_teachers_on_one_in_turn() -> None:
    tokens = StoredTokens(None, torch.zeros(1))
    one, other = torch.device("cuda:0"), torch.device("cuda:1")
    batch = [Arriving(tokens, device, seconds) for device, seconds in ((one, 2.0), (one, 1.0), (other, 2.5))]
    assert busy_seconds(batch) == 3.0
    assert busy_seconds([]) == 0.0


def test_an_error_of_the_teacher_is_its_own() -> None:
    def refuse() -> StoredTokens:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        compute(refuse, torch.device("cpu"))
