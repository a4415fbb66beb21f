"""Patch tokens as colours: the three strongest directions of one encoder's tokens, over all its photos, as red, green and blue.

One basis an encoder (the paper's Figure 4), so that the same colour means the same feature in every photo of a row; colours of two
encoders cannot be compared. Each direction's sign is fixed by its third moment, so that a picture never flips between two runs
of the same tokens. Each channel is stretched between its 1st and 99th percentile. Limits: at most MOST_TOKENS tokens set the basis.
Axes: B photos, H W grid, D channels.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..storage.errors import BadInput

MOST_TOKENS = 20_000
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
    mean_D = sample_ND.mean(0)
    centred_ND = sample_ND - mean_D
    # eigh of the small D×D matrix instead of an SVD of all tokens; eigenvalues ascend
    _, vectors_DD = np.linalg.eigh(centred_ND.T @ centred_ND)
    strongest_DK = vectors_DD[:, ::-1][:, :3]
    skew_K = ((centred_ND @ strongest_DK) ** 3).sum(0)
    signs_K = np.where(skew_K < 0, -1.0, 1.0)
    directions_D3 = np.zeros((len(mean_D), 3))
    directions_D3[:, : strongest_DK.shape[1]] = strongest_DK * signs_K
    return mean_D, directions_D3


def colours(patch_BHWD: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return (B, H, W, 3) uint8 colours of one encoder's patch tokens; raises BadInput for tokens that are not finite."""
    if patch_BHWD.ndim != 4 or patch_BHWD.size == 0:
        sampled = "; pictures need whole grids: for sampled tokens extract without --tokens-per-view" if patch_BHWD.ndim == 3 else ""
        raise BadInput(f"patch tokens are (photos, height, width, channels), got shape {patch_BHWD.shape}{sampled}")
    if not np.isfinite(patch_BHWD).all():
        raise BadInput("patch tokens hold NaN or infinity: nothing to draw")
    flat_ND = patch_BHWD.reshape(-1, patch_BHWD.shape[-1])
    mean_D, directions_D3 = basis(flat_ND)
    scores_N3 = (flat_ND - mean_D) @ directions_D3
    low_3, high_3 = np.percentile(scores_N3, [1, 99], axis=0)
    share_N3 = (scores_N3 - low_3) / np.maximum(high_3 - low_3, 1e-12)
    return np.asarray(np.round(255 * share_N3.clip(0, 1)), np.uint8).reshape(*patch_BHWD.shape[:3], 3)


def pictures(labels: Sequence[str], images: Sequence[Rgb], tokens: dict[str, NDArray[np.float32]]) -> list[PcaPicture]:
    """Return a picture a photo: `images` HWC uint8, `tokens` {encoder's label: (B, H, W, D)} in the same order; raises BadInput."""
    short = {label: len(patch) for label, patch in tokens.items() if len(patch) != len(images)}
    if short or len(labels) != len(images):
        raise BadInput(f"{len(images)} photos need as many labels and tokens, got {len(labels)} labels and {short}")
    drawn = {label: colours(patch) for label, patch in tokens.items()}
    return [
        PcaPicture(label, image, {encoder: rgb[n] for encoder, rgb in drawn.items()})
        for n, (label, image) in enumerate(zip(labels, images, strict=True))
    ]


def png_data_uri(rgb_HW3: Rgb, *, longest_px: int = 0) -> str:
    """Return the image as a data URI of a PNG; enlarged by whole pixels, without smoothing, towards `longest_px`."""
    factor = max(1, longest_px // max(rgb_HW3.shape[:2]))
    larger = rgb_HW3.repeat(factor, 0).repeat(factor, 1)
    out = io.BytesIO()
    Image.fromarray(larger).save(out, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
