"""What a teacher of the user's own declares, held against the tokens that it gives: for a Python file and an ONNX file alike.

A declaration is not trusted. Two of the canary's pictures are computed at the wanted size, and one of them alone, since a last batch may be
one; the widths are those of the tokens that come out.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ...storage.core.errors import BadInput
from ...storage.objects.content_addressed import check_name
from ...storage.views.input_size import SizePx, size_hw, size_text
from ..encoders.own_encoder import OwnEncoder, OwnTeacher
from ..encoders.preprocessing import Preprocessing
from ..encoders.tokens import Tokens
from .canary import canary_images
from .spec import CLS_KINDS
from .table import TEACHERS


class Measured(NamedTuple):
    """A teacher of the user's own at a size."""

    preprocessing: Preprocessing
    cls_dim: int | None
    width: int
    grid: tuple[int, int]
    """Rows and columns."""


def measure(name: str, own: OwnTeacher, size_px: SizePx | None, constants: str, reason_of: Callable[[Exception], str]) -> Measured:
    """Return what a teacher gives at its own size or the wanted one; `reason_of` words an error of its module.

    Raise `BadInput` for a declaration that cannot be, and for tokens of another shape than declared or that are no numbers.
    """
    _check_declared(name, own)
    prep = own.preprocessing.with_constants(constants)
    if size_px is not None:
        prep = replace(prep, size_px=size_px)
    height, width = size_hw(prep.size_px)
    if height % own.stride_px or width % own.stride_px:
        raise BadInput(f"teacher {name}: {size_text(prep.size_px)} px is not a multiple of its stride of {own.stride_px} px")
    cls_BD, patch_BHWD = _tokens_of_two_pictures(name, own, prep, reason_of)
    return Measured(
        prep, None if cls_BD is None else cls_BD.shape[-1], patch_BHWD.shape[-1], (height // own.stride_px, width // own.stride_px)
    )


def _check_declared(name: str, own: OwnTeacher) -> None:
    if own.cls not in CLS_KINDS:
        raise BadInput(f"teacher {name}: cls is {own.cls!r}; kinds: {', '.join(CLS_KINDS)}")
    check_name("teacher", own.name)
    if own.name in TEACHERS:
        raise BadInput(f"teacher {name} calls itself {own.name!r}, which is a known teacher's name; give it one of its own")


def _tokens_of_two_pictures(name: str, own: OwnTeacher, prep: Preprocessing, reason_of: Callable[[Exception], str]) -> Tokens:
    size_px, encoder = prep.size_px, OwnEncoder(own, {"name": "own"})
    height, width = size_hw(size_px)
    for count in (1, 2):
        pixels_BCHW = prep.apply(torch.from_numpy(canary_images(count, size_px)))
        try:
            with torch.no_grad():
                tokens: Tokens = encoder(pixels_BCHW)
        except Exception as error:
            raise BadInput(f"teacher {name} fails on pixels of {count}×3×{height}×{width}: {reason_of(error)}") from error
    bad = [what for what, part in zip(("class token", "patch tokens"), tokens, strict=True) if part is not None and not _finite(part)]
    if bad:
        raise BadInput(f"teacher {name}: its {' and '.join(bad)} of a picture of noise are not finite (NaN or infinite)")
    return tokens


def _finite(tokens: Tensor) -> bool:
    return bool(torch.isfinite(tokens).all())
