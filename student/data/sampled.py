"""Targets that hold only some of a teacher's patch tokens: the student is compared with them at their recorded places.

Places are uniform and without replacement, so the mean of the patch loss over them is an unbiased estimate of the mean over the whole grid,
at T / (H·W) of the bytes. That holds where the two grids are equal: a grid of another size would have to be interpolated, and a teacher's
tokens that were not stored cannot take part in that. So other grids are refused before the first step. With T = H·W the loss is the dense
one to the bit. The student's tokens are taken before the adapter, which sees each token by itself: it computes T of them. Price: a noisier
gradient a step.
Axes: B images, H × W grid, T places, D channels.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ...storage.core.errors import BadInput
from ...teachers.encoders.encoder import build_encoder
from ...teachers.encoders.tokens import Tokens
from ..model.recipe import TrainRecipe

if TYPE_CHECKING:
    from ..model.student import TargetSpec


class SampledTokens(NamedTuple):
    """Class tokens (B, D) or None, patch tokens (B, T, D), their places (B, T), their grid (H, W): a teacher's or the student's."""

    cls_BD: Tensor | None
    patch_BTD: Tensor
    position_BT: Tensor
    grid: tuple[int, int]


def at_places(tokens: Tokens, target: SampledTokens) -> SampledTokens:
    """The student's tokens that the target speaks of; raises `BadInput` when the student's grid is another."""
    patch_BHWD = tokens.patch_BHWD
    if tuple(patch_BHWD.shape[1:3]) != target.grid:
        raise BadInput(_other_grid("the student", tuple(patch_BHWD.shape[1:3]), target.grid))
    place_BT1 = target.position_BT.long()[..., None]
    patch_BTD = torch.gather(patch_BHWD.flatten(1, 2), 1, place_BT1.expand(-1, -1, patch_BHWD.shape[-1]))
    return SampledTokens(tokens.cls_BD, patch_BTD, target.position_BT, target.grid)


def refuse_other_grids(recipe: TrainRecipe, specs: Mapping[str, "TargetSpec"]) -> None:
    """Raise `BadInput` when a teacher's tokens are sampled and the student's grid is not the stored one at each of its sizes."""
    sampled = {name: spec for name, spec in specs.items() if spec.tokens is not None}
    if not sampled:
        return
    with torch.device("meta"):
        encoder = build_encoder({**recipe.student.options, "name": recipe.student.architecture})
    for size_px in recipe.student.sizes_px:
        for name, spec in sampled.items():
            if (grid := encoder.grid(size_px, size_px)) != spec.grid:
                who = f"{recipe.student.architecture} at {size_px} px"
                raise BadInput(f"teacher {name}: {_other_grid(who, grid, spec.grid)}")


def _other_grid(who: str, own: tuple[int, ...], stored: tuple[int, int]) -> str:
    return (
        f"{who} has a grid of {own[0]}×{own[1]}, the feature set holds sampled tokens of a grid of {stored[0]}×{stored[1]}, and these need "
        f"equal grids: choose student.sizes_px so, or extract with --grid {own[0]}x{own[1]} or without --tokens-per-view"
    )
