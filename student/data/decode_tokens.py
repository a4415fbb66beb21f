"""Stored patch tokens back to numbers on the device: a codec's twin at work, and the twin of `Statistics.normalize_…`.

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
    """Tokens of kind `cls` or `patch` in the normalised space: (x − mean) / std, or W (x − mean) where the statistics are PHI-S."""
    centred = tokens - moments[f"{kind}_mean"]
    matrix = moments.get(f"{kind}_matrix")
    return centred / moments[f"{kind}_std"] if matrix is None else centred @ matrix.T


def mean_patch(codes: Tensor, scale: Tensor | None, codec: str) -> Tensor:
    """Mean normalised patch token (B, D) of each view, fp32.

    A few views at a time: their numbers stay in the processor's cache, which is several times as fast as a whole batch at once.
    """
    parts = range(0, len(codes), _VIEWS_AT_ONCE)
    scales = [None if scale is None else scale[start : start + _VIEWS_AT_ONCE] for start in parts]
    found = [
        decode_patch(codes[start : start + _VIEWS_AT_ONCE], own, codec).flatten(1, -2).mean(dim=1)
        for start, own in zip(parts, scales, strict=True)
    ]
    return torch.cat(found)
