"""The output of every encoder: one class token and a grid of patch tokens an image.

Axes: B images, H and W rows and columns of the patch grid (top to bottom, left to right), D channels. An encoder without a class token
gives None, never zeros: a zero target would be learnt. The two widths may differ (an attention pool with a projection), so each has its own
D.

A teacher's targets may hold only T of its H·W patch tokens, at recorded positions that are uniform and without replacement: the mean of the
patch loss over them is an unbiased estimate of the mean over the grid, at T / (H·W) of the bytes; with T = H·W it is the dense loss to the
bit. The student's grid must equal the teacher's, because tokens that were not stored cannot take part in an interpolation.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...storage.core.errors import BadInput


class Tokens(NamedTuple):
    """`cls_BD` (B, D) or None, `patch_BHWD` (B, H, W, D)."""

    cls_BD: Tensor | None
    patch_BHWD: Tensor


class LayerTokens(NamedTuple):
    """Final tokens, and by block those of intermediate layers (B, H, W, D), through the model's final norm."""

    final: Tokens
    layers: Mapping[int, Tensor]

    def first(self, count: int) -> "LayerTokens":
        """Return the tokens of a batch's first images."""
        cls_BD, patch_BHWD = self.final
        final = Tokens(None if cls_BD is None else cls_BD[:count], patch_BHWD[:count])
        return LayerTokens(final, {layer: values[:count] for layer, values in self.layers.items()})


def concatenated(parts: Sequence[LayerTokens]) -> LayerTokens:
    """Return the tokens of several batches of one teacher as one batch."""
    if len(parts) == 1:
        return parts[0]
    classes = [part.final.cls_BD for part in parts if part.final.cls_BD is not None]
    final = Tokens(torch.cat(classes) if classes else None, torch.cat([part.final.patch_BHWD for part in parts]))
    return LayerTokens(final, {layer: torch.cat([part.layers[layer] for part in parts]) for layer in parts[0].layers})


class SampledTokens(NamedTuple):
    """Class tokens (B, D) or None, patch tokens (B, T, D), their grid positions (B, T), the grid (H, W); of a teacher or a student."""

    cls_BD: Tensor | None
    patch_BTD: Tensor
    position_BT: Tensor
    grid: tuple[int, int]


def gather_tokens(tokens: Tokens, target: SampledTokens) -> SampledTokens:
    """Return the student's tokens at the target's positions; raise `BadInput` when the grids differ."""
    patch_BHWD = tokens.patch_BHWD
    if tuple(patch_BHWD.shape[1:3]) != target.grid:
        raise BadInput(grid_mismatch("the student", tuple(patch_BHWD.shape[1:3]), target.grid))
    position_BT1 = target.position_BT.long()[..., None]
    patch_BTD = torch.gather(patch_BHWD.flatten(1, 2), 1, position_BT1.expand(-1, -1, patch_BHWD.shape[-1]))
    return SampledTokens(tokens.cls_BD, patch_BTD, target.position_BT, target.grid)


def grid_mismatch(who: str, grid: tuple[int, ...], stored: tuple[int, int]) -> str:
    """Return the error text for sampled targets of another grid than the student's."""
    return (
        f"{who} has a grid of {grid[0]}×{grid[1]}, the feature set holds sampled tokens of a grid of {stored[0]}×{stored[1]}, and these "
        f"need equal grids: choose student.sizes_px so, or extract with --grid {grid[0]}x{grid[1]} or without --tokens-per-view"
    )
