"""Sample the patch tokens that a feature set stores when it stores only some: recorded positions, drawn like views.

T of a view's N = H × W tokens, uniformly and without replacement, so that a loss over them is unbiased for the loss over all. Positions are
a pure function of (the views' seed, image id, k, N, T): any machine draws the same ones in any order, and the positions of a smaller T are
among those of a larger. The teacher is not part of the key: all sets over the same views with the same grid and T store the same positions,
so that their tokens, codecs and precisions can be compared one to one. The price: the sampling noise of several teachers' losses does not
average out within a step. Stored positions are authoritative; a redraw only checks them.
Of letterboxed views positions are drawn among the tokens that see any of the image, because those of the padding teach nothing. Where an
image has fewer than T, all of them are stored, and tokens of the padding, drawn by the same rule, fill the row.
Axes: n views, T positions, N cells of the grid, D channels.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_CELLS = 1 << 16  # of a grid, so that a place fits uint16

Positions = NDArray[np.uint16]


def draw_positions(
    seed: int, image_ids: Sequence[str], views_per_image: int, cells: int, count: int, taught_nN: NDArray[np.bool_] | None = None
) -> Positions:
    """Return positions (n, count) in a grid of `cells`, ascending in each row: row i·K + k is view k of image i.

    Those of `taught_nN` come first where it is given, whatever was drawn.
    """
    drawn = np.empty((len(image_ids) * views_per_image, count), np.uint16)
    for row in range(len(drawn)):
        image, k = divmod(row, views_per_image)
        key = hashlib.sha256(f"positions\0{seed}\0{k}\0{image_ids[image]}".encode()).digest()[:16]
        words = np.asarray(np.random.Philox(key=int.from_bytes(key, "little")).random_raw(cells), np.uint64)
        order = np.argsort(words, kind="stable")
        if taught_nN is not None:
            taught = taught_nN[row, order]
            order = np.concatenate([order[taught], order[~taught]])
        drawn[row] = np.sort(order[:count])
    return drawn


def take_positions(patch_nHWD: NDArray[Any], positions_nT: Positions) -> NDArray[Any]:
    """Return the tokens (n, T, D) at some positions of each whole grid."""
    flat_nND = patch_nHWD.reshape(len(patch_nHWD), -1, patch_nHWD.shape[-1])
    return np.take_along_axis(flat_nND, positions_nT.astype(np.int64)[..., None], axis=1)


def first_bad_row(positions_nT: Positions, cells: int) -> int | None:
    """Return the first row whose positions do not ascend within the grid, None when all do."""
    positions_int64 = positions_nT.astype(np.int64)
    bad = (positions_int64 >= cells).any(axis=1) | (np.diff(positions_int64, axis=1) <= 0).any(axis=1)
    return int(np.argmax(bad)) if bad.any() else None
