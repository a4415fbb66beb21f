"""Patch tokens as colours: the three strongest directions of one encoder's tokens, over all its photos, as red, green and blue.

One basis an encoder (the paper's Figure 4), so that the same colour means the same feature in every photo of a row; colours of two
encoders cannot be compared. Each direction's sign is fixed by its third moment, so that a picture never flips between two runs
of the same tokens. Each channel is stretched between its 1st and 99th percentile. Limits: at most MOST_TOKENS tokens set the basis.

The foreground is a guess, as in DINOv2's figures: each photo's own strongest direction is cut in two where the parts differ most (Otsu),
and the part that is rarer along the photo's edges is the foreground; those tokens alone then set the one basis, the rest stays black.
Axes: B photos, H W grid, D channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...storage.core.errors import BadInput
from ...storage.features.phis import Covariance

MOST_TOKENS = 20_000
OTSU_BINS = 128
FOREGROUND_FLOOR = 56
Rgb = NDArray[np.uint8]


@dataclass(frozen=True)
class PcaPicture:
    """One photo of the report's picture grid: `image` HWC uint8, `tokens` as {encoder's label: HWC uint8 colours of its grid}."""

    label: str
    image: Rgb
    tokens: dict[str, Rgb]


def basis(tokens_ND: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (mean (D,), directions (D, 3)) of the strongest three principal directions, signs fixed; fewer are padded with zeros."""
    step = -(-len(tokens_ND) // MOST_TOKENS)
    sample_ND = tokens_ND[::step].astype(np.float64)
    covariance = Covariance(sample_ND.shape[1])
    covariance.update(sample_ND)
    mean_D = covariance.mean
    strongest_DK = covariance.axes()[1][:, ::-1][:, :3]
    skew_K = (((sample_ND - mean_D) @ strongest_DK) ** 3).sum(0)
    signs_K = np.where(skew_K < 0, -1.0, 1.0)
    directions_D3 = np.zeros((len(mean_D), 3))
    directions_D3[:, : strongest_DK.shape[1]] = strongest_DK * signs_K
    return mean_D, directions_D3


def otsu(values_N: NDArray[np.float64]) -> float:
    """Return the cut that makes the two parts' means differ most, weighted by their sizes; the least value when all are equal."""
    counts, edges = np.histogram(values_N, OTSU_BINS)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1]
    above = len(values_N) - below
    sum_below = np.cumsum(counts * centres)[:-1]
    mean_gap = sum_below / np.maximum(below, 1) - ((counts * centres).sum() - sum_below) / np.maximum(above, 1)
    difference = below * above * mean_gap**2
    # between two heaps far apart every cut is as good: the middle one
    return float(edges[1:-1][difference >= difference.max() * (1 - 1e-9)].mean()) if np.ptp(values_N) > 0 else float(values_N.min())


def foreground(patch_HWD: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return (H, W): which tokens of one photo are foreground, by its own first direction and by what lies along its edges."""
    flat_ND = patch_HWD.reshape(-1, patch_HWD.shape[-1])
    mean_D, directions_D3 = basis(flat_ND)
    scores_N = (flat_ND - mean_D) @ directions_D3[:, 0]
    high_HW = (scores_N > otsu(scores_N)).reshape(patch_HWD.shape[:2])
    if not high_HW.any():
        return np.ones_like(high_HW)  # all tokens alike: nothing to cut
    edge_HW = np.ones_like(high_HW)
    edge_HW[1:-1, 1:-1] = False
    return ~high_HW if high_HW[edge_HW].mean() > high_HW.mean() else high_HW


def colours(patch_BHWD: NDArray[np.float32], *, foreground_only: bool = False) -> NDArray[np.uint8]:
    """Return (B, H, W, 3) uint8 colours of one encoder's patch tokens; raises BadInput for tokens that are not finite.

    With `foreground_only` the background is black and has no say in the basis.
    """
    if patch_BHWD.ndim != 4 or patch_BHWD.size == 0:
        sampled = "; pictures need whole grids: for sampled tokens extract without --tokens-per-view" if patch_BHWD.ndim == 3 else ""
        raise BadInput(f"patch tokens are (photos, height, width, channels), got shape {patch_BHWD.shape}{sampled}")
    if not np.isfinite(patch_BHWD).all():
        raise BadInput("patch tokens hold NaN or infinity: nothing to draw")
    shown_BHW = (
        np.stack([foreground(photo_HWD) for photo_HWD in patch_BHWD]) if foreground_only else np.ones(patch_BHWD.shape[:3], np.bool_)
    )
    shown_ND = patch_BHWD[shown_BHW]
    mean_D, directions_D3 = basis(shown_ND)
    scores_N3 = (shown_ND - mean_D) @ directions_D3
    low_3, high_3 = np.percentile(scores_N3, [1, 99], axis=0)
    share_N3 = (scores_N3 - low_3) / np.maximum(high_3 - low_3, 1e-12)
    colours_BHW3 = np.zeros((*patch_BHWD.shape[:3], 3), np.uint8)
    darkest = FOREGROUND_FLOOR if foreground_only else 0  # black is the background's
    colours_BHW3[shown_BHW] = np.round(darkest + (255 - darkest) * share_N3.clip(0, 1))
    return colours_BHW3


def pictures(
    labels: Sequence[str], images: Sequence[Rgb], tokens: dict[str, NDArray[np.float32]], *, foreground_only: bool = False
) -> list[PcaPicture]:
    """Return a picture a photo: `images` HWC uint8, `tokens` {encoder's label: (B, H, W, D)} in the same order; raises BadInput."""
    short = {label: len(patch) for label, patch in tokens.items() if len(patch) != len(images)}
    if short or len(labels) != len(images):
        raise BadInput(f"{len(images)} photos need as many labels and tokens, got {len(labels)} labels and {short}")
    drawn = {label: colours(patch, foreground_only=foreground_only) for label, patch in tokens.items()}
    return [
        PcaPicture(label, image, {encoder: rgb[n] for encoder, rgb in drawn.items()})
        for n, (label, image) in enumerate(zip(labels, images, strict=True))
    ]
