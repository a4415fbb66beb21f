"""Crops as they were cut, packed for a device that resizes them in one batch (`teachers.runtime.device_resize`).

Memory for n views of one input holds their pixels one behind the other, and a row of `COLUMNS` a view says where they lie and what becomes
of them. What a device should not get is resized here first, and gives the same bytes: a crop of a renderer that no device has (Pillow), and
one that is much larger than its input, so that the memory has a bound and no crop has many taps. A view that nothing was put for has a
height of zero and becomes black.
Axes: n views.
"""

import numpy as np
from numpy.typing import NDArray

from ..sources.decode import Pixels
from .input_size import area_px, size_hw
from .letterbox import Content, Letterbox
from .renderers import Renderer
from .view_spec import Input

Int64s = NDArray[np.int64]
COLUMNS = ("start", "height", "width", "flip", "top", "left", "content_height", "content_width")
"""First pixel in the memory and size of what was cut, whether it is mirrored, and where it stands in the input."""
LARGEST_AREA, LARGEST_SIDE = 4, 4  # times the input's pixels, and times the side that it is resized to
SLACK_PX = 64  # behind the last crop: what a tap of weight zero may read


def capacity_px(wanted: Input, count: int) -> int:
    """Return for how many pixels the memory of so many views has to have room."""
    return LARGEST_AREA * area_px(wanted.size_px) * count + SLACK_PX


class CutPixels:
    """A part of a batch's memory, which one thread fills in the order of its views."""

    def __init__(self, wanted: Input, memory: Pixels, boxes: Int64s, first_px: int = 0) -> None:
        """Take memory (pixels, 3) that begins at pixel `first_px` of the batch's, and boxes (n, `COLUMNS`), all zero afterwards."""
        self.wanted, self._memory, self._boxes, self._first, self._used = wanted, memory, boxes, first_px, 0
        boxes[:] = 0

    def put(self, n: int, crop: Pixels, flip: bool, letterbox: Letterbox | None, renderer: Renderer) -> None:
        """Add view n: its crop, or what it is resized to where the device should not do that."""
        (height, width), input_hw = crop.shape[:2], size_hw(self.wanted.size_px)
        content = Content(0, 0, *input_hw) if letterbox is None else letterbox.content((height, width), self.wanted.size_px)
        few = height * width <= LARGEST_AREA * area_px(self.wanted.size_px)
        near = height <= LARGEST_SIDE * content.height and width <= LARGEST_SIDE * content.width
        if renderer.is_on_devices and few and near:
            self._taken(height, width)[:] = crop
        else:
            renderer.resize_into(self._taken(content.height, content.width), crop, False, self.wanted.interpolation)
            height, width = content.height, content.width
        self._boxes[n] = (self._first + self._used - height * width, height, width, flip, *content)

    def put_rendered(self, good: NDArray[np.bool_]) -> Pixels:
        """Return memory (n, height, width, 3) for views that are rendered already; those that are not `good` become black."""
        height, width = size_hw(self.wanted.size_px)
        count = len(self._boxes)
        pixels = self._taken(count * height, width).reshape(count, height, width, 3)
        starts = self._first + np.arange(count) * (height * width)
        self._boxes[good] = [(start, height, width, 0, 0, 0, height, width) for start in starts[good]]
        return pixels

    def _taken(self, height: int, width: int) -> Pixels:
        start, self._used = self._used, self._used + height * width
        return self._memory[start : self._used].reshape(height, width, 3)
