"""Import a published student of any layout: official EUPE (.pth, .safetensors), a timm folder, a transformers folder.

The layout is recognised by the files, never by a name. Names and shapes must all fit. For timm and transformers their own library loads the
weights first, and our encoder must then give its outputs on a test picture, so that a difference in how the model is built is found. The
official code is not a dependency, so for its files names, shapes, bias masks and rotary periods are checked.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...storage.core.errors import BadInput
from ...storage.views.input_size import size_hw
from ..encoders.architectures import Options
from ..encoders.build import build_encoder, facts
from ..encoders.encoder import NATIVE_SIZE_PX, Encoder
from ..encoders.preprocessing import Preprocessing
from ..encoders.tokens import Tokens
from .convert import read_checkpoint
from .official import Imported, Tensors, from_official
from .weights import read_weights

TOLERANCE = 1e-4


class Published(NamedTuple):
    """A published student: our architecture, tensors and preprocessing."""

    layout: str
    """eupe, timm or transformers."""
    architecture: Options
    tensors: Tensors
    preprocessing: Preprocessing
    notes: list[str]
    """What was left out or replaced."""


def read_published(source: Path) -> Published:
    """Read a checkpoint file or a model folder; raise `BadInput` for an unknown layout or tensors that do not fit."""
    if source.is_file():
        imported, prep = from_official(_read_file(source)), Preprocessing(NATIVE_SIZE_PX)
        load_encoder(imported.architecture, imported.tensors)
        return Published("eupe", imported.architecture, imported.tensors, prep, imported.notes)
    config = source / "config.json"
    if not config.is_file():
        raise BadInput(
            f"{source} is neither a checkpoint file nor a folder with a config.json; expected a .pth or .safetensors, or a folder"
        )
    if '"model_type"' in config.read_text():
        from .transformers_folder import read_transformers, transformers_tokens

        return _verified("transformers", *read_transformers(source), transformers_tokens)
    from .timm_folder import read_timm, timm_tokens
    from .timm_student_folder import RECORD, read_timm_student

    if f'"{RECORD}"' in config.read_text():
        imported, prep, model, tokens_of = read_timm_student(source)
        return _verified("timm", imported, prep, model, tokens_of, size_hw(prep.size_px))  # it may take its own size alone
    return _verified("timm", *read_timm(source), timm_tokens)


def load_encoder(architecture: Options, tensors: Tensors) -> Encoder:
    """Return an encoder in eval mode with these tensors; raise `BadInput` for missing, unknown or misshapen ones."""
    encoder = build_encoder(architecture).eval()
    try:
        encoder.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise BadInput(f"the weights do not fit the architecture {architecture}: {error}") from error
    return encoder


def _read_file(source: Path) -> Tensors:
    if source.suffix == ".safetensors":
        return read_weights(source)
    return read_checkpoint(source.read_bytes(), str(source))


def _verified(
    layout: str, imported: Imported, prep: Preprocessing, model: nn.Module, tokens_of: Callable[[nn.Module, Tensor], Tokens],
    sides: tuple[int, int] | None = None,
) -> Published:  # fmt: skip
    stride = facts(imported.architecture).stride_px
    pixels_BCHW = torch.randn(1, 3, *(sides or (4 * stride, 6 * stride)), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        difference = _max_difference(load_encoder(imported.architecture, imported.tensors)(pixels_BCHW), tokens_of(model, pixels_BCHW))
    if not difference <= TOLERANCE:
        raise BadInput(
            f"{layout} computes other tokens from these weights than our encoder (up to {difference:.2g}): not a student of EUPE's kind"
        )
    return Published(layout, imported.architecture, imported.tensors, prep, imported.notes)


def _max_difference(ours: Tokens, theirs: Tokens) -> float:
    """Return the largest absolute difference of two encoders' tokens, infinity where their shapes differ."""
    assert ours.cls_BD is not None
    assert theirs.cls_BD is not None
    pairs = [(ours.cls_BD, theirs.cls_BD), (ours.patch_BHWD, theirs.patch_BHWD)]
    return max((a - b).abs().max().item() if a.shape == b.shape else math.inf for a, b in pairs)
