"""What is cut for a device, and what is resized before it is sent: within a bound of memory, whatever the crops are."""

import numpy as np
import pytest
from eupe_pipeline.storage.views.cut_pixels import COLUMNS, LARGEST_AREA, LARGEST_SIDE, SLACK_PX, CutPixels, capacity_px
from eupe_pipeline.storage.views.letterbox import Letterbox
from eupe_pipeline.storage.views.renderers import PILLOW, Renderer, fast
from eupe_pipeline.storage.views.view_spec import Input, fit
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

WANTED = Input((16, 20))


def cut(wanted: Input, count: int, first_px: int = 0) -> tuple[CutPixels, Pixels, NDArray[np.int64]]:
    memory = np.zeros((capacity_px(wanted, count) - SLACK_PX, 3), np.uint8)
    boxes = np.full((count, len(COLUMNS)), -1, np.int64)
    return CutPixels(wanted, memory, boxes, first_px), memory, boxes


def picture(height: int, width: int) -> Pixels:
    return np.random.default_rng(height + width).integers(0, 256, (height, width, 3), np.uint8)


CASES = [
    ((30, 40), fast(), True), ((32, 40), fast(), True), ((33, 39), fast(), False), ((16, 80), fast(), True), ((15, 81), fast(), False),
    ((65, 10), fast(), False), ((1, 1), fast(), True), ((30, 40), PILLOW, False),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "renderer", "whole"), CASES)
def test_a_crop_is_sent_whole_unless_it_is_large_long_or_pillows(shape: tuple[int, int], renderer: Renderer, whole: bool) -> None:
    views, memory, boxes = cut(WANTED, 3, first_px=100)
    views.put(1, picture(*shape), True, None, renderer)
    height, width = shape if whole else (16, 20)
    assert boxes.tolist() == [[0] * 8, [100, height, width, 1, 0, 0, 16, 20], [0] * 8]
    sent = memory[: height * width].reshape(height, width, 3)
    np.testing.assert_array_equal(sent, picture(*shape) if whole else fit(picture(*shape), False, WANTED, renderer=renderer))


def test_a_letterboxed_crop_is_measured_by_what_it_becomes() -> None:
    views, memory, boxes = cut(Input(20), 2)
    views.put(0, picture(60, 15), False, Letterbox("center"), fast())  # becomes 20 × 5
    views.put(1, picture(100, 10), False, Letterbox("center"), fast())  # 20 × 2: five times as long
    assert boxes.tolist() == [[0, 60, 15, 0, 0, 7, 20, 5], [900, 20, 2, 0, 0, 9, 20, 2]]
    np.testing.assert_array_equal(memory[:900].reshape(60, 15, 3), picture(60, 15))


def test_the_largest_crops_of_a_batch_fit() -> None:
    views, memory, boxes = cut(WANTED, 4)
    for n in range(4):
        views.put(n, picture(32, 40), False, None, fast())
    assert boxes[:, 0].tolist() == [0, 1280, 2560, 3840]
    assert (LARGEST_AREA, LARGEST_SIDE, len(memory)) == (4, 4, 5120)


def test_views_that_are_rendered_already_stay_as_they_are() -> None:
    views, memory, boxes = cut(WANTED, 3, first_px=7)
    pixels = views.put_rendered(np.array([True, False, True]))
    assert pixels.shape == (3, 16, 20, 3)
    pixels[2] = picture(16, 20)
    np.testing.assert_array_equal(memory[640:960].reshape(16, 20, 3), picture(16, 20))
    assert boxes.tolist() == [[7, 16, 20, 0, 0, 0, 16, 20], [0] * 8, [647, 16, 20, 0, 0, 0, 16, 20]]
