"""What every encoder gives: one class token and a grid of patch tokens for each image.

Axes: B images, H and W rows and columns of the patch grid (top to bottom, left to right), D channels. An encoder that has
no class token gives None, never zeros: a zero target would be learnt. The two widths may differ (an attention pool with a
projection), so each has its own D.
"""

from typing import NamedTuple

from torch import Tensor


class Tokens(NamedTuple):
    """`cls_BD` (B, D) or None, `patch_BHWD` (B, H, W, D)."""

    cls_BD: Tensor | None
    patch_BHWD: Tensor
