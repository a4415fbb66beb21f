"""Cosine similarity of one patch with every other of its photo, for several encoders, as heat maps.

The patch is named in the grid of the first encoder, or picked by a reader of the page; the others take the token that covers its centre.
For the page every map is drawn beforehand: one sheet an encoder, in which tile (row, column) is the map of that patch, so that a choice
needs neither a script nor a network. One colour scale an encoder and photo: from the 2nd percentile of its similarities to 1, printed
beside it, because what counts as "similar" differs between encoders. Grids finer than MOST_PICKED are picked at MOST_PICKED a side.
Axes: H W token grid, D channels; R C the grid that is picked from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...storage.core.errors import BadInput
from .inline_images import Rgb
from .pca import foreground

MOST_PICKED = 14
LEVELS = 48
# viridis at eleven points (Smith and van der Walt, CC0), interpolated between: even steps to the eye, legible without colour vision
_VIRIDIS = [
    (68, 1, 84), (72, 36, 117), (65, 68, 135), (53, 95, 141), (42, 120, 142), (33, 145, 140), (34, 168, 132), (68, 191, 112),
    (122, 209, 81), (189, 223, 38), (253, 231, 37),
]  # fmt: skip
PALETTE: Rgb = (
    np.round([np.interp(np.linspace(0, 10, LEVELS), np.arange(11), channel) for channel in zip(*_VIRIDIS, strict=True)]).astype(np.uint8).T
)

Floats = NDArray[np.float32]
GridCell = tuple[int, int]  # (row, column), or the size (rows, columns) of a grid


@dataclass(frozen=True)
class HeatSheet:
    """Every map of one encoder for one photo: `codes` (R·H, C·W) palette entries, tile by tile; `low` is the palette's first cosine."""

    codes: NDArray[np.uint8]
    grid: GridCell
    low: float


@dataclass(frozen=True)
class SimilarityPicture:
    """One photo of the page as encoders see it, the grid that is picked from, the first choice, and {encoder's label: sheet}."""

    label: str
    image: Rgb
    picked_from: GridCell
    chosen: GridCell
    sheets: dict[str, HeatSheet]


def cosines(patch_HWD: Floats, cell: GridCell) -> Floats:
    """Return (H, W): the cosine of the token at `cell` with every token; raises BadInput for a cell outside of the grid."""
    rows, columns = patch_HWD.shape[:2]
    if not (0 <= cell[0] < rows and 0 <= cell[1] < columns):
        raise BadInput(f"patch {cell[0]},{cell[1]} is outside of the grid: rows 0 to {rows - 1}, columns 0 to {columns - 1}")
    unit_HWD = patch_HWD / np.maximum(np.linalg.norm(patch_HWD, axis=-1, keepdims=True), 1e-12)
    cosine_HW: Floats = unit_HWD @ unit_HWD[cell]
    return cosine_HW


def same_cell(cell: GridCell, grid: GridCell, other: GridCell) -> GridCell:
    """Return the token of the grid `other` that covers the centre of the token `cell` of `grid`."""
    return int((cell[0] + 0.5) * other[0] / grid[0]), int((cell[1] + 0.5) * other[1] / grid[1])


def levels(cosine: Floats, low: float) -> NDArray[np.uint8]:
    """Return palette entries of cosines: `low` and less is the first, 1 the last."""
    share = (cosine - low) / max(1.0 - low, 1e-6)
    return np.round(share.clip(0, 1) * (LEVELS - 1)).astype(np.uint8)


def heat_sheet(patch_HWD: Floats, picked_from: GridCell) -> HeatSheet:
    """Return the maps of every cell of the grid `picked_from`, (R, C)."""
    rows, columns, grid = *picked_from, (patch_HWD.shape[0], patch_HWD.shape[1])
    unit_ND = (patch_HWD / np.maximum(np.linalg.norm(patch_HWD, axis=-1, keepdims=True), 1e-12)).reshape(-1, patch_HWD.shape[-1])
    cells = [same_cell((row, column), picked_from, grid) for row in range(rows) for column in range(columns)]
    token_indices = np.array([row * grid[1] + column for row, column in cells])
    maps_RCHW = (unit_ND[token_indices] @ unit_ND.T).reshape(rows, columns, *grid)
    low = float(np.percentile(maps_RCHW, 2))
    tiled = levels(maps_RCHW, low).transpose(0, 2, 1, 3).reshape(rows * grid[0], columns * grid[1])
    return HeatSheet(np.ascontiguousarray(tiled), grid, low)


def pickable(grids: Sequence[GridCell]) -> GridCell:
    """Return the grid a reader picks from: the coarsest of the encoders', at most MOST_PICKED a side."""
    return min(MOST_PICKED, *(rows for rows, _ in grids)), min(MOST_PICKED, *(columns for _, columns in grids))


def example_cell(patch_HWD: Floats, picked_from: GridCell) -> GridCell:
    """Return the cell in the foreground whose map has the greatest spread: a first choice that shows something."""
    sheet, front_HW = heat_sheet(patch_HWD, picked_from), foreground(patch_HWD)
    (rows, columns), (height, width) = picked_from, sheet.grid
    spread_RC = sheet.codes.reshape(rows, height, columns, width).astype(np.float32).std(axis=(1, 3))
    cells = [(row, column) for row in range(rows) for column in range(columns)]
    return max(cells, key=lambda cell: (bool(front_HW[same_cell(cell, picked_from, sheet.grid)]), spread_RC[cell]))


def similarity_pictures(labels: Sequence[str], images: Sequence[Rgb], tokens: Mapping[str, Floats]) -> list[SimilarityPicture]:
    """Return a picture a photo; `images` and `tokens` as `patch_tokens` gives them.

    The first choice is an `example_cell` of the last encoder.
    """
    picked_from = pickable([patch.shape[1:3] for patch in tokens.values()])
    last = list(tokens.values())[-1]
    return [
        SimilarityPicture(
            label, image, picked_from, example_cell(last[n], picked_from),
            {label: heat_sheet(patch[n], picked_from) for label, patch in tokens.items()},
        )
        for n, (label, image) in enumerate(zip(labels, images, strict=True))
    ]  # fmt: skip


def named_maps(tokens: Mapping[str, Floats], photo: int, cell: GridCell) -> dict[str, tuple[Rgb, float]]:
    """Return {encoder's label: (heat map (H, W, 3), the scale's low end)} for a patch named in the first encoder's grid."""
    first = next(iter(tokens.values()))
    rows, columns = first.shape[1:3]
    cosines(first[photo], cell)  # raises for a cell outside, before any drawing
    maps = {}
    for label, patch in tokens.items():
        height, width = patch.shape[1:3]
        cosine = cosines(patch[photo], same_cell(cell, (rows, columns), (height, width)))
        low = float(np.percentile(cosine, 2))
        maps[label] = PALETTE[levels(cosine, low)], low
    return maps
