"""Semantic correspondence without training: a keypoint of one image is found in another by the cosine of patch tokens (SPair-71k).

Both images are resized to one input, a square by the paper's protocol, their token maps are upsampled bilinearly to its pixels, and the
answer for a keypoint is the pixel with the highest cosine. It is right when it lies within α times the longer side of the object's box in
the second image (PCK@α, α = 0.1). PCK is given a category, over keypoints, with its mean over categories, and also as the mean over pairs
of images, because publications differ.

The upsampled map of a ViT-B (768 × 512 × 512) is never made: upsampling is linear, so dot products are upsampled instead, and the norms of
upsampled tokens come from a few channels at a time. Equal to upsampling the tokens, up to rounding. Axes: H × W grid, D channels,
K keypoints, Y × X pixels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ...storage.views.input_size import SizePx, size_hw

ALPHA = 0.1
_CHANNELS_AT_ONCE = 64

Points = NDArray[np.float64]


def sample_tokens(patch_HWD: Tensor, points_K2: Tensor, size_px: SizePx) -> Tensor:
    """Return the unit-length tokens (K, D) of the upsampled map at pixels (x, y) of an input."""
    # Pixel (x, y) has its centre at x + 0.5; grid_sample's −1 and 1 are the outer edges of the map. Beyond the outermost centres, as in
    # bilinear upsampling, the border's own token counts.
    sides_2 = torch.tensor(size_hw(size_px)[::-1], dtype=points_K2.dtype, device=points_K2.device)
    coordinates = (2 * (points_K2.round().clamp(torch.zeros_like(sides_2), sides_2 - 1) + 0.5) / sides_2 - 1).float()
    sampled = functional.grid_sample(
        patch_HWD.permute(2, 0, 1)[None], coordinates[None, None], mode="bilinear", padding_mode="border", align_corners=False
    )
    return functional.normalize(sampled[0, :, 0].t(), dim=1)


def upsampled_norms(patch_HWD: Tensor, size_px: SizePx) -> Tensor:
    """Return the lengths (Y, X) of the upsampled tokens."""
    squares = torch.zeros(size_hw(size_px), device=patch_HWD.device)
    for channels_cHW in torch.split(patch_HWD.permute(2, 0, 1), _CHANNELS_AT_ONCE):
        squares += functional.interpolate(channels_cHW[None], size_hw(size_px), mode="bilinear")[0].square().sum(dim=0)
    return squares.sqrt().clamp_min(1e-12)


def match_keypoints(source_HWD: Tensor, target_HWD: Tensor, points_K2: Points, size_px: SizePx) -> Points:
    """Return the pixels (x, y) of the target's input that answer the keypoints of the source's, (K, 2)."""
    queries_KD = sample_tokens(source_HWD, torch.from_numpy(points_K2).to(source_HWD.device), size_px)
    dots_KHW = torch.einsum("kd,hwd->khw", queries_KD, target_HWD)
    lengths, answers = upsampled_norms(target_HWD, size_px), []
    for dots_HW in dots_KHW:  # one keypoint at a time: Y × X numbers, whatever K is
        cosine_YX = functional.interpolate(dots_HW[None, None], size_hw(size_px), mode="bilinear")[0, 0] / lengths
        best, width = int(cosine_YX.argmax()), cosine_YX.shape[1]
        answers.append((best % width, best // width))
    return np.array(answers, np.float64).reshape(-1, 2)


def correct_keypoints(found_K2: Points, truth_K2: Points, longer_side_px: float, alpha: float = ALPHA) -> NDArray[np.bool_]:
    """Return which answers lie within `alpha` times the longer side of the box (K,); all in pixels of the second image."""
    right: NDArray[np.bool_] = np.linalg.norm(found_K2 - truth_K2, axis=1) <= alpha * longer_side_px
    return right


def summarize_pck(by_category: Mapping[str, Sequence[NDArray[np.bool_]]]) -> dict[str, Any]:
    """Return PCK in percent: by category over keypoints, their mean, over all keypoints, and the mean over pairs."""
    pairs = [pair for several in by_category.values() for pair in several]
    categories = {name: 100 * float(np.concatenate(several).mean()) for name, several in sorted(by_category.items())}
    return {
        "pck": float(np.mean(list(categories.values()))),
        "pck_of_all_keypoints": 100 * float(np.concatenate(pairs).mean()),
        "pck_of_pairs": 100 * float(np.mean([pair.mean() for pair in pairs])),
        "categories": categories,
    }
