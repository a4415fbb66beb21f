"""How patch tokens are stored: a row of `CODECS` for each way, with its encoder, its decoder, the decoder's twin for tensors, its shapes.

int8 is the default: 0.508 of fp16's bytes. Its codes stand for signed squares, value = scale × (code / 127)·|code / 127|: small values, of
which tokens mostly consist, get finer steps than the few large ones. Measured on EfficientNet-Lite0's and ResNet-50's tokens, whose largest
coordinate is 8 to 20 times their own deviation: cosine 0.99997, 1st percentile 0.99995; with one linear scale a token it was 0.9996 and
0.9988. int4 is 3.5 times smaller than fp16, at a cosine of 0.996 on normal tokens and 0.991 on EfficientNet-Lite0's. fp16 is the reference,
fp32 exists to prove that a cached run equals a live one. Lossless compression is not offered: measured on dense tokens it gains 9–17 % of
bytes and costs five times the read rate.
Everything works view by view, so that its intermediate results stay in the processor's cache.
A twin decodes on the device. It uses nothing but the tensors' own methods, so that it stands beside the decoder that it must equal while
storage does without torch; `student.data.codec_contract` compares the two.
Axes: n views, H × W grid, D channels, G groups of channels; T tokens in the place of H × W where only some are stored.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..core import choices
from ..core.errors import BadInput, unknown_name

INT8_GROUP, INT4_GROUP = 128, 64
INT8_SQUARE = 127**2  # the largest |code|² of int8
_INT4_MAX = 15.0
_SIGN = np.uint32(1 << 31)
_SMALLEST_SCALE, _LARGEST_SCALE = np.float16(2.0**-24), np.finfo(np.float16).max
# Look-up tables: numpy's own conversion of fp16 takes twice as long, and unpacking with shifts three times as long.
_HALVES = np.arange(65_536, dtype=np.uint16).view(np.float16).astype(np.float32)
_PAIRS = np.stack([np.arange(256) % 16, np.arange(256) // 16], axis=1).astype(np.float32).view(np.uint64)[:, 0]

Float32s = NDArray[np.float32]
Scales = NDArray[np.float16]


class Encoded(NamedTuple):
    """Stored patch tokens: codes (n, H, W, D), or (n, H, W, D / 2) for int4; scale fp16 (n, H, W, G), or (n, H, W, G, 2) for int4."""

    codes: NDArray[np.generic]
    scale: Scales | None


@dataclass(frozen=True)
class Scaling:
    """The parts of a codec that stores scaled integers."""

    encode_view: Callable[[Float32s, NDArray[Any], Scales, Float32s], None]
    """Fill the codes and the scales of one contiguous view (H, W, D); the last argument is memory of its shape to work in."""
    scale_shape: Callable[[int], tuple[int, ...]]
    """Shape of one token's scales, from its D channels."""
    scale_axes: tuple[str, ...]
    """Names of those axes in the store."""
    attributes: Mapping[str, str]
    """What the arrays of codes and of scales say about them to other Zarr clients."""
    channels_per_code: int = 1
    """How many channels an element of the codes holds."""
    code_axis: str = "channel"
    """Name of the codes' last axis in the store."""
    width_multiple: int = 1
    """D must be a multiple of it."""


