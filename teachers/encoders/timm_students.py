"""Any ViT or ConvNeXt of timm as a student, by name (`timm:NAME`), with random weights.

The shape is timm's; what students need is set beside it: any input that the stride divides, no classifier and no pool, so that
every trainable parameter has a gradient. A ViT's tokens have passed its norm; the class token is its own, or the mean of the patch
tokens where it has none, and further prefix tokens (registers, the distillation token of a DeiT) are left out. A ConvNeXt's are
those of EUPE's ConvNeXts, by its own norm, of whatever kind; where it norms the map before pooling, cls is the mean of that.
Refused by name are other families, models with batch norm (its statistics differ between ranks, and no moving average holds them)
and grids of unequal strides. The record of a run holds the shape of the model, and is compared when it is read: another timm
with another model of that name is an error.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from ...storage.core.errors import BadInput
from ..runtime import torchvision_guard
from .architectures import TIMM_STUDENT, Options
from .encoder import ConvNextEncoder, Encoder
from .preprocessing import Preprocessing
from .tokens import Tokens

torchvision_guard.install()

import timm  # noqa: E402 - only after the guard
from timm.models.convnext import ConvNeXt  # noqa: E402
from timm.models.eva import Eva  # noqa: E402
from timm.models.vision_transformer import VisionTransformer  # noqa: E402

_VIT_MODULES = ("vision_transformer", "vision_transformer_hybrid", "deit", "eva", "vitamin")  # whose builders take the options of a ViT
_MEAN_OF_NORMED = "mean of patch tokens"
_NORMED_MEAN = "normed mean of patch tokens"


class TimmVitEncoder(Encoder):
    """A ViT of timm: prefix tokens, then patch tokens, all after the norm."""

    def tokens(self, pixels_BCHW: Tensor, grid: tuple[int, int]) -> Tokens:
        """Return cls (B, D), patch (B, H, W, D)."""
        x_BND: Tensor = self.backbone.forward_features(pixels_BCHW)  # type: ignore[operator]
        prefix: int = self.backbone.num_prefix_tokens  # type: ignore[assignment]
        patch_BHWD = torch.unflatten(x_BND[:, prefix:], 1, grid)
        return Tokens(x_BND[:, 0] if self.cls == "class token" else patch_BHWD.mean(dim=(1, 2)), patch_BHWD)


class OtherConvNextEncoder(Encoder):
    """A ConvNeXt of timm that norms by RMS, which has no bias, or norms its map before it is pooled."""

    def tokens(self, pixels_BCHW: Tensor, grid: tuple[int, int]) -> Tokens:
        """Return cls (B, D), patch (B, H, W, D)."""
        x_BCHW: Tensor = self.backbone.forward_features(pixels_BCHW)  # type: ignore[operator]
        if self.cls == _MEAN_OF_NORMED:
            return Tokens(x_BCHW.mean(dim=(2, 3)), x_BCHW.permute(0, 2, 3, 1))
        norm: Any = self.backbone.head.norm
        return Tokens(norm(x_BCHW.mean(dim=(2, 3), keepdim=True)).flatten(1), norm(x_BCHW).permute(0, 2, 3, 1))


def build_timm_student(architecture: Options) -> Encoder:
    """Return the encoder of a canonical record, randomly initialised."""
    backbone: Any = _create(architecture["model"])
    published: Any = backbone.pretrained_cfg
    prep = Preprocessing(published["input_size"][-1], mean=tuple(published["mean"]), std=tuple(published["std"]))
    if (hidden := getattr(getattr(backbone, "head", None), "pre_logits", None)) is not None:
        hidden.requires_grad_(False)  # the layer before the classifier that there is not: nothing would train it
    return _kind_of(backbone)(
        backbone, architecture, width=architecture["width"], stride_px=architecture["stride_px"], cls=architecture["cls"], prep=prep
    )


def _kind_of(backbone: Any) -> type[Encoder]:
    if not isinstance(backbone, ConvNeXt):
        return TimmVitEncoder
    return ConvNextEncoder if isinstance(getattr(backbone.head, "norm", None), nn.LayerNorm) else OtherConvNextEncoder


def timm_student(name: str, options: Mapping[str, Any]) -> Options:
    """Return the canonical record of `timm:NAME`, or of a record's own model; raise BadInput for another family and for other options."""
    model = str(options.get("model", "")) if name == TIMM_STUDENT else name.removeprefix("timm:")
    inspected = dict(_inspect(model))
    if name != TIMM_STUDENT and options:
        raise BadInput(f"the student {name} takes no options, its shape is timm's: --set student.options={{}}; got {dict(options)}")
    if name == TIMM_STUDENT and {"name": TIMM_STUDENT, **options} != inspected:
        raise BadInput(
            f"timm {timm.__version__} knows {model!r} as {inspected}, the record says {dict(options)}: install the timm it was trained with"
        )
    return inspected


