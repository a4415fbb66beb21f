"""Frozen encoders that we do not train: any timm model, and Keras' ResNet-50, behind the same interface as a student.

What serves as class token is data (`cls`), because it differs by model: a learnt token, an attention pool (before or after
its projection), the mean of the patch tokens, or nothing. Patch tokens are what timm's `forward_features` returns after the
prefix tokens (or a convolutional map moved to B, H, W, D). Position embeddings are resampled to the input's grid where the
model can (`dynamic_size`). Models are built whole, head included, because a strict load wants every published tensor.
"""

import difflib
import math
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...storage.core.errors import BadInput
from ...storage.views.input_size import size_hw
from ..runtime.fusion import fuse_batch_norms
from ..runtime.timm_import import import_timm
from .architectures import Options
from .encoder import FeaturesEncoder
from .keras_resnet50 import STRIDE_PX, KerasResNet50
from .preprocessing import Preprocessing
from .tokens import Tokens

import_timm()

import timm  # noqa: E402 - only after import_timm

KERAS_CHANNELS = 2048
KERAS_PREPROCESSING = Preprocessing(224, "bicubic", (103.939, 116.779, 123.68), (1.0, 1.0, 1.0), 1.0, "bgr")


class FrozenEncoder(FeaturesEncoder):
    """An encoder whose class token follows `architecture["cls"]`."""

    def of_features(self, features: Tensor, grid: tuple[int, int]) -> Tokens:
        """Return cls (B, D') or None, patch (B, H, W, D)."""
        patch_BHWD = self._patches(features, grid)
        return Tokens(self._class_token(features, patch_BHWD), patch_BHWD)

    def from_published(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the backbone's tensors of a published file: its own, unless a kind of encoder says otherwise."""
        return tensors

    def fuse(self) -> None:
        """Fold batch norms into convolutions, where the architecture asks for it; in eval mode, after the load."""
        if self.architecture.get("fuse_batch_norm"):
            fuse_batch_norms(self.backbone)

    def _patches(self, features: Tensor, grid: tuple[int, int]) -> Tensor:
        if features.ndim == 4:
            channels_last = getattr(self.backbone, "output_fmt", "NCHW") == "NHWC"
            return features if channels_last else features.permute(0, 2, 3, 1)
        prefix = int(getattr(self.backbone, "num_prefix_tokens", 0))
        return features[:, prefix:].reshape(len(features), *grid, features.shape[-1])

    def _class_token(self, features: Tensor, patch_BHWD: Tensor) -> Tensor | None:
        if self.cls == "none":
            return None
        if self.cls == "class token":
            return features[:, 0]
        if self.cls == "mean of patch tokens":
            return patch_BHWD.mean(dim=(1, 2))
        pre_logits = self.cls == "attention pool"
        return self.backbone.forward_head(features, pre_logits=pre_logits)  # type: ignore[no-any-return, operator]


class TimmFacts(NamedTuple):
    """Facts of a timm model, found without memory for its weights."""

    architecture: Options
    """Canonical: name "timm", the model, its class token, whether it takes other sizes."""
    preprocessing: Preprocessing
    """The published one."""
    cls_dim: int | None
    patch_dim: int
    stride_px: int


def build_timm(architecture: Options) -> FrozenEncoder:
    """Return a complete timm model with random weights; raise `BadInput` for an unknown model."""
    backbone = _create(architecture["model"], dynamic=architecture["dynamic_size"])
    prep = _published_preprocessing(backbone)
    make = partial(FrozenEncoder, backbone, architecture, cls=architecture["cls"], prep=prep)
    return make(width=architecture["width"], stride_px=architecture["stride_px"])


def build_keras_resnet50(architecture: Options) -> FrozenEncoder:
    """Return Keras' ResNet-50 with random weights."""
    return FrozenEncoder(
        KerasResNet50(), architecture, width=KERAS_CHANNELS, stride_px=STRIDE_PX, cls=architecture["cls"], prep=KERAS_PREPROCESSING
    )


def timm_architecture(
    model: str, *, cls: str, width: int, stride_px: int, dynamic_size: bool = True, fuse_batch_norm: bool = False
) -> Options:
    """Return the canonical architecture record of a timm model."""
    return {
        "name": "timm", "model": model, "cls": cls, "width": width, "stride_px": stride_px,
        "dynamic_size": dynamic_size, "fuse_batch_norm": fuse_batch_norm,
    }  # fmt: skip


def inspect_timm(model: str, cls: str | None = None) -> TimmFacts:
    """Return facts of a timm model from a forward on the meta device (under a second, no memory); raise `BadInput`."""
    with torch.device("meta"):
        backbone = _create(model, dynamic=False)
        prep = _published_preprocessing(backbone)
        dynamic = hasattr(backbone, "dynamic_img_size")
        cls = cls or _default_cls(backbone)
        record = timm_architecture(model, cls=cls, width=0, stride_px=1, dynamic_size=dynamic)
        encoder = FrozenEncoder(backbone.eval(), record, width=0, stride_px=1, cls=cls, prep=prep)
        side, _ = size_hw(prep.size_px)
        features = encoder.features(torch.empty(1, 3, side, side))
        prefix = int(getattr(backbone, "num_prefix_tokens", 0))
        rows = _rows(features, prefix, channels_last=getattr(backbone, "output_fmt", "NCHW") == "NHWC")
        tokens = encoder.tokens(torch.empty(1, 3, side, side), (rows, rows))
    width, stride_px = tokens.patch_BHWD.shape[-1], side // rows
    cls_dim = None if tokens.cls_BD is None else tokens.cls_BD.shape[-1]
    return TimmFacts({**record, "width": width, "stride_px": stride_px}, prep, cls_dim, width, stride_px)


def try_timm_size(architecture: Options, size_hw_px: tuple[int, int], grid: tuple[int, int]) -> None:
    """Raise `BadInput` unless a timm model gives tokens of `grid` (H, W) at an input of (height, width); nothing is computed."""
    with torch.device("meta"):
        encoder = build_timm(architecture).eval()
        try:
            found = tuple(encoder(torch.empty(1, 3, *size_hw_px)).patch_BHWD.shape[1:3])
            why = "" if found == grid else f"gives a grid of {found} there, not of {grid}"
        except (RuntimeError, ValueError, TypeError, AssertionError, IndexError) as error:
            why = f"says {' '.join(str(error).split())[:200] or repr(error)}"
    if why:
        raise BadInput(
            f"teacher timm:{architecture['model']} does not take {size_hw_px[0]}x{size_hw_px[1]} px, because its positions or windows are "
            f"made for one size: timm {timm.__version__} {why}; leave its size out, or take a teacher that resamples its positions"
        )


def _rows(features: Tensor, prefix: int, *, channels_last: bool) -> int:
    if features.ndim == 4:
        return int(features.shape[1 if channels_last else 2])
    return math.isqrt(features.shape[1] - prefix)


def _default_cls(backbone: nn.Module) -> str:
    if getattr(backbone, "cls_token", None) is not None:
        return "class token"
    return "attention pool" if getattr(backbone, "attn_pool", None) is not None else "mean of patch tokens"


def _create(model: str, *, dynamic: bool) -> nn.Module:
    options = {"dynamic_img_size": True} if dynamic else {}
    try:
        backbone: nn.Module = timm.create_model(model, pretrained=False, **options)
    except RuntimeError as error:
        name, known = model.split(".")[0], timm.list_models()
        similar = [other for other in known if name in other] or difflib.get_close_matches(name, known, n=5)
        near = ", ".join(similar[:5]) or "none, see timm.list_models()"
        raise BadInput(f"timm has no model {model!r} ({error}); near: {near}") from error
    return backbone


def _published_preprocessing(backbone: Any) -> Preprocessing:
    published = backbone.pretrained_cfg
    interpolation = published.get("interpolation", "bicubic")
    return Preprocessing(
        published["input_size"][-1],
        interpolation if interpolation in ("bicubic", "bilinear") else "bicubic",
        tuple(published["mean"]),
        tuple(published["std"]),
    )
