"""Any ViT or ConvNeXt of timm as a student, by name (`timm:NAME`), with random weights.

The shape is timm's; what students need is set beside it: any input that the stride divides, no classifier and no pool, so that
every parameter has a gradient. A ViT's tokens have passed its norm, the class token is its own, or the mean of the patch tokens
where it has none; a ConvNeXt's are those of EUPE's ConvNeXts. Other families are refused by name. The record of a run holds what
was found of the model, and is compared when it is read: another timm with another model of that name is an error.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from ..storage.errors import BadInput
from . import torchvision_guard
from .architectures import TIMM_STUDENT, Options
from .encoders import ConvNextEncoder, Encoder
from .preprocessing import Preprocessing
from .tokens import Tokens

torchvision_guard.install()

import timm  # noqa: E402 - only after the guard
from timm.models.convnext import ConvNeXt  # noqa: E402
from timm.models.eva import Eva  # noqa: E402
from timm.models.vision_transformer import VisionTransformer  # noqa: E402


class TimmVitEncoder(Encoder):
    """A ViT of timm: prefix tokens, then patch tokens, all after the norm."""

    def tokens(self, pixels_BCHW: Tensor, grid: tuple[int, int]) -> Tokens:
        """cls (B, D), patch (B, H, W, D)."""
        x_BND: Tensor = self.backbone.forward_features(pixels_BCHW)  # type: ignore[operator]
        prefix: int = self.backbone.num_prefix_tokens  # type: ignore[assignment]
        patch_BHWD = torch.unflatten(x_BND[:, prefix:], 1, grid)
        return Tokens(x_BND[:, 0] if self.cls == "class token" else patch_BHWD.mean(dim=(1, 2)), patch_BHWD)


def build_timm_student(architecture: Options) -> Encoder:
    """The encoder of a canonical record, randomly initialised."""
    backbone = _create(architecture["model"])
    kind = TimmVitEncoder if architecture["family"] == "vit" else ConvNextEncoder
    published: Any = backbone.pretrained_cfg
    prep = Preprocessing(published["input_size"][-1], mean=tuple(published["mean"]), std=tuple(published["std"]))
    return kind(
        backbone, architecture, width=architecture["width"], stride_px=architecture["stride_px"], cls=architecture["cls"], prep=prep
    )


def timm_student(name: str, given: Mapping[str, Any]) -> Options:
    """The canonical record of `timm:NAME`, or the given one when it is that; raises BadInput for another family and for options."""
    model = str(given.get("model", "")) if name == TIMM_STUDENT else name.removeprefix("timm:")
    found = dict(_inspect(model))
    if name != TIMM_STUDENT and given:
        raise BadInput(f"the student {name} takes no options, its shape is timm's: --set student.options={{}}; got {dict(given)}")
    if name == TIMM_STUDENT and {"name": TIMM_STUDENT, **given} != found:
        raise BadInput(
            f"timm {timm.__version__} knows {model!r} as {found}, the record says {dict(given)}: install the timm it was trained with"
        )
    return found


@lru_cache(maxsize=64)
def _inspect(model: str) -> Mapping[str, Any]:
    with torch.device("meta"):
        backbone: Any = _create(model)
    if isinstance(backbone, ConvNeXt):
        family, cls, stride_px = "convnext", "normed mean of patch tokens", backbone.feature_info[-1]["reduction"]
    else:
        family, stride_px = "vit", backbone.patch_embed.patch_size[0]
        cls = "class token" if getattr(backbone, "cls_token", None) is not None else "mean of patch tokens"
    width, stride_px = int(backbone.num_features), int(stride_px)
    return {"name": TIMM_STUDENT, "model": model, "family": family, "cls": cls, "width": width, "stride_px": stride_px}


def _create(model: str) -> nn.Module:
    try:
        entry = timm.model_entrypoint(model.split(".")[0])
    except (RuntimeError, KeyError) as error:
        near = ", ".join(timm.list_models(f"*{model.split('.')[0]}*")[:5]) or "see timm.list_models()"
        raise BadInput(f"timm has no model {model!r}; near: {near}") from error
    of_a_vit = entry.__module__.rpartition(".")[2] in ("vision_transformer", "eva")
    try:
        options: dict[str, Any] = {"dynamic_img_size": True, "global_pool": ""} if of_a_vit else {}
        backbone = timm.create_model(model, pretrained=False, num_classes=0, **options)
    except RuntimeError as error:
        raise BadInput(f"timm cannot build {model!r}: {error}") from error
    if not isinstance(backbone, VisionTransformer | Eva | ConvNeXt):
        raise BadInput(f"timm:{model} is a {type(backbone).__name__}; a student is a ViT (VisionTransformer, Eva) or a ConvNeXt")
    found: nn.Module = backbone
    return found