@lru_cache(maxsize=64)
def _inspect(model: str) -> Mapping[str, Any]:
    with torch.device("meta"):
        backbone: Any = _create(model)
    if isinstance(backbone, ConvNeXt):
        family, strides = "convnext", {backbone.feature_info[-1]["reduction"]}
        cls = _NORMED_MEAN if isinstance(backbone.norm_pre, nn.Identity) else _MEAN_OF_NORMED
    else:
        family, strides = "vit", set(backbone.patch_embed.feat_ratio(as_scalar=False))
        cls = "class token" if getattr(backbone, "cls_token", None) is not None else _MEAN_OF_NORMED
    if len(strides) != 1:
        raise BadInput(f"timm:{model} has patches of {strides} px; a student's are square")
    return {
        "name": TIMM_STUDENT, "model": model, "family": family, "cls": cls, "width": int(backbone.num_features),
        "stride_px": int(strides.pop()),
    }  # fmt: skip


def _create(model: str) -> nn.Module:
    try:
        entry = timm.model_entrypoint(model.split(".")[0])
    except (RuntimeError, KeyError) as error:
        near = ", ".join(timm.list_models(f"*{model.split('.')[0]}*")[:5]) or "see timm.list_models()"
        raise BadInput(f"timm has no model {model!r}; near: {near}") from error
    options: dict[str, Any] = {}
    if entry.__module__.rpartition(".")[2] in _VIT_MODULES:
        # a distilled DeiT insists on timm's pool, which `forward_features` does not reach
        options = {"dynamic_img_size": True, **({} if "distilled" in entry.__name__ else {"global_pool": ""})}
    try:
        backbone = timm.create_model(model, pretrained=False, num_classes=0, **options)
    except RuntimeError as error:
        raise BadInput(f"timm cannot build {model!r}: {error}") from error
    if not isinstance(backbone, VisionTransformer | Eva | ConvNeXt):
        raise BadInput(f"timm:{model} is a {type(backbone).__name__}; a student is a ViT (VisionTransformer, Eva) or a ConvNeXt")
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in backbone.modules()):
        raise BadInput(
            f"timm:{model} has batch norm, whose statistics differ between ranks and are in no moving average; choose a model without"
        )
    checked: nn.Module = backbone
    return checked


def try_size(encoder: Encoder, size_px: int, grid: tuple[int, int]) -> None:
    """Raise `BadInput` unless a student of timm gives tokens of `grid` (H, W) at an input size; the encoder is on the meta device."""
    what = f"the student timm:{encoder.architecture['model']} cannot be trained at {size_px} px"
    try:
        cls_BD, patch_BHWD = encoder(torch.zeros(2, 3, size_px, size_px))
    except (RuntimeError, AssertionError, ValueError, TypeError, AttributeError, NotImplementedError) as error:
        raise BadInput(
            f"{what}: timm {timm.__version__} says {str(error) or repr(error)}; choose student.sizes_px or the student anew"
        ) from error
    width = encoder.width
    if cls_BD.shape != (2, width) or patch_BHWD.shape != (2, *grid, width):
        raise BadInput(f"{what}: it gives tokens of {tuple(patch_BHWD.shape[1:])}, not of {(*grid, width)}; choose another student")
