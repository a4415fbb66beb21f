"""The part of a forward's tokens that a feature set stores: the grid resampled, then the tokens at recorded positions, on the device.

Resampling is a named approximation. It is linear, separable, and its weights add up to one for every output token, so it commutes with the
normalisation (mean and std, or PHI-S: both affine): resampling the teacher's own tokens is resampling normalised ones, and the statistics
stay those of the original tokens. Doing it before the tokens leave the device means that fewer bytes cross to the host.
Intermediate layers are resampled as the final tokens are, and taken at the same positions.
Axes: B views, H × W the teacher's grid, h × w the stored one, T tokens of a view, D channels.
"""

from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType

import torch
from torch import Tensor

from ...storage.features.layout import FeatureLayout
from ...storage.features.sampling import Positions
from ...student.model.losses import upsample
from ...teachers.encoders.tokens import Tokens
from .transfers import StoredTokens, to_device


def stored_tokens(
    tokens: Tokens, layout: FeatureLayout, position_BT: Positions | None, layers: Mapping[int, Tensor] = MappingProxyType({})
) -> StoredTokens:
    """Return the part of a forward's raw tokens that a feature set of this layout stores, on their device."""
    index_BT1 = None
    if position_BT is not None:
        index_BT1 = to_device(torch.from_numpy(position_BT.astype("int64"))[..., None], tokens.patch_BHWD.device)

    def part(patch_BHWD: Tensor) -> Tensor:
        patch = patch_BHWD if layout.resampled_from is None else resampled(patch_BHWD, layout.grid)
        return patch if index_BT1 is None else torch.take_along_dim(patch.flatten(1, 2), index_BT1, dim=1)

    return StoredTokens(tokens.cls_BD, part(tokens.patch_BHWD), {layer: part(values) for layer, values in layers.items()})


def resampled(patch_BHWD: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the tokens on a grid (h, w) that is nowhere larger, by `storage.features.layout.RESAMPLING`."""
    rows = weights(patch_BHWD.shape[1], grid[0], patch_BHWD.device)
    columns = weights(patch_BHWD.shape[2], grid[1], patch_BHWD.device)
    return torch.einsum("wW,BhWD->BhwD", columns, torch.einsum("hH,BHWD->BhWD", rows, patch_BHWD)).contiguous()


@lru_cache(maxsize=64)
def weights(large: int, small: int, device: torch.device) -> Tensor:
    """Return (small, large): each stored position as a weighted sum of the teacher's; rows add up to one.

    The pseudo-inverse of the loss's own upsampling from `small` to `large`: no grid of that size comes nearer to the teacher's, in squares.
    """
    with torch.no_grad():
        unit_vectors = torch.eye(small, dtype=torch.float64).reshape(small, small, 1, 1)
        upsampling = upsample(unit_vectors, large, 1).reshape(small, large).t()
        inverse: Tensor = torch.linalg.pinv(upsampling)
        return inverse.float().contiguous().to(device)
