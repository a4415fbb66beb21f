"""Find tokens that cannot be trained on before they are stored, and name the image.

These are tokens that are not finite, that exceed fp16, or that are constant, which no working teacher gives.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .codec import get_codec


def first_nonfinite(values: NDArray[Any], present: NDArray[np.bool_]) -> int | None:
    """Return the first present row with a NaN or an infinity, None when there is none.

    Integer arithmetic on the bits, a row at a time: `np.isfinite` takes eight times as long on fp16, half as long as writing the shard.
    """
    if values.dtype.kind != "f":
        return None
    bits = np.dtype(f"u{values.dtype.itemsize}")
    exponent = bits.type(0x7C00 if values.dtype.itemsize == 2 else 0x7F800000)
    rows = values.reshape(len(values), -1).view(bits)
    scratch = np.empty(rows.shape[1], bits)
    for row in np.flatnonzero(present).tolist():
        np.bitwise_and(rows[row], exponent, out=scratch)
        if scratch.max() == exponent:
            return int(row)
    return None


def refuse_tokens(
    cls_D: NDArray[np.floating] | None, patch_HWD: NDArray[np.floating], codec: str,
    layers: Mapping[int, NDArray[np.floating]] = MappingProxyType({}),
) -> str | None:  # fmt: skip
    """Return why one view's normalised tokens must not be stored, None when they may: not finite, beyond fp16, or constant."""
    largest = get_codec(codec).largest
    of_layers = [(f"patch tokens of block {layer}", values) for layer, values in layers.items()]
    for name, values in (("class token", cls_D), ("patch tokens", patch_HWD), *of_layers):
        if values is None:
            continue
        low, high = float(values.min()), float(values.max())
        if not np.isfinite(low) or not np.isfinite(high):
            return f"the {name} is not finite"
        if max(-low, high) > largest:
            return f"the {name} reaches {max(-low, high):,.0f}, more than the {largest:,.0f} that codec {codec} holds"
        if low == high:
            return f"the {name} is constant ({low:g}), which no working teacher gives"
    return None
