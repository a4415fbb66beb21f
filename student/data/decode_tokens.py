"""Decode stored patch tokens on the device with torch: a codec's `decode_tensors`, and `Statistics.normalize_…` in torch.

Codes and scales cross to the device as they are stored and become fp32 there: an eighth of the bytes for int4, a quarter for int8. Axes:
B images, H × W grid, D channels.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from ...storage.features.codec import get_codec

_VIEWS_AT_ONCE = 8


def decode_patch(codes: Tensor, scale: Tensor | None, codec: str) -> Tensor:
    """Return normalised fp32 tokens (B, H, W, D), or (B, T, D), from a batch's codes and scales as they are stored."""
    tokens: Tensor = get_codec(codec).decode_tensors(codes, None if scale is None else scale.float())
    return tokens


def normalised(tokens: Tensor, moments: Mapping[str, Tensor], kind: str) -> Tensor:
    """Normalise tokens of kind `cls` or `patch`: (x − mean) / std, or W (x − mean) where the statistics are PHI-S."""
    centred = tokens - moments[f"{kind}_mean"]
    matrix = moments.get(f"{kind}_matrix")
    return centred / moments[f"{kind}_std"] if matrix is None else centred @ matrix.T


def mean_patch(codes: Tensor, scale: Tensor | None, codec: str) -> Tensor:
    """Return the mean normalised patch token (B, D) of each view, fp32.

    A few views at a time: their values stay in the CPU's cache, which is several times as fast as a whole batch at once.
    """
    parts = range(0, len(codes), _VIEWS_AT_ONCE)
    scales = [None if scale is None else scale[start : start + _VIEWS_AT_ONCE] for start in parts]
    means = [
        decode_patch(codes[start : start + _VIEWS_AT_ONCE], part_scale, codec).flatten(1, -2).mean(dim=1)
        for start, part_scale in zip(parts, scales, strict=True)
    ]
    return torch.cat(means)
