"""Colour jitter, blur and solarisation of recorded views, applied on the device as pure functions of pixels and parameters.

A view's parameters are drawn and stored once; teachers and students that share a view apply the same numbers. The operations are
torchvision's (ITU-R 601 luma, its HSV formulas, reflected borders), each image with its own parameter, in the order of `PARAMETERS`: one
fixed order instead of a drawn one (ours), because a parameter tensor then says everything. They run in fp32 on [0, 1] and round to uint8
once at the end, where Pillow rounds after each, so the two differ by a level or two. A row of zeros, which is what views without
distortion store, gives its image back bit by bit. Axes: B images, H × W pixels, C = 3 colours RGB, P parameters.
"""

import torch
from torch import Tensor
from torch.nn import functional

from ..storage.errors import BadInput

PARAMETERS = ("brightness", "contrast", "saturation", "hue", "blur", "solarize")
"""Columns of the parameter tensor, 0 for nothing each: the three factors less 1, turns of the hue (−0.5 to 0.5), the blur's sigma in px,
and how many of the 256 levels are inverted, from the top (128 for the threshold 128). Further columns are ignored."""
BLUR_KERNEL_PX = 9
_LUMA = (0.299, 0.587, 0.114)


def apply_photometric(pixels_BHWC: Tensor, parameters_BP: Tensor) -> Tensor:
    """uint8 images under each row's distortions, uint8 again, on the same device; raises `BadInput` for other shapes and types."""
    _check(pixels_BHWC, parameters_BP)
    named = dict(zip(PARAMETERS, parameters_BP[:, : len(PARAMETERS)].float().unbind(1), strict=True))
    x_BCHW = pixels_BHWC.permute(0, 3, 1, 2).float() / 255
    for name, distort in (("brightness", brightness), ("contrast", contrast), ("saturation", saturation)):
        x_BCHW = _where(named[name] != 0, distort(x_BCHW, 1 + named[name]), x_BCHW)
    x_BCHW = _where(named["hue"] != 0, hue(x_BCHW, named["hue"]), x_BCHW)
    x_BCHW = _where(named["blur"] > 0, blur(x_BCHW, named["blur"]), x_BCHW)
    x_BCHW = _where(named["solarize"] > 0, solarize(x_BCHW, (256 - named["solarize"]) / 255), x_BCHW)
    return (x_BCHW * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def _check(pixels_BHWC: Tensor, parameters_BP: Tensor) -> None:
    if pixels_BHWC.dtype != torch.uint8 or pixels_BHWC.ndim != 4 or pixels_BHWC.shape[3] != 3:
        raise BadInput(f"photometric distortion takes uint8 pixels (B, H, W, 3), got {pixels_BHWC.dtype} {tuple(pixels_BHWC.shape)}")
    if parameters_BP.ndim != 2 or len(parameters_BP) != len(pixels_BHWC) or parameters_BP.shape[1] < len(PARAMETERS):
        raise BadInput(
            f"{len(pixels_BHWC)} images need photometric parameters ({len(pixels_BHWC)}, {len(PARAMETERS)} or more), "
            f"got {tuple(parameters_BP.shape)}"
        )


def _where(changed_B: Tensor, then_BCHW: Tensor, otherwise_BCHW: Tensor) -> Tensor:
    """Images that a distortion touches, and the others exactly as they were."""
    return torch.where(changed_B[:, None, None, None], then_BCHW, otherwise_BCHW)


def luma(x_BCHW: Tensor) -> Tensor:
    """Grey (B, 1, H, W) of ITU-R 601."""
    weights_C = torch.tensor(_LUMA, device=x_BCHW.device)
    return (x_BCHW * weights_C[:, None, None]).sum(1, keepdim=True)


def blend(x_BCHW: Tensor, other: Tensor, factor_B: Tensor) -> Tensor:
    """factor · x + (1 − factor) · other within [0, 1]."""
    factor = factor_B[:, None, None, None]
    return (factor * x_BCHW + (1 - factor) * other).clamp(0, 1)


def brightness(x_BCHW: Tensor, factor_B: Tensor) -> Tensor:
    """Blend with black."""
    return blend(x_BCHW, torch.zeros_like(x_BCHW), factor_B)


def contrast(x_BCHW: Tensor, factor_B: Tensor) -> Tensor:
    """Blend with the image's mean grey."""
    return blend(x_BCHW, luma(x_BCHW).mean(dim=(1, 2, 3), keepdim=True), factor_B)


def saturation(x_BCHW: Tensor, factor_B: Tensor) -> Tensor:
    """Blend with the grey image."""
    return blend(x_BCHW, luma(x_BCHW), factor_B)


def hue(x_BCHW: Tensor, turns_B: Tensor) -> Tensor:
    """Rotate the hue by a share of a whole turn, saturation and value kept."""
    value, largest = x_BCHW.max(dim=1)
    chroma = value - x_BCHW.min(dim=1).values
    safe = torch.where(chroma > 0, chroma, torch.ones_like(chroma))
    red, green, blue = x_BCHW.unbind(1)
    sixths = torch.stack([((green - blue) / safe) % 6, (blue - red) / safe + 2, (red - green) / safe + 4]).gather(0, largest[None])[0]
    turned = sixths + 6 * turns_B[:, None, None]
    return torch.stack([_channel(turned, start, value, chroma) for start in (5, 3, 1)], dim=1)


def _channel(sixths: Tensor, start: int, value: Tensor, chroma: Tensor) -> Tensor:
    """One colour of HSV: value − chroma · max(0, min(k, 4 − k, 1)) with k = (start + hue) mod 6."""
    place = (start + sixths) % 6
    return value - chroma * torch.minimum(place, 4 - place).clamp(0, 1)


def blur(x_BCHW: Tensor, sigma_B: Tensor) -> Tensor:
    """Gaussian blur of `BLUR_KERNEL_PX` taps with each image's own sigma, borders reflected; sigma 0 counts as no blur."""
    batch, colours, height, _ = x_BCHW.shape
    half = BLUR_KERNEL_PX // 2
    offsets = torch.arange(-half, half + 1, device=x_BCHW.device, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (offsets / sigma_B.clamp_min(1e-3)[:, None]) ** 2)
    kernel_BK = kernel / kernel.sum(1, keepdim=True)
    rows = kernel_BK.repeat_interleave(colours, 0)[:, None, :, None]
    padded = functional.pad(x_BCHW, (half, half, half, half), mode="reflect").reshape(1, batch * colours, height + 2 * half, -1)
    down = functional.conv2d(padded, rows, groups=batch * colours)
    return functional.conv2d(down, rows.transpose(2, 3), groups=batch * colours).reshape(x_BCHW.shape)


def solarize(x_BCHW: Tensor, threshold_B: Tensor) -> Tensor:
    """Invert what is not below the threshold."""
    return torch.where(x_BCHW >= threshold_B[:, None, None, None], 1 - x_BCHW, x_BCHW)
