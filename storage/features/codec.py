"""How patch tokens are stored: fp32, fp16, int8 codes with a scale for 128 channels, or int4 codes with a scale and a minimum for 64.

int8 is the default: 0.508 of fp16's bytes. Its codes stand for signed squares, value = scale × (code / 127)·|code / 127|: small values, of
which tokens mostly consist, get finer steps than the few large ones. Measured on EfficientNet-Lite0's and ResNet-50's tokens, whose largest
coordinate is 8 to 20 times their own deviation: cosine 0.99997, 1st percentile 0.99995; with one linear scale a token it was 0.9996 and
0.9988. int4 is 3.5 times smaller than fp16, at a cosine of 0.996 on normal tokens and 0.991 on EfficientNet-Lite0's. fp16 is the reference,
fp32 exists to prove that a cached run equals a live one. Lossless compression is not offered: measured on dense tokens it gains 9–17 % of
bytes and costs five times the read rate.
Everything works view by view, so that its intermediate results stay in the processor's cache.
Axes: n views, H × W grid, D channels, G groups of channels; T tokens in the place of H × W where only some are stored.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..core.errors import BadInput, unknown_name

CODECS: dict[str, np.dtype[Any]] = {
    "fp32": np.dtype(np.float32),
    "fp16": np.dtype(np.float16),
    "int8": np.dtype(np.int8),
    "int4": np.dtype(np.uint8),  # two codes a byte: the even channel in the low half
}
INT8_GROUP, INT4_GROUP = 128, 64
INT8_SQUARE = 127**2  # the largest |code|² of int8
_INT8_MAX, _INT4_MAX = 127.0, 15.0
_SIGN = np.uint32(1 << 31)
_SMALLEST_SCALE, _LARGEST_SCALE = np.float16(2.0**-24), np.finfo(np.float16).max
# Look-up tables: numpy's own conversion of fp16 takes twice as long, and unpacking with shifts three times as long.
_HALVES = np.arange(65_536, dtype=np.uint16).view(np.float16).astype(np.float32)
_PAIRS = np.stack([np.arange(256) % 16, np.arange(256) // 16], axis=1).astype(np.float32).view(np.uint64)[:, 0]

Float32s = NDArray[np.float32]


class Encoded(NamedTuple):
    """Stored patch tokens: codes (n, H, W, D), or (n, H, W, D / 2) for int4; scale fp16 (n, H, W, G), or (n, H, W, G, 2) for int4."""

    codes: NDArray[np.generic]
    scale: NDArray[np.float16] | None


def code_dtype(codec: str) -> np.dtype[Any]:
    """The element type of a codec's codes; raises `BadInput` that lists the known codecs."""
    if codec not in CODECS:
        raise unknown_name("codec", codec, CODECS)
    return CODECS[codec]


def has_scale(codec: str) -> bool:
    """Whether the codec keeps scales beside its codes."""
    return code_dtype(codec).kind in "iu"


def int8_groups(dim: int) -> int:
    """How many scales a token of `dim` channels has: one for 128 channels, or one in all where the width is no multiple of that."""
    return dim // INT8_GROUP if dim % INT8_GROUP == 0 else 1


