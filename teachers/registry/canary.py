"""Eight images that never change, and a teacher's tokens of them: proof that two processes run the same teacher.

The images come from a counter-based generator's raw bits, so no library version or machine changes them. A record keeps the
class token and two patch tokens (a corner and the middle, so that a transposed grid shows). Tokens are compared by cosine,
not by digest, because another CPU or batch size rounds differently; the floor of 0.9999 is far above what wrong weights, a
wrong channel order or train mode give, and above bf16's noise only for the same precision.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ...storage.core.errors import CacheMismatch
from ...storage.views.input_size import SizePx, size_hw
from .teacher import Teacher

IMAGES = 8
MIN_COSINE = 0.9999
_COARSE = 8  # blocks on a side: structure that survives a convolutional stem
Features = dict[str, np.ndarray[Any, np.dtype[np.float32]]]


def canary_images(n: int, size_px: SizePx) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return (n, height, width, 3) uint8: random blocks of colour, a pure function of the index and the size."""
    words = _COARSE * _COARSE * 3 // 8
    blocks = np.stack([np.random.Philox(key=index).random_raw(words).astype("<u8").view(np.uint8) for index in range(n)]).reshape(
        n, _COARSE, _COARSE, 3
    )
    rows, columns = (np.arange(side) * _COARSE // side for side in size_hw(size_px))
    return blocks[:, rows][:, :, columns]


def canary(teacher: Teacher, n: int = IMAGES) -> Features:
    """Return the tokens of the first `n` canary images: `cls` (n, D) unless there is none, `corner` and `middle` (n, D)."""
    pixels_BHWC = torch.from_numpy(canary_images(n, teacher.spec.preprocessing.size_px))
    cls_BD, patch_BHWD = teacher(pixels_BHWC)
    rows, columns = patch_BHWD.shape[1:3]
    parts = {"corner": patch_BHWD[:, 0, columns - 1], "middle": patch_BHWD[:, rows // 2, columns // 2]}
    if cls_BD is not None:
        parts["cls"] = cls_BD
    return {name: part.cpu().numpy() for name, part in parts.items()}


def compare(recorded: Mapping[str, np.ndarray[Any, Any]], now: Mapping[str, np.ndarray[Any, Any]]) -> float:
    """Return the least cosine over all canary tokens; raises CacheMismatch below MIN_COSINE, or when the shapes differ."""
    shapes = [{name: part.shape for name, part in features.items()} for features in (recorded, now)]
    if shapes[0] != shapes[1]:
        raise CacheMismatch(f"the teacher gives other tokens than were recorded: {shapes[1]}, recorded {shapes[0]}")
    least = 1.0
    for name in sorted(recorded):
        cosines = _cosines(recorded[name], now[name])
        worst = int(np.argmin(np.where(np.isnan(cosines), -1.0, cosines)))
        if not cosines[worst] >= MIN_COSINE:
            raise CacheMismatch(
                f"the teacher is not the one that was recorded: its {name} token of canary image {worst} has cosine "
                f"{cosines[worst]:.6f} to the recorded one, expected at least {MIN_COSINE}. Weights, preprocessing, "
                "precision or a library differ; use the teacher of the record, or extract a new feature set."
            )
        least = min(least, float(cosines[worst]))
    return least


def _cosines(left: np.ndarray[Any, Any], right: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    a, b = left.astype(np.float64), right.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines: np.ndarray[Any, Any] = np.where(norms > 0, (a * b).sum(axis=1) / np.where(norms > 0, norms, 1), np.nan)
    return cosines
