"""Stored patch tokens back to numbers on the device: the torch twin of `storage.codec.decode`, and of `Statistics.normalize_…`.

Codes and scales cross to the device as they are stored and become fp32 there: an eighth of the bytes for int4, a quarter for int8. Axes:
B images, H × W grid, D channels, G groups of channels.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from ...storage.features.codec import INT4_GROUP, INT8_SQUARE

_VIEWS_AT_ONCE = 8


def decode_patch(codes: Tensor, scale: Tensor | None, codec: str) -> Tensor:
    """Normalised fp32 tokens (B, H, W, D), or (B, T, D), from codes (…, D or, for int4, D / 2) and their scales."""
    if scale is None:
        return codes.float()
    return (_decode_int4 if codec == "int4" else _decode_int8)(codes, scale.float())


def _decode_int8(codes: Tensor, scale_BHWG: Tensor) -> Tensor:
    """scale × (code / 127)·|code / 127|."""
    values = codes.float()
    squares = (values * values.abs()).reshape(*scale_BHWG.shape, -1)
    return (squares * (scale_BHWG / INT8_SQUARE)[..., None]).flatten(-2)


def _decode_int4(codes: Tensor, scale_BHWG2: Tensor) -> Tensor:
    """minimum + code × scale; the even channel stands in the low half of its byte."""
    pairs = torch.stack([codes & 15, codes >> 4], dim=-1).float()
    groups = pairs.reshape(*scale_BHWG2.shape[:-1], INT4_GROUP)
    return (groups * scale_BHWG2[..., 0, None] + scale_BHWG2[..., 1, None]).flatten(-2)


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