def stored_shapes(codec: str, tokens: tuple[int, ...], dim: int) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """Shapes of one view's codes and scales (None when there are none), `tokens` being (H, W) or (T,).

    Raises `BadInput` for a width that the codec cannot store.
    """
    if not has_scale(codec):
        return (*tokens, dim), None
    if codec == "int8":
        return (*tokens, dim), (*tokens, int8_groups(dim))
    if dim % INT4_GROUP:
        raise BadInput(f"codec int4 stores groups of {INT4_GROUP} channels, which {dim} channels are not; use int8")
    return (*tokens, dim // 2), (*tokens, dim // INT4_GROUP, 2)


def _rounded_up(wanted: Float32s) -> NDArray[np.float16]:
    """The smallest fp16 scales that are not below the wanted ones, so that no code has to be clipped and half a step bounds the error."""
    scale = np.maximum(wanted.astype(np.float16), _SMALLEST_SCALE)
    rounded: NDArray[np.float16] = np.where(scale.astype(np.float32) < wanted, np.nextafter(scale, _LARGEST_SCALE), scale)
    return rounded


def _encode_int8(view_HWD: Float32s, codes: NDArray[Any], scale: NDArray[np.float16], scratch: Float32s) -> None:
    groups = scratch.reshape(*scale.shape, -1)
    np.abs(view_HWD, out=scratch)
    scale[:] = _rounded_up(_halved(groups, np.maximum))
    groups *= np.float32(INT8_SQUARE) / scale.astype(np.float32)[..., None]
    np.rint(np.sqrt(scratch, out=scratch), out=scratch)
    bits = scratch.view(np.uint32)  # np.copysign takes three times as long
    bits |= view_HWD.view(np.uint32) & _SIGN
    np.copyto(codes, scratch, casting="unsafe")


def _halved(groups: Float32s, pick: np.ufunc) -> Float32s:
    """The minimum or maximum of each group by halving it: faster than a reduction over so short an axis."""
    while groups.shape[-1] % 2 == 0:
        half = groups.shape[-1] // 2
        groups = pick(groups[..., :half], groups[..., half:])
    least_or_most: Float32s = groups[..., 0] if groups.shape[-1] == 1 else pick.reduce(groups, axis=-1)
    return least_or_most


def _encode_int4(view_HWD: Float32s, codes: NDArray[Any], scale: NDArray[np.float16], scratch: Float32s) -> None:
    groups = view_HWD.reshape(*scale.shape[:-1], INT4_GROUP)
    low, high = _halved(groups, np.minimum), _halved(groups, np.maximum)
    floor = low.astype(np.float16)
    floor = np.where(floor.astype(np.float32) > low, np.nextafter(floor, np.float16(-np.inf)), floor)
    scale[..., 1] = floor
    scale[..., 0] = _rounded_up((high - floor.astype(np.float32)) / np.float32(_INT4_MAX))
    steps = scratch.reshape(groups.shape)
    np.subtract(groups, floor.astype(np.float32)[..., None], out=steps)
    steps *= np.float32(1) / scale[..., 0].astype(np.float32)[..., None]
    np.rint(steps, out=steps)
    whole = scratch.astype(np.uint8).view("<u2")  # pairs of neighbouring codes: 0xBA holds a, b
    np.copyto(codes, (whole & np.uint16(15)) | (whole >> np.uint16(4)), casting="unsafe")


def encode(patch_nHWD: Float32s, codec: str) -> Encoded:
    """Encode normalised patch tokens (n, H, W, D) or (n, T, D); values must be finite and within fp16 for every codec but fp32."""
    dtype = code_dtype(codec)
    if not has_scale(codec):
        return Encoded(patch_nHWD.astype(dtype, copy=False), None)
    count, *tokens, dim = patch_nHWD.shape
    code_shape, scale_shape = stored_shapes(codec, tuple(tokens), dim)
    assert scale_shape is not None
    codes, scale = np.empty((count, *code_shape), dtype), np.empty((count, *scale_shape), np.float16)
    scratch = np.empty(patch_nHWD.shape[1:], np.float32)
    encode_view = _encode_int8 if codec == "int8" else _encode_int4
    for n in range(count):
        encode_view(np.ascontiguousarray(patch_nHWD[n], np.float32), codes[n], scale[n], scratch)
    return Encoded(codes, scale)


def decode(codes: NDArray[np.generic], scale: NDArray[np.float16] | None, codec: str, out: Float32s | None = None) -> Float32s:
    """Normalised patch tokens (n, H, W, D) or (n, T, D) fp32 from their stored form, into `out` when given."""
    dtype = code_dtype(codec)
    if codes.dtype != dtype or (scale is not None) != has_scale(codec):
        raise ValueError(f"codec {codec!r} stores {dtype}{' with a scale' if has_scale(codec) else ''}, got {codes.dtype}")
    dim = codes.shape[-1] * (2 if codec == "int4" else 1)
    values = np.empty((*codes.shape[:-1], dim), np.float32) if out is None else out
    for n in range(len(codes)):
        if codec == "fp16":
            np.take(_HALVES, codes[n].view(np.uint16), out=values[n], mode="clip")
        elif scale is None:
            values[n] = codes[n]
        elif codec == "int8":
            _decode_int8(codes[n], scale[n].astype(np.float32), values[n])
        else:
            _decode_int4(codes[n], scale[n].astype(np.float32), values[n])
    return values


def _decode_int8(codes: NDArray[Any], scale_HWG: Float32s, out_HWD: Float32s) -> None:
    """scale × (code / 127)·|code / 127|."""
    squares = codes.astype(np.int16)
    squares *= np.abs(squares)
    shape = (*scale_HWG.shape, -1)
    np.multiply(squares.reshape(shape), (scale_HWG / np.float32(INT8_SQUARE))[..., None], out=out_HWD.reshape(shape), dtype=np.float32)


def _decode_int4(codes: NDArray[Any], scale_HWG2: Float32s, out_HWD: Float32s) -> None:
    """value = minimum + code × scale; both codes of a byte come from one table look-up."""
    groups = np.take(_PAIRS, codes, mode="clip").view(np.float32).reshape(*scale_HWG2.shape[:-1], INT4_GROUP)
    np.multiply(groups, scale_HWG2[..., 0, None], out=groups)
    np.add(groups, scale_HWG2[..., 1, None], out=out_HWD.reshape(groups.shape))
