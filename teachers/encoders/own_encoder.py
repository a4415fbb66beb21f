"""A teacher of the user's own: a torch module, and the description of its input and output.

    def build(weights: Path | None) -> OwnTeacher:
        return OwnTeacher(MyNet(weights), name="my-net", size_px=224, stride_px=16, cls="class token")

The module takes normalised float pixels (B, 3, h, w) and gives (cls, patch), as `Tokens` or as a plain tuple: `cls` (B, D') float or None,
`patch` (B, h / stride, w / stride, D), a grid and not a sequence. The description is not trusted: shapes are checked at every forward.
Axes: B images, H and W grid, D channels.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ...storage.core.errors import BadInput
from ...storage.views.input_size import SizePx
from .architectures import Options
from .encoder import Encoder
from .preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, Triple
from .tokens import Tokens


@dataclass(frozen=True)
class OwnTeacher:
    """What a FILE.py:FUNCTION returns; raises `BadInput` on an invalid value."""

    module: nn.Module
    """Normalised float pixels (B, 3, h, w) → (cls (B, D') or None, patch (B, h / stride_px, w / stride_px, D))."""
    name: str
    """What its feature sets are called; not the name of a known teacher."""
    size_px: SizePx
    """Side of the square input or (height, width), multiples of `stride_px`; `--teacher-size` asks for another."""
    stride_px: int
    """Pixels per patch token on each axis."""
    cls: str = "class token"
    """What serves as class token: "class token", "attention pool", "projected attention pool", "mean of patch tokens", "normed mean of
    patch tokens", or "none" for a module that gives None."""
    mean: Triple = IMAGENET_MEAN
    """Subtracted from each channel, in units after the division by `pixel_scale`."""
    std: Triple = IMAGENET_STD
    """Divides each channel."""
    interpolation: str = "bicubic"
    """How a crop is resized: bicubic, bilinear or nearest."""
    pixel_scale: float = 255.0
    """255 maps bytes to 0..1, 1 leaves them at 0..255."""
    channel_order: str = "rgb"
    """rgb or bgr."""
    preprocessing: Preprocessing = field(init=False, repr=False)
    """The six fields above that say how an image becomes the input, checked."""

    def __post_init__(self) -> None:
        module: object = self.module
        if not isinstance(module, nn.Module):
            raise BadInput(f"module is a {type(module).__name__}, expected a torch.nn.Module")
        size: object = self.size_px
        sides: list[object] = [*size] if isinstance(size, list | tuple) else [size]
        counts: list[tuple[str, object]] = [*(("size_px", side) for side in sides), ("stride_px", self.stride_px)]
        for what, value in counts:
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise BadInput(f"{what} is a count of pixels, got {value!r}")
        prep = Preprocessing(
            self.size_px, self.interpolation, _triple("mean", self.mean), _triple("std", self.std), self.pixel_scale, self.channel_order
        )
        object.__setattr__(self, "preprocessing", prep)


def _triple(what: str, values: Any) -> Triple:
    """Return three floats from any three numbers: an int and a float of one value are one identity."""
    try:
        red, green, blue = (float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise BadInput(f"{what} is three numbers, got {values!r}") from error
    return red, green, blue


class OwnEncoder(Encoder):
    """A user's module behind our interface."""

    def __init__(self, own: OwnTeacher, architecture: Options, width: int = 0) -> None:
        super().__init__(own.module, architecture, width=width, stride_px=own.stride_px, cls=own.cls, prep=own.preprocessing)
        self.on_device = nn.Parameter(torch.zeros(()), requires_grad=False)  # says the device of a module without parameters

    def tokens(self, pixels_BCHW: Tensor, grid: tuple[int, int]) -> Tokens:
        """Return cls (B, D') or None, patch (B, H, W, D); raise `BadInput` for anything else."""
        output = self.backbone(pixels_BCHW.contiguous())  # ours are channels-last, which a `view` would refuse
        if not isinstance(output, tuple | list) or len(output) != 2:
            raise BadInput(f"the module gives {_describe(output)}, expected (cls, patch): a tensor or None, and the grid of patch tokens")
        cls_BD, patch_BHWD = output
        _check(patch_BHWD, (len(pixels_BCHW), *grid, self.width or None), "patch tokens (B, rows, columns, D)")
        if self.cls == "none":
            if cls_BD is not None:
                raise BadInput(f'cls = "none" says that there is no class token, and the module gives {_describe(cls_BD)}')
            return Tokens(None, patch_BHWD)
        _check(cls_BD, (len(pixels_BCHW), None), f'a class token (B, D), since cls = "{self.cls}"')
        return Tokens(cls_BD, patch_BHWD)


def _check(output: Any, shape: tuple[int | None, ...], what: str) -> None:
    """Raise `BadInput` unless the output is a float tensor of a shape; None is any length."""
    fits = isinstance(output, Tensor) and output.is_floating_point() and output.ndim == len(shape)
    if not fits or any(want not in (None, got) for want, got in zip(shape, output.shape, strict=True)):
        wanted = "×".join("D" if side is None else str(side) for side in shape)
        raise BadInput(f"the module gives {_describe(output)}, expected {what} of shape {wanted}, float")


def _describe(output: Any) -> str:
    if isinstance(output, Tensor):
        return f"a tensor of shape {'×'.join(map(str, output.shape)) or 'none'} and {output.dtype}"
    return f"{type(output).__name__} of {len(output)}" if isinstance(output, tuple | list) else type(output).__name__