@dataclass(frozen=True)
class TokenCodec:
    """A codec for patch tokens: everything that other code asks about it."""

    name: choices.Codec
    """As the command line, recipes and identities have it."""
    about: str
    """For a page's reader, in a few words."""
    code_dtype: np.dtype[Any]
    """Element type of the codes."""
    decode_view: Callable[[NDArray[Any], Any, Float32s], None]
    """Fill one view (H, W, D) fp32 from its codes and its scales as fp32 (None where the codec has none)."""
    decode_tensors: Callable[[Any, Any], Any]
    """The twin: a batch's tensors of codes and of scales as fp32 (or None) become an fp32 tensor (B, H, W, D)."""
    cls_dtype: np.dtype[Any] = field(default_factory=lambda: np.dtype(np.float16))
    """Element type of the class tokens beside such patch tokens."""
    largest: float = float(np.finfo(np.float16).max)
    """The largest magnitude that can be stored."""
    scaling: Scaling | None = None
    """None for a codec that stores floats."""

    def stored_shapes(self, tokens: tuple[int, ...], dim: int) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
        """Return the shapes of one view's codes and scales (None when there are none), `tokens` being (H, W) or (T,).

        Raise `BadInput` for a width that the codec cannot store.
        """
        if self.scaling is None:
            return (*tokens, dim), None
        if dim % self.scaling.width_multiple:
            groups = f"codec {self.name} stores groups of {self.scaling.width_multiple} channels"
            raise BadInput(f"{groups}, which {dim} channels are not; use int8")
        return (*tokens, dim // self.scaling.channels_per_code), (*tokens, *self.scaling.scale_shape(dim))

    def encode(self, patch_nHWD: Float32s) -> Encoded:
        """Encode normalised patch tokens (n, H, W, D) or (n, T, D); values must be finite and at most `largest`."""
        if self.scaling is None:
            return Encoded(patch_nHWD.astype(self.code_dtype, copy=False), None)
        count, *tokens, dim = patch_nHWD.shape
        code_shape, scale_shape = self.stored_shapes(tuple(tokens), dim)
        assert scale_shape is not None
        codes, scale = np.empty((count, *code_shape), self.code_dtype), np.empty((count, *scale_shape), np.float16)
        scratch = np.empty(patch_nHWD.shape[1:], np.float32)
        for n in range(count):
            self.scaling.encode_view(np.ascontiguousarray(patch_nHWD[n], np.float32), codes[n], scale[n], scratch)
        return Encoded(codes, scale)

    def decode(self, codes: NDArray[np.generic], scale: Scales | None, out: Float32s | None = None) -> Float32s:
        """Return normalised patch tokens (n, H, W, D) or (n, T, D) fp32 from their stored form, in `out` when given."""
        scaled = self.scaling is not None
        if codes.dtype != self.code_dtype or (scale is not None) != scaled:
            raise ValueError(f"codec {self.name!r} stores {self.code_dtype}{' with a scale' if scaled else ''}, got {codes.dtype}")
        dim = codes.shape[-1] * (1 if self.scaling is None else self.scaling.channels_per_code)
        values = np.empty((*codes.shape[:-1], dim), np.float32) if out is None else out
        for n in range(len(codes)):
            self.decode_view(codes[n], None if scale is None else scale[n].astype(np.float32), values[n])
        return values


def _round_up_to_fp16(scale_fp32: Float32s) -> Scales:
    """Return the smallest fp16 scales ≥ the given ones: no code is clipped, and half a step bounds the error."""
    scale = np.maximum(scale_fp32.astype(np.float16), _SMALLEST_SCALE)
    rounded: Scales = np.where(scale.astype(np.float32) < scale_fp32, np.nextafter(scale, _LARGEST_SCALE), scale)
    return rounded


def _reduce_groups(groups: Float32s, pick: np.ufunc) -> Float32s:
    """Return the minimum or maximum of each group by repeated halving: faster than a reduction over so short an axis."""
    while groups.shape[-1] % 2 == 0:
        half = groups.shape[-1] // 2
        groups = pick(groups[..., :half], groups[..., half:])
    reduced: Float32s = groups[..., 0] if groups.shape[-1] == 1 else pick.reduce(groups, axis=-1)
    return reduced


def _decode_fp32(codes: NDArray[Any], scale: None, out_HWD: Float32s) -> None:
    out_HWD[...] = codes


def _decode_fp16(codes: NDArray[Any], scale: None, out_HWD: Float32s) -> None:
    np.take(_HALVES, codes.view(np.uint16), out=out_HWD, mode="clip")


def _tensors_as_floats(codes: Any, scale: None) -> Any:
    return codes.float()


def int8_groups(dim: int) -> int:
    """Return how many scales a token of `dim` channels has: one for 128 channels, or one in all where the width is no multiple of that."""
    return dim // INT8_GROUP if dim % INT8_GROUP == 0 else 1


def _encode_int8(view_HWD: Float32s, codes: NDArray[Any], scale: Scales, scratch: Float32s) -> None:
    groups = scratch.reshape(*scale.shape, -1)
    np.abs(view_HWD, out=scratch)
    scale[:] = _round_up_to_fp16(_reduce_groups(groups, np.maximum))
    groups *= np.float32(INT8_SQUARE) / scale.astype(np.float32)[..., None]
    np.rint(np.sqrt(scratch, out=scratch), out=scratch)
    bits = scratch.view(np.uint32)  # np.copysign takes three times as long
    bits |= view_HWD.view(np.uint32) & _SIGN
    np.copyto(codes, scratch, casting="unsafe")


def _decode_int8(codes: NDArray[Any], scale_HWG: Float32s, out_HWD: Float32s) -> None:
    """Fill `out_HWD` with scale × (code / 127)·|code / 127|."""
    squares = codes.astype(np.int16)
    squares *= np.abs(squares)
    shape = (*scale_HWG.shape, -1)
    np.multiply(squares.reshape(shape), (scale_HWG / np.float32(INT8_SQUARE))[..., None], out=out_HWD.reshape(shape), dtype=np.float32)


def _tensors_of_int8(codes: Any, scale_BHWG: Any) -> Any:
    values = codes.float()
    squares = (values * values.abs()).reshape(*scale_BHWG.shape, -1)
    return (squares * (scale_BHWG / INT8_SQUARE)[..., None]).flatten(-2)


def _encode_int4(view_HWD: Float32s, codes: NDArray[Any], scale: Scales, scratch: Float32s) -> None:
    groups = view_HWD.reshape(*scale.shape[:-1], INT4_GROUP)
    low, high = _reduce_groups(groups, np.minimum), _reduce_groups(groups, np.maximum)
    floor = low.astype(np.float16)
    with np.errstate(over="ignore"):  # below −65,504 is nothing, and that is never chosen
        floor = np.where(floor.astype(np.float32) > low, np.nextafter(floor, np.float16(-np.inf)), floor)
    scale[..., 1] = floor
    scale[..., 0] = _round_up_to_fp16((high - floor.astype(np.float32)) / np.float32(_INT4_MAX))
    steps = scratch.reshape(groups.shape)
    np.subtract(groups, floor.astype(np.float32)[..., None], out=steps)
    steps *= np.float32(1) / scale[..., 0].astype(np.float32)[..., None]
    np.rint(steps, out=steps)
    code_pairs = scratch.astype(np.uint8).view("<u2")  # pairs of neighbouring codes: 0xBA holds a, b
    np.copyto(codes, (code_pairs & np.uint16(15)) | (code_pairs >> np.uint16(4)), casting="unsafe")


def _decode_int4(codes: NDArray[Any], scale_HWG2: Float32s, out_HWD: Float32s) -> None:
    """Fill `out_HWD` with minimum + code × scale; one table look-up gives both codes of a byte."""
    groups = np.take(_PAIRS, codes, mode="clip").view(np.float32).reshape(*scale_HWG2.shape[:-1], INT4_GROUP)
    np.multiply(groups, scale_HWG2[..., 0, None], out=groups)
    np.add(groups, scale_HWG2[..., 1, None], out=out_HWD.reshape(groups.shape))


def _tensors_of_int4(codes: Any, scale_BHWG2: Any) -> Any:
    pairs = scale_BHWG2.new_empty((*codes.shape, 2))
    pairs[..., 0], pairs[..., 1] = codes & 15, codes >> 4  # the even channel stands in the low half of its byte
    groups = pairs.reshape(*scale_BHWG2.shape[:-1], INT4_GROUP)
    return (groups * scale_BHWG2[..., 0, None] + scale_BHWG2[..., 1, None]).flatten(-2)


_INT8 = Scaling(
    _encode_int8,
    lambda dim: (int8_groups(dim),),
    ("group",),
    {"scale": "channels in as many groups as patch_scale has: patch = patch_scale[…, group] × (code / 127) × |code / 127|"},
)
_INT4 = Scaling(
    _encode_int4,
    lambda dim: (dim // INT4_GROUP, 2),
    ("group", "scale_and_minimum"),
    {
        "packing": "two codes a byte, the even channel in the low half",
        "scale": "channels in groups of 64: patch = patch_scale[…, group, 1] + code × patch_scale[…, group, 0]",
    },
    channels_per_code=2,
    code_axis="channel_pair",
    width_multiple=INT4_GROUP,
)
_ROWS = (
    TokenCodec(
        "fp32", "floats of 4 bytes", np.dtype(np.float32), _decode_fp32, _tensors_as_floats,
        cls_dtype=np.dtype(np.float32), largest=float(np.finfo(np.float32).max),
    ),
    TokenCodec("fp16", "floats of 2 bytes", np.dtype(np.float16), _decode_fp16, _tensors_as_floats),
    TokenCodec("int8", "a byte a channel, a scale for 128", np.dtype(np.int8), _decode_int8, _tensors_of_int8, scaling=_INT8),
    TokenCodec("int4", "half a byte a channel, a scale for 64", np.dtype(np.uint8), _decode_int4, _tensors_of_int4, scaling=_INT4),
)  # fmt: skip
CODECS: dict[str, TokenCodec] = {row.name: row for row in _ROWS}


def get_codec(name: str) -> TokenCodec:
    """Return the codec of that name; raise `BadInput` that lists the known ones."""
    if name not in CODECS:
        raise unknown_name("codec", name, CODECS)
    return CODECS[name]


def encode(patch_nHWD: Float32s, codec: str) -> Encoded:
    """Encode normalised patch tokens as the codec of that name does."""
    return get_codec(codec).encode(patch_nHWD)


def decode(codes: NDArray[np.generic], scale: Scales | None, codec: str, out: Float32s | None = None) -> Float32s:
    """Return normalised patch tokens as the codec of that name decodes them."""
    return get_codec(codec).decode(codes, scale, out)
