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
from .patch_tokens import Photo
from .pca import foreground

MOST_PICKED = 14
LEVELS = 48
# viridis at eleven places (Smith and van der Walt, CC0), interpolated between: even steps to the eye, legible without colour vision
_VIRIDIS = [
    (68, 1, 84), (72, 36, 117), (65, 68, 135), (53, 95, 141), (42, 120, 142), (33, 145, 140), (34, 168, 132), (68, 191, 112),
    (122, 209, 81), (189, 223, 38), (253, 231, 37),
]  # fmt: skip
PALETTE: Rgb = (
    np.round([np.interp(np.linspace(0, 10, LEVELS), np.arange(11), channel) for channel in zip(*_VIRIDIS, strict=True)]).astype(np.uint8).T
)

Floats = NDArray[np.float32]
Place = tuple[int, int]


@dataclass(frozen=True)
class HeatSheet:
    """Every map of one encoder for one photo: `codes` (R·H, C·W) palette entries, tile by tile; `low` is the palette's first cosine."""

    codes: NDArray[np.uint8]
    grid: Place
    low: float


@dataclass(frozen=True)
class SimilarityPicture:
    """One photo of the page: its square, the grid that is picked from, the first choice, and {encoder's label: sheet}."""

    label: str
    image: Rgb
    picked_from: Place
    chosen: Place
    sheets: dict[str, HeatSheet]


def cosines(patch_HWD: Floats, place: Place) -> Floats:
    """Return (H, W): the cosine of the token at `place` with every token; raises BadInput for a place outside of the grid."""
    rows, columns = patch_HWD.shape[:2]
    if not (0 <= place[0] < rows and 0 <= place[1] < columns):
        raise BadInput(f"patch {place[0]},{place[1]} is outside of the grid: rows 0 to {rows - 1}, columns 0 to {columns - 1}")
    unit_HWD = patch_HWD / np.maximum(np.linalg.norm(patch_HWD, axis=-1, keepdims=True), 1e-12)
    found: Floats = unit_HWD @ unit_HWD[place]
    return found


def same_place(place: Place, grid: Place, other: Place) -> Place:
    """Return the token of the grid `other` that covers the centre of the token `place` of `grid`."""
    return int((place[0] + 0.5) * other[0] / grid[0]), int((place[1] + 0.5) * other[1] / grid[1])


def levels(cosine: Floats, low: float) -> NDArray[np.uint8]:
    """Return palette entries of cosines: `low` and less is the first, 1 the last."""
    share = (cosine - low) / max(1.0 - low, 1e-6)
    return np.round(share.clip(0, 1) * (LEVELS - 1)).astype(np.uint8)


def heat_sheet(patch_HWD: Floats, picked_from: Place) -> HeatSheet:
    """Return the maps of every place of the grid `picked_from`, (R, C)."""
    rows, columns, grid = *picked_from, (patch_HWD.shape[0], patch_HWD.shape[1])
    unit_ND = (patch_HWD / np.maximum(np.linalg.norm(patch_HWD, axis=-1, keepdims=True), 1e-12)).reshape(-1, patch_HWD.shape[-1])
    places = [same_place((row, column), picked_from, grid) for row in range(rows) for column in range(columns)]
    wanted = np.array([row * grid[1] + column for row, column in places])
    maps_RCHW = (unit_ND[wanted] @ unit_ND.T).reshape(rows, columns, *grid)
    low = float(np.percentile(maps_RCHW, 2))
    tiled = levels(maps_RCHW, low).transpose(0, 2, 1, 3).reshape(rows * grid[0], columns * grid[1])
    return HeatSheet(np.ascontiguousarray(tiled), grid, low)


def pickable(grids: Sequence[Place]) -> Place:
    """Return the grid a reader picks from: the coarsest of the encoders', at most MOST_PICKED a side."""
    return min(MOST_PICKED, *(rows for rows, _ in grids)), min(MOST_PICKED, *(columns for _, columns in grids))


def telling_place(patch_HWD: Floats, picked_from: Place) -> Place:
    """Return the place in the foreground whose map has the greatest spread: a first choice that shows something."""
    sheet, front_HW = heat_sheet(patch_HWD, picked_from), foreground(patch_HWD)
    (rows, columns), (height, width) = picked_from, sheet.grid
    spread_RC = sheet.codes.reshape(rows, height, columns, width).astype(np.float32).std(axis=(1, 3))
    places = [(row, column) for row in range(rows) for column in range(columns)]
    return max(places, key=lambda place: (bool(front_HW[same_place(place, picked_from, sheet.grid)]), spread_RC[place]))


def similarity_pictures(photos: Sequence[Photo], tokens: Mapping[str, Floats]) -> list[SimilarityPicture]:
    """Return a picture a photo; `tokens` as `patch_tokens` gives them. The first choice is a telling one of the last encoder."""
    picked_from = pickable([patch.shape[1:3] for patch in tokens.values()])
    last = list(tokens.values())[-1]
    return [
        SimilarityPicture(
            photo.label, photo.shown(), picked_from, telling_place(last[n], picked_from),
            {label: heat_sheet(patch[n], picked_from) for label, patch in tokens.items()},
        )
        for n, photo in enumerate(photos)
    ]  # fmt: skip


def named_maps(tokens: Mapping[str, Floats], photo: int, place: Place) -> dict[str, tuple[Rgb, float]]:
    """Return {encoder's label: (heat map (H, W, 3), the scale's low end)} for a patch named in the first encoder's grid."""
    first = next(iter(tokens.values()))
    rows, columns = first.shape[1:3]
    cosines(first[photo], place)  # raises for a place outside, before any drawing
    found = {}
    for label, patch in tokens.items():
        height, width = patch.shape[1:3]
        cosine = cosines(patch[photo], same_place(place, (rows, columns), (height, width)))
        low = float(np.percentile(cosine, 2))
        found[label] = PALETTE[levels(cosine, low)], low
    return found
