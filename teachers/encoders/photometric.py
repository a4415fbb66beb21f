"""Colour jitter, blur and solarisation of recorded views, applied on the device as pure functions of pixels and parameters.

A view's parameters are drawn and stored once; teachers and students that share a view apply the same numbers. The operations are
torchvision's (ITU-R 601 luma, its HSV formulas, reflected borders), each image with its own parameter, in the order of `PARAMETERS`: one
fixed order instead of a drawn one (ours), because a parameter tensor then says everything. They run in fp32 on [0, 1] and round to uint8
once at the end, where Pillow rounds after each, so the two differ by a level or two. A row of zeros, which is what views without
distortion store, gives its image back bit by bit. On one device an image comes out the same to the bit in a batch of any size: there is no
convolution and no float reduction whose order could depend on the batch. Between devices a level may differ.
A letterboxed view's parameters say where its image is in four more columns: the image is distorted as it would be alone, with its own mean
grey and its own reflected borders, and the padding keeps its colour.
Axes: B images, H × W pixels, C = 3 colours RGB, P parameters.
"""

import functools
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from ...storage.core.errors import BadInput
from ...storage.views.photometric import COLUMNS, MODES, STORED_COLUMNS

PARAMETERS = COLUMNS
"""Columns of the parameter tensor as `storage.photometric` counts them, 0 for nothing each; further columns are ignored."""
BLUR_SIDE_PX = 256  # the side at which a stored blur is in px; other sides scale it, kernel included
BLUR_KERNEL_PX = 9  # at that side, DINOv3's
PLACE_COLUMNS = 4
"""Behind the stored columns: top, left, bottom, right of a letterboxed image, as shares of the input's height and width."""
_LUMA = (0.299, 0.587, 0.114)
_LUMA_UNITS = 1 << 24  # luma is summed in whole units of this: sums of integers do not depend on their order


def apply_photometric(pixels_BHWC: Tensor, parameters_BP: Tensor) -> Tensor:
    """Return uint8 images with each row's distortions applied, on the same device; raise `BadInput` for other shapes and types.

    Here, and only here, a stored blur becomes px: it counts 1/256 of the view's side, so that one view looks alike at every input size.
    """
    _check(pixels_BHWC, parameters_BP)
    if parameters_BP.shape[1] == STORED_COLUMNS + PLACE_COLUMNS:
        return _inside(pixels_BHWC, parameters_BP)
    return _distorted(pixels_BHWC, parameters_BP, None)


def _inside(pixels_BHWC: Tensor, parameters_BP: Tensor) -> Tensor:
    """Return letterboxed images distorted inside, with their padding as it was."""
    sides = parameters_BP.new_tensor(pixels_BHWC.shape[1:3]).repeat(2)
    box_B4 = (parameters_BP[:, STORED_COLUMNS:] * sides).round().long()
    rows_BH, columns_BW = (_reflected(box_B4[:, axis], box_B4[:, axis + 2], pixels_BHWC.shape[axis + 1]) for axis in (0, 1))
    inside_BHW = _is_inside(box_B4, 0, pixels_BHWC.shape[1])[:, :, None] & _is_inside(box_B4, 1, pixels_BHWC.shape[2])[:, None, :]
    number_B11 = torch.arange(len(pixels_BHWC), device=pixels_BHWC.device)[:, None, None]
    filled_BHWC = pixels_BHWC[number_B11, rows_BH[:, :, None], columns_BW[:, None, :]]  # borders reflected into the padding, for the blur
    return torch.where(inside_BHW[..., None], _distorted(filled_BHWC, parameters_BP, inside_BHW), pixels_BHWC)


def _is_inside(box_B4: Tensor, axis: int, side: int) -> Tensor:
    places = torch.arange(side, device=box_B4.device)
    return (places >= box_B4[:, axis, None]) & (places < box_B4[:, axis + 2, None])


