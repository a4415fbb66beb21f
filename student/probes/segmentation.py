"""Semantic segmentation with a linear head, as the official evaluation code measures it: training views, sliding windows, mIoU.

Training (EUPE's config-ade20k-linear): shorter side 512 × a factor in [0.5, 2], crop 512 × 512 in which no class takes more than three
quarters (ten tries), mirror, brightness, contrast, saturation and hue; cross-entropy on logits upsampled to the mask. Inference: shorter
side 512, windows of 512 px every 341 px whose logits are averaged, then upsampled to the mask. The official loop also measures every
5,000 steps and reports the best on the validation set; both numbers are given here, because the best was chosen on what it is measured
on. Two protocols: `official` is the official code's arithmetic (its loss is averaged over all pixels, those that are ignored or padded too,
and masks are resized by torch's "nearest", which takes the pixel at the corner); `ours` averages over the pixels that count and resizes by
Pillow's, which takes the pixel at the centre. Images are uint8 numpy arrays (H, W, 3), masks int (H, W) with classes from 0 and IGNORE,
which is no value that a stored mask can have. Axes: B images, K classes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from ...storage.core.errors import BadInput
from ...storage.sources.decode import Pixels
from ...teachers.encoders.photometric import hue, saturation

IGNORE = -1
STORED_IGNORE = 255  # what most datasets store for "nothing"; only the user's --ignore-index is ever read as that
_CLASSES_AT_ONCE = 16


Mask = NDArray[np.int64]


@dataclass(frozen=True)
class SegmentationView:
    """Sizes of training views and of inference, in pixels."""

    size_px: int = 512
    stride_px: int = 341
    scale: tuple[float, float] = (0.5, 2.0)
    largest_share: float = 0.75
    """No class may take more of a crop, or it is drawn again, ten times at most."""
    flip_probability: float = 0.5
    distort: bool = True


def resize_shorter(image: Pixels, side_px: int, *, nearest: bool = False) -> Pixels:
    """Return an image (H, W, 3) or mask (H, W) with its shorter side at `side_px`, bilinear and antialiased, or nearest."""
    height, width = resized_hw(image.shape[0], image.shape[1], side_px)
    method = Image.Resampling.NEAREST if nearest else Image.Resampling.BILINEAR
    values = image if not nearest else image.astype(np.int32)
    return np.asarray(Image.fromarray(values).resize((width, height), method))


def resized_hw(height: int, width: int, side_px: int) -> tuple[int, int]:
    """Return height and width with the shorter one at `side_px`."""
    longer = int(side_px * max(height, width) / min(height, width) + 0.5)
    return (longer, side_px) if height > width else (side_px, longer)


def resize_mask(mask: Mask, side_px: int, protocol: str) -> Mask:
    """Return a mask with its shorter side at `side_px`, of the size that `resize_shorter` gives its image."""
    if protocol == "ours":
        return resize_shorter(mask, side_px, nearest=True).astype(np.int64)  # type: ignore[arg-type]
    height, width = resized_hw(mask.shape[0], mask.shape[1], side_px)
    values = torch.from_numpy(np.ascontiguousarray(mask))[None, None].float()  # exact: classes are far below 2²⁴
    resized: Mask = functional.interpolate(values, (height, width), mode="nearest")[0, 0].numpy().astype(np.int64)
    return resized


def to_classes(stored: Mask, ignore: int | None, zero_is_ignored: bool) -> Mask:
    """Return classes from 0, and IGNORE, of a mask as stored; with `zero_is_ignored` its classes count from 1 (ADE20k's do)."""
    nothing = np.zeros(stored.shape, np.bool_) if ignore is None else stored == ignore
    if zero_is_ignored:
        return np.where(nothing | (stored == 0), IGNORE, stored - 1)
    return np.where(nothing, IGNORE, stored)


def training_view(
    image: Pixels, mask: Mask, view: SegmentationView, generator: np.random.Generator, protocol: str = "ours"
) -> tuple[Pixels, Mask]:
    """Draw a crop of both, at most `size_px` a side (smaller where the resized image is)."""
    side = int(view.size_px * generator.uniform(*view.scale))
    image, mask = resize_shorter(image, side), resize_mask(mask, side, protocol)
    box = _draw_crop(mask, view, generator)
    image, mask = image[box], mask[box]
    if generator.random() < view.flip_probability:
        image, mask = image[:, ::-1], mask[:, ::-1]
    return (jitter_colours(image, generator) if view.distort else image), mask


def _draw_crop(mask: Mask, view: SegmentationView, generator: np.random.Generator) -> tuple[slice, slice]:
    """Draw a box in which no class takes more than `largest_share`; the eleventh as it comes."""
    for _ in range(11):
        top, left = (int(generator.integers(0, max(side - view.size_px, 0) + 1)) for side in mask.shape)
        box = slice(top, top + view.size_px), slice(left, left + view.size_px)
        counts = np.bincount(mask[box][mask[box] != IGNORE])
        if (counts > 0).sum() > 1 and counts.max() < view.largest_share * counts.sum():
            break
    return box


def jitter_colours(image: Pixels, generator: np.random.Generator) -> Pixels:
    """Draw brightness ± 32, contrast and saturation × [0.5, 1.5], hue ± half a turn, each with probability 0.5; contrast first or last."""

    def contrast(x: Pixels) -> Pixels:
        return _clipped(x * generator.uniform(0.5, 1.5)) if generator.random() < 0.5 else x

    x = _clipped(image + generator.uniform(-32, 32)) if generator.random() < 0.5 else image
    contrast_first = generator.random() < 0.5
    x = contrast(x) if contrast_first else x
    for change, low, high in ((saturation, 0.5, 1.5), (hue, -0.5, 0.5)):
        if generator.random() < 0.5:
            colours = torch.from_numpy(np.require(x, requirements=["C", "W"])).permute(2, 0, 1)[None].float() / 255
            changed = change(colours, torch.tensor([generator.uniform(low, high)], dtype=torch.float32))
            x = _clipped(changed[0].permute(1, 2, 0).numpy() * 255)
    return x if contrast_first else contrast(x)


def _clipped(x: NDArray[Any]) -> Pixels:
    clipped: Pixels = np.clip(x, 0, 255).astype(np.uint8)
    return clipped


def segmentation_loss(logits_BKHW: Tensor, masks_BHW: Tensor, protocol: str = "ours") -> Tensor:
    """Return the cross-entropy of logits upsampled to the masks.

    `official` averages over all pixels, ignored ones as 0; `ours` over those that count. A batch in which nothing counts gives 0, where a
    plain mean would be NaN and the head lost.
    """
    upsampled = functional.interpolate(logits_BKHW, masks_BHW.shape[1:], mode="bilinear")
    counted = masks_BHW.numel() if protocol == "official" else max(1, int((masks_BHW != IGNORE).sum()))
    return functional.cross_entropy(upsampled, masks_BHW, ignore_index=IGNORE, reduction="sum") / counted


def window_starts(side_px: int, window_px: int, stride_px: int) -> list[int]:
    """Return where windows begin along a side: every `stride_px`, the last one moved back to end with the side."""
    count = max(side_px - window_px + stride_px - 1, 0) // stride_px + 1
    return [max(min(number * stride_px + window_px, side_px) - window_px, 0) for number in range(count)]


def slide_inference(image: Pixels, predict: Callable[[Pixels], Tensor], window_px: int, stride_px: int) -> Tensor:
    """Return logits (K, H, W) of an image: the mean over the windows that cover a pixel.

    `predict` maps a window (h, w, 3) to (K, h, w) on the CPU.
    """
    height, width = image.shape[:2]
    total, count = None, torch.zeros(height, width)
    side = min(window_px, height, width) if window_px > max(height, width) else window_px
    for top in window_starts(height, side, stride_px):
        for left in window_starts(width, side, stride_px):
            box = slice(top, top + side), slice(left, left + side)
            logits_Khw = predict(image[box])
            total = torch.zeros(len(logits_Khw), height, width) if total is None else total
            total[:, box[0], box[1]] += logits_Khw
            count[box] += 1
    assert total is not None
    return total / count


def upsampled_argmax(logits_KHW: Tensor, height: int, width: int) -> Mask:
    """Return the class of each pixel after bilinear upsampling; a few classes at a time, so that large images fit."""
    best, classes = torch.full((height, width), -torch.inf), torch.zeros(height, width, dtype=torch.int64)
    for first in range(0, len(logits_KHW), _CLASSES_AT_ONCE):
        part = functional.interpolate(logits_KHW[None, first : first + _CLASSES_AT_ONCE], (height, width), mode="bilinear")[0]
        score, index = part.max(dim=0)
        better = score > best
        best, classes = torch.where(better, score, best), torch.where(better, index + first, classes)
    return classes.numpy()


class Confusion:
    """Counts of (true class, predicted class) over pixels that are not ignored."""

    def __init__(self, classes: int) -> None:
        self.counts = np.zeros((classes, classes), np.int64)

    def add(self, truth: Mask, predicted: Mask) -> None:
        """Count one image; classes beyond the known ones must not occur in the truth."""
        kept, classes = truth != IGNORE, len(self.counts)
        self.counts += np.bincount(truth[kept] * classes + predicted[kept], minlength=classes**2).reshape(classes, classes)

    def metrics(self) -> dict[str, Any]:
        """Return mIoU, pixel accuracy and mean class accuracy in percent, and IoU by class (None where a class never occurs).

        Raises `BadInput` when no pixel was counted.
        """
        if not self.counts.any():
            raise BadInput("no pixel of the validation masks counts, so there is no mIoU; look at --ignore-index and the masks")
        hit, truth, predicted = self.counts.diagonal().astype(float), self.counts.sum(axis=1), self.counts.sum(axis=0)
        union = truth + predicted - hit
        with np.errstate(invalid="ignore"):
            iou, recall = hit / union, hit / truth
        return {
            "miou": 100 * float(np.nanmean(iou)),
            "pixel_accuracy": 100 * float(hit.sum() / self.counts.sum()),
            "mean_accuracy": 100 * float(np.nanmean(recall)),
            "iou_by_class": [None if np.isnan(value) else round(100 * float(value), 4) for value in iou],
        }
