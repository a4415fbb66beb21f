"""The detector of LW-DETR (arXiv 2406.03459) as transformers has it, on patch tokens: projector, proposals, decoder, boxes.

Only the encoder of it is left out: its place is taken by the patch tokens as one feature map. Each query gives a box and a score for each
class; there is nothing to suppress afterwards. This file goes as it is into exported folders of transformers, so it imports nothing of
this package. Axes: B pictures, H × W grid, D channels, Q queries, K classes.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Maps(NamedTuple):
    """What a backbone of transformers gives."""

    feature_maps: list[Tensor]


class GivenMap(nn.Module):
    """A backbone whose pixels are the feature map already."""

    def forward(self, map_BDHW: Tensor) -> Maps:
        """Return the map."""
        return Maps([map_BDHW])


def build_lw_detr(width: int, classes: int, shape: Mapping[str, Any]) -> nn.Module:
    """Return LW-DETR's detector for patch tokens of a width; `shape` is what its config calls d_model, num_queries, …."""
    from transformers import LwDetrConfig, LwDetrForObjectDetection, LwDetrViTConfig

    backbone = LwDetrViTConfig(  # built for its width alone, and then left out
        hidden_size=width, num_hidden_layers=1, num_attention_heads=1, image_size=64, window_block_indices=[], out_indices=[1]
    )
    config = LwDetrConfig(backbone_config=backbone, num_labels=classes, **shape)
    model: nn.Module = LwDetrForObjectDetection(config)
    inner: Any = model.model
    inner.backbone.backbone = GivenMap()
    return model


class Detector(nn.Module):
    """Patch tokens → boxes (B, Q, 4: left, top, right, bottom as shares of the input's sides), scores (B, Q, K) in [0, 1]."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__()
        self.detr = build_lw_detr(settings["width"], settings["outputs"], settings["shape"])

    def found(self, patch_BHWD: Tensor) -> tuple[Tensor, Tensor]:
        """Return boxes and scores."""
        output = self.detr(patch_BHWD.permute(0, 3, 1, 2))
        centre, sides = output.pred_boxes[..., :2], output.pred_boxes[..., 2:]
        return torch.cat([centre - sides / 2, centre + sides / 2], dim=-1), output.logits.sigmoid()

    def forward(self, seen: Any) -> tuple[Tensor, ...]:
        """Return boxes and scores of what an encoder saw."""
        return self.found(seen.patch_BHWD)