def _reflected(begin_B: Tensor, end_B: Tensor, side: int) -> Tensor:
    """Return which row or column of the image (B, side) stands at each of the input: outside it is mirrored at the image's last one."""
    places, first, last = torch.arange(side, device=begin_B.device)[None], begin_B[:, None], end_B[:, None] - 1
    period = (2 * (last - first)).clamp_min(1)
    offset = (places - first) % period
    return first + torch.minimum(offset, period - offset).clamp(max=last - first)


def _distorted(pixels_BHWC: Tensor, parameters_BP: Tensor, inside_BHW: Tensor | None) -> Tensor:
    """Return each image with its distortions; the mean grey is that of the pixels `inside`, None for all."""
    named = dict(zip(PARAMETERS, parameters_BP[:, : len(PARAMETERS)].float().unbind(1), strict=True))
    x_BCHW = pixels_BHWC.permute(0, 3, 1, 2).float() / 255
    x_BCHW = _select_images(named["brightness"] != 0, brightness(x_BCHW, 1 + named["brightness"]), x_BCHW)
    x_BCHW = _select_images(named["contrast"] != 0, contrast(x_BCHW, 1 + named["contrast"], inside_BHW), x_BCHW)
    x_BCHW = _select_images(named["saturation"] != 0, saturation(x_BCHW, 1 + named["saturation"]), x_BCHW)
    x_BCHW = _select_images(named["hue"] != 0, hue(x_BCHW, named["hue"]), x_BCHW)
    side_px = min(pixels_BHWC.shape[1:3])
    half_px = min(max(1, round(BLUR_KERNEL_PX // 2 * side_px / BLUR_SIDE_PX)), side_px - 1)  # reflection needs a pixel more than that
    x_BCHW = _select_images(named["blur"] > 0, blur(x_BCHW, named["blur"] * (side_px / BLUR_SIDE_PX), half_px), x_BCHW)
    x_BCHW = _select_images(named["solarize"] > 0, solarize(x_BCHW, (256 - named["solarize"]) / 255), x_BCHW)
    return (x_BCHW * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def pixels_seen_by(viewer: Literal["teacher", "student"], mode: str, pixels_BHWC: Tensor, parameters_BP: Tensor) -> Tensor:
    """Return the pixels that a teacher or a student sees under a photometric mode: distorted, or the given tensor itself."""
    distorted = MODES[mode].seen_by_teacher if viewer == "teacher" else MODES[mode].seen_by_student
    return apply_photometric(pixels_BHWC, parameters_BP) if distorted else pixels_BHWC


def _check(pixels_BHWC: Tensor, parameters_BP: Tensor) -> None:
    if pixels_BHWC.dtype != torch.uint8 or pixels_BHWC.ndim != 4 or pixels_BHWC.shape[3] != 3:
        raise BadInput(f"photometric distortion takes uint8 pixels (B, H, W, 3), got {pixels_BHWC.dtype} {tuple(pixels_BHWC.shape)}")
    if parameters_BP.ndim != 2 or len(parameters_BP) != len(pixels_BHWC) or parameters_BP.shape[1] < len(PARAMETERS):
        raise BadInput(
            f"{len(pixels_BHWC)} images need photometric parameters ({len(pixels_BHWC)}, {len(PARAMETERS)} or more), "
            f"got {tuple(parameters_BP.shape)}"
        )


def _select_images(changed_B: Tensor, then_BCHW: Tensor, otherwise_BCHW: Tensor) -> Tensor:
    """Return the distorted images where a distortion applies, and the others unchanged."""
    return torch.where(changed_B[:, None, None, None], then_BCHW, otherwise_BCHW)


def luma(x_BCHW: Tensor) -> Tensor:
    """Return grey (B, 1, H, W) by ITU-R 601."""
    red, green, blue = _LUMA
    return x_BCHW[:, 0:1] * red + x_BCHW[:, 1:2] * green + x_BCHW[:, 2:3] * blue


def blend(x_BCHW: Tensor, other: Tensor, factor_B: Tensor) -> Tensor:
    """Return factor · x + (1 − factor) · other, clamped to [0, 1]."""
    factor = factor_B[:, None, None, None]
    return (factor * x_BCHW + (1 - factor) * other).clamp(0, 1)


def brightness(x_BCHW: Tensor, factor_B: Tensor) -> Tensor:
    """Blend with black."""
    return blend(x_BCHW, torch.zeros_like(x_BCHW), factor_B)


def contrast(x_BCHW: Tensor, factor_B: Tensor, inside_BHW: Tensor | None = None) -> Tensor:
    """Blend with the image's mean grey: that of the pixels `inside`, or of all."""
    units_B1HW = (luma(x_BCHW) * _LUMA_UNITS).round().long()
    count: int | Tensor = x_BCHW.shape[2] * x_BCHW.shape[3]
    if inside_BHW is not None:
        units_B1HW, count = units_B1HW * inside_BHW[:, None], inside_BHW.sum(dim=(1, 2))[:, None, None, None]
    mean = units_B1HW.sum(dim=(1, 2, 3), keepdim=True).double() / (_LUMA_UNITS * count)
    return blend(x_BCHW, mean.float(), factor_B)


def saturation(x_BCHW: Tensor, factor_B: Tensor) -> Tensor:
    """Blend with the grey image."""
    return blend(x_BCHW, luma(x_BCHW), factor_B)


def hue(x_BCHW: Tensor, turns_B: Tensor) -> Tensor:
    """Rotate the hue by a fraction of a whole turn; saturation and value stay."""
    value, largest = x_BCHW.max(dim=1)
    chroma = value - x_BCHW.min(dim=1).values
    safe = torch.where(chroma > 0, chroma, torch.ones_like(chroma))
    red, green, blue = x_BCHW.unbind(1)
    sixths = torch.stack([((green - blue) / safe) % 6, (blue - red) / safe + 2, (red - green) / safe + 4]).gather(0, largest[None])[0]
    turned = sixths + 6 * turns_B[:, None, None]
    return torch.stack([_channel(turned, start, value, chroma) for start in (5, 3, 1)], dim=1)


def _channel(sixths: Tensor, start: int, value: Tensor, chroma: Tensor) -> Tensor:
    """Return one colour of HSV: value − chroma · max(0, min(k, 4 − k, 1)) with k = (start + hue) mod 6."""
    k = (start + sixths) % 6
    return value - chroma * torch.minimum(k, 4 - k).clamp(0, 1)


def blur(x_BCHW: Tensor, sigma_px_B: Tensor, half_px: int) -> Tensor:
    """Return a Gaussian blur of 2 · half + 1 taps with each image's own sigma, borders reflected; sigma 0 means no blur."""
    offsets = torch.arange(-half_px, half_px + 1, device=x_BCHW.device, dtype=torch.float64)
    weights_BK = torch.exp(-0.5 * (offsets / sigma_px_B.double().clamp_min(1e-3)[:, None]) ** 2)
    taps_KB = (weights_BK / weights_BK.sum(1, keepdim=True)).float().unbind(1)  # fp64 until here: its last bits may depend on the batch
    down = _blurred_along(2, functional.pad(x_BCHW, (0, 0, half_px, half_px), mode="reflect"), taps_KB)
    return _blurred_along(3, functional.pad(down, (half_px, half_px, 0, 0), mode="reflect"), taps_KB)


def _blurred_along(axis: int, padded_BCHW: Tensor, taps_KB: Sequence[Tensor]) -> Tensor:
    """Return the weighted sum of shifted images: the algorithm of a convolution, and so its rounding, would depend on the batch."""
    length = padded_BCHW.shape[axis] - len(taps_KB) + 1
    parts = (padded_BCHW.narrow(axis, offset, length) * tap_B[:, None, None, None] for offset, tap_B in enumerate(taps_KB))
    return functools.reduce(torch.add, parts)


def solarize(x_BCHW: Tensor, threshold_B: Tensor) -> Tensor:
    """Invert values at or above the threshold."""
    return torch.where(x_BCHW >= threshold_B[:, None, None, None], 1 - x_BCHW, x_BCHW)
