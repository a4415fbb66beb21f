"""Monocular depth with a linear head over bins, as the official evaluation code measures it on NYUv2.

The head gives 256 weights a token, relu + 0.1, normalised to one; depth is their mean of 256 values from 0.001 to 10 m (AdaBins).
Training (EUPE's config-nyu): the image without its white frame, turned by up to 2.5° half of the time, mirrored, cropped to 416 × 544,
colours shifted; scale-invariant log loss (its variance term from the 101st step). Inference: the whole image and its mirror image,
averaged; upsampled to the truth, clamped, and measured where the truth lies within the range and inside Eigen's crop, one image at a
time, then averaged over images. Images are uint8 numpy (H, W, 3), depth float32 metres (H, W), 0 for nothing measured. Axes: B
images, K bins.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from ...storage.sources.decode import Pixels

BINS = 256
_EPS = 1e-3
_FRAME = (45, 472, 43, 608)  # rows and columns of a 480 × 640 image inside its white frame
_EIGEN = (45, 471, 41, 601)
_VARIANCE_FROM_STEP = 100


Metres = NDArray[np.float32]


@dataclass(frozen=True)
class DepthView:
    """Range of depth, sizes and distortions of training views, and where depth is measured."""

    min_m: float = 0.001
    max_m: float = 10.0
    crop_hw: tuple[int, int] = (416, 544)
    turn_degrees: float = 2.5
    brightness: tuple[float, float] = (0.75, 1.25)
    nyu_crops: bool = True
    """Whether images have NYU's white frame and are measured inside Eigen's crop."""
    distort: bool = True


def depth_from_bins(logits_BKHW: Tensor, view: DepthView) -> Tensor:
    """Return metres (B, 1, H, W): the mean of the bins' depths, weighted by relu(logit) + 0.1."""
    weights = functional.relu(logits_BKHW) + 0.1
    values = bin_depths(logits_BKHW.shape[1], view).to(logits_BKHW.device)
    return torch.einsum("bkhw,k->bhw", weights / weights.sum(dim=1, keepdim=True), values)[:, None]


def bin_depths(bins: int, view: DepthView) -> Tensor:
    """Return the metres that the bins stand for (K,)."""
    return torch.linspace(view.min_m, view.max_m, bins)


def log_loss(predicted_m: Tensor, truth_m: Tensor, step: int) -> Tensor:
    """Return √(0.15 mean(g)² + var(g)) of g = log(predicted + ε) − log(truth + ε) over valid pixels (both 1-D).

    The variance is left out in the first 100 steps. Returns 0 without two valid pixels, where mean or variance would be NaN and the head
    lost.
    """
    if len(truth_m) < 2:
        return predicted_m.sum() * 0.0
    g = torch.log(predicted_m + _EPS) - torch.log(truth_m + _EPS)
    total = 0.15 * g.mean().square() + (g.var() if step >= _VARIANCE_FROM_STEP else 0.0)
    return total.abs() if float(total.detach()) <= 0 else total.sqrt()


def training_depth_loss(logits_BKHW: Tensor, truth_B1HW: Tensor, view: DepthView, step: int) -> Tensor:
    """Return `log_loss` of the upsampled prediction over the pixels whose depth was measured."""
    predicted = functional.interpolate(depth_from_bins(logits_BKHW, view), truth_B1HW.shape[2:], mode="bilinear")
    valid = truth_B1HW != 0
    return log_loss(predicted[valid], truth_B1HW[valid], step)


def scaled_box(box: tuple[int, int, int, int], height: int, width: int) -> tuple[slice, slice]:
    """Return a box in 480 × 640 pixels (rows, columns) as slices of an image of another size."""
    top, bottom, left, right = box
    return slice(top * height // 480, bottom * height // 480), slice(left * width // 640, right * width // 640)


def training_view(image: Pixels, depth_m: Metres, view: DepthView, generator: np.random.Generator) -> tuple[Pixels, Metres]:
    """Draw a crop of both; smaller than `crop_hw` only where the image is."""
    if view.nyu_crops:
        box = scaled_box(_FRAME, *depth_m.shape)
        image, depth_m = image[box], depth_m[box]
    if generator.random() < 0.5:
        degrees = generator.uniform(-view.turn_degrees, view.turn_degrees)
        image = np.asarray(Image.fromarray(np.ascontiguousarray(image)).rotate(degrees, Image.Resampling.BILINEAR))
        depth_m = np.asarray(Image.fromarray(np.ascontiguousarray(depth_m)).rotate(degrees, Image.Resampling.NEAREST))
    if generator.random() < 0.5:
        image, depth_m = image[:, ::-1], depth_m[:, ::-1]
    top, left = (int(generator.integers(0, max(side - crop, 0) + 1)) for side, crop in zip(depth_m.shape, view.crop_hw, strict=True))
    box = slice(top, top + view.crop_hw[0]), slice(left, left + view.crop_hw[1])
    image, depth_m = image[box], depth_m[box]
    if view.distort and generator.random() < 0.5:
        image = _jitter_colours(image, view, generator)
    return image, depth_m


def _jitter_colours(image: Pixels, view: DepthView, generator: np.random.Generator) -> Pixels:
    """Draw gamma 0.9 to 1.1 on values of 0 to 255, brightness, and a factor for each channel."""
    x = image.astype(np.float32) ** generator.uniform(0.9, 1.1) * generator.uniform(*view.brightness) * generator.uniform(0.9, 1.1, 3)
    return np.clip(np.rint(x), 0, 255).astype(np.uint8)


def valid_depth(depth_m: Metres, view: DepthView) -> NDArray[np.bool_]:
    """Return where depth is evaluated (H, W): strictly within the range, and inside Eigen's crop with `nyu_crops`."""
    inside = np.zeros(depth_m.shape, np.bool_)
    inside[scaled_box(_EIGEN, *depth_m.shape) if view.nyu_crops else slice(None)] = True
    return inside & (depth_m > view.min_m) & (depth_m < view.max_m)


def predicted_depth(logits_BKHW: Tensor, size_hw: tuple[int, int], view: DepthView) -> Metres:
    """Return metres (H, W) from the bins of an image and of its mirror image (B = 2).

    Both are averaged at the grid's resolution, then upsampled and clamped to the range.
    """
    depth_B1HW = depth_from_bins(logits_BKHW, view)
    both = (depth_B1HW[:1] + depth_B1HW[1:].flip(-1)) / 2
    upsampled = functional.interpolate(both, size_hw, mode="bilinear")[0, 0]
    metres: Metres = upsampled.clamp(view.min_m, view.max_m).cpu().numpy()
    return metres


def depth_metrics(predicted_m: Metres, truth_m: Metres, counted: NDArray[np.bool_]) -> dict[str, float]:
    """Return rmse (m), abs_rel and delta1 (share within a factor of 1.25) of one image, in float64; NaN without a valid pixel."""
    guess, truth = predicted_m[counted].astype(np.float64), truth_m[counted].astype(np.float64)
    if not len(truth):
        return dict.fromkeys(("rmse", "abs_rel", "delta1"), float("nan"))
    return {
        "rmse": float(np.sqrt(np.mean((guess - truth) ** 2))),
        "abs_rel": float(np.mean(np.abs(guess - truth) / truth)),
        "delta1": float(np.mean(np.maximum(guess / truth, truth / guess) < 1.25)),
    }
