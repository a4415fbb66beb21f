"""Heads as modules that are traced with an encoder: tokens in, predictions out, by torch alone.

This file goes as it is into exported folders of transformers (its code is what `AutoModel` runs there), so it imports nothing of this
package. Each head computes what its evaluation computed, from the same tensors: the linear probe its logits; segmentation batch norm and a
linear layer on each patch token; depth the same, then the mean of its bins, averaged with the mirrored picture. Predictions are one value
a patch, as in the evaluations, which upsample them bilinearly to the picture: that stays outside, where a picture's own size is known.
Axes: B pictures, H × W grid, D channels, K outputs.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional


class Seen(NamedTuple):
    """What an encoder saw of a batch: its class tokens (B, D), its patch tokens (B, H, W, D), and those of the mirrored pictures."""

    cls_BD: Tensor
    patch_BHWD: Tensor
    mirrored_BHWD: Tensor | None


class LinearHead(nn.Module):
    """Class token, or mean patch token → logits (B, K)."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__()
        self.of_cls = settings["feature"] == "cls"
        self.linear = nn.Linear(settings["width"], settings["outputs"])

    def forward(self, seen: Seen) -> tuple[Tensor, ...]:
        """Return the logits."""
        feature_BD = seen.cls_BD if self.of_cls else seen.patch_BHWD.mean(dim=(1, 2))
        return (self.linear(feature_BD),)


class PatchHead(nn.Module):
    """Patch tokens → logits (B, K, H, W): batch norm by its running statistics, then one linear layer."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(settings["width"])
        self.linear = nn.Conv2d(settings["width"], settings["outputs"], kernel_size=1)

    def logits(self, patch_BHWD: Tensor) -> Tensor:
        """Return logits at the grid's resolution."""
        logits_BKHW: Tensor = self.linear(self.norm(patch_BHWD.permute(0, 3, 1, 2)))
        return logits_BKHW

    def forward(self, seen: Seen) -> tuple[Tensor, ...]:
        """Return the logits."""
        return (self.logits(seen.patch_BHWD),)


class DepthHead(PatchHead):
    """Patch tokens → metres (B, H, W): the mean of the bins' depths by relu(logit) + 0.1, averaged with the mirrored picture's."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__(settings)
        self.register_buffer("values_K", torch.zeros(settings["outputs"]))

    def metres(self, patch_BHWD: Tensor) -> Tensor:
        """Return metres of one way of seeing the pictures."""
        weights_BKHW = functional.relu(self.logits(patch_BHWD)) + 0.1
        values_K: Any = self.values_K
        shares_BKHW = weights_BKHW / weights_BKHW.sum(dim=1, keepdim=True)
        metres_BHW: Tensor = (shares_BKHW * values_K[:, None, None]).sum(dim=1)
        return metres_BHW

    def forward(self, seen: Seen) -> tuple[Tensor, ...]:
        """Return metres."""
        metres_BHW = self.metres(seen.patch_BHWD)
        if seen.mirrored_BHWD is None:
            return (metres_BHW,)
        return ((metres_BHW + self.metres(seen.mirrored_BHWD).flip(-1)) / 2,)


class Kind(NamedTuple):
    """A row of the table."""

    build: Callable[[Mapping[str, Any]], nn.Module]
    """The settings → the module, with random weights."""
    outputs: tuple[str, ...] = ("",)
    """Endings of its outputs' names."""
    mirrors: bool = False
    """Whether it also wants the tokens of the mirrored pictures."""
    one_size: bool = False
    """Whether a graph of it has one size of input."""
    classes: bool = False
    """Whether its output is logits (B, K, …)."""


def _detector(settings: Mapping[str, Any]) -> nn.Module:
    from .detector import Detector

    return Detector(settings)


KINDS: dict[str, Kind] = {
    "linear": Kind(LinearHead, classes=True),
    "segmentation": Kind(PatchHead, classes=True),
    "depth": Kind(DepthHead, mirrors=True),
    "detection": Kind(_detector, ("_boxes", "_scores"), one_size=True),
}
"""What the head of each evaluation computes."""


class Heads(nn.Module):
    """Several heads on one encoder; `described` is (name, kind, settings) of each."""

    def __init__(self, described: Sequence[tuple[str, str, Mapping[str, Any]]]) -> None:
        super().__init__()
        self.named = nn.ModuleDict({name: KINDS[kind].build(settings) for name, kind, settings in described})
        self.mirrors = any(KINDS[kind].mirrors for _, kind, _ in described)
        self.output_names = tuple(f"{name}{ending}" for name, kind, _ in described for ending in KINDS[kind].outputs)

    def forward(self, encode: Callable[[Tensor], tuple[Tensor, Tensor]], pixels_BCHW: Tensor) -> tuple[Tensor, ...]:
        """Return class tokens, patch tokens and the heads' outputs in the order of `output_names`; `encode` gives the first two."""
        if self.mirrors:
            both = torch.stack([pixels_BCHW, pixels_BCHW.flip(-1)], dim=1).flatten(0, 1)
            cls, patch = (torch.unflatten(tokens, 0, (-1, 2)) for tokens in encode(both))
            seen = Seen(cls[:, 0], patch[:, 0], patch[:, 1])
        else:
            seen = Seen(*encode(pixels_BCHW), None)
        return seen.cls_BD, seen.patch_BHWD, *(output for head in self.named.values() for output in head(seen))
