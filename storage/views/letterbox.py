"""Letterboxed views: an image inside of an input with its aspect ratio kept, and padding around it.

The longer side, measured by the input's, is filled; the other is rounded to the nearest pixel, halves up, as SAM's preprocessing does.
Detectors of the YOLO kind centre the image, SAM and DETR put it at the top left: `position` says which. An odd rest gives the right and
the bottom the larger half. Padding has one exact colour in every view, mirrored or distorted. All is a function of whole numbers, so that
teachers, students and losses find the same border; the price is that inputs of other aspect ratios show an image at other places, and
their tokens cannot be compared.
Axes: n views.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..core import choices
from ..core.errors import BadInput, unknown_name
from .input_size import SizePx, size_hw

Int64s = NDArray[np.int64]
IMAGENET_MEAN_RGB = (124, 116, 104)  # of 256 levels: all but zero once a model has subtracted the mean


class Content(NamedTuple):
    """Where the image lies in an input: rows [top, top + height) and columns [left, left + width)."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class Letterbox:
    """Where the padding is and what colour it has."""

    position: choices.PadPosition = "end"
    """Of the padding: `end`, right or bottom; `center`, on both sides of the image."""
    rgb: tuple[int, int, int] = IMAGENET_MEAN_RGB

    def __post_init__(self) -> None:
        if self.position not in choices.PAD_POSITIONS:
            raise unknown_name("position of padding", self.position, choices.PAD_POSITIONS)
        if [type(level) for level in self.rgb] != [int] * 3 or not 0 <= min(self.rgb) <= max(self.rgb) <= 255:
            raise BadInput(f"the colour of padding is three levels from 0 to 255, got {self.rgb!r}")

    def content(self, crop_hw: tuple[int, int], size: SizePx) -> Content:
        """Return where a crop lies in an input."""
        top, left, height, width = self.contents(np.array([crop_hw], np.int64), size)[0].tolist()
        return Content(top, left, height, width)

    def contents(self, crops_hw: NDArray[np.integer], size: SizePx) -> Int64s:
        """Return (n, 4) top, left, height, width in the input of crops of heights and widths (n, 2)."""
        wanted_hw = np.array(size_hw(size), np.int64)
        crops_hw = np.asarray(crops_hw, np.int64)
        fills = crops_hw * wanted_hw[::-1]  # h·W and w·H: the side of the larger product fills its input's
        is_tall = (fills[:, 0] >= fills[:, 1])[:, None]
        longer, reach = np.where(is_tall, crops_hw[:, :1], crops_hw[:, 1:]), np.where(is_tall, wanted_hw[0], wanted_hw[1])
        content_hw = np.minimum(np.maximum(1, (2 * crops_hw * reach + longer) // (2 * longer)), wanted_hw)
        before = (wanted_hw - content_hw) // 2 if self.position == "center" else np.zeros_like(content_hw)
        return np.concatenate([before, content_hw], axis=1)

    def shares(self, crops_hw: NDArray[np.integer], size: SizePx) -> NDArray[np.float64]:
        """Return (n, 4) top, left, bottom, right of crops in an input, as shares of its height and width."""
        content, sides = self.contents(crops_hw, size), np.array(size_hw(size), np.float64)
        return np.concatenate([content[:, :2] / sides, (content[:, :2] + content[:, 2:]) / sides], axis=1)


def cells_with_content(contents: Int64s, size: SizePx, grid: tuple[int, int]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which rows (n, H) and which columns (n, W) of a grid over the input have any of the image in them.

    A token at (y, x) lies wholly in the padding unless both its row and its column do not.
    """
    rows, columns = (
        _touched(contents[:, axis], contents[:, axis] + contents[:, 2 + axis], side, cells)
        for axis, (side, cells) in enumerate(zip(size_hw(size), grid, strict=True))
    )
    return rows, columns


def _touched(begin: Int64s, end: Int64s, side: int, cells: int) -> NDArray[np.bool_]:
    edges = np.arange(cells + 1, dtype=np.int64) * side  # in 1/cells of a pixel, so that no border is rounded
    touched: NDArray[np.bool_] = (edges[None, :-1] < cells * end[:, None]) & (edges[None, 1:] > cells * begin[:, None])
    return touched
