"""Patch tokens of pictures of any size, for the dense evaluations: padded after normalisation, as official code does.

A side that the encoder's stride does not divide is padded with zeros on both ends up to the next multiple, and the tokens cover the
padded picture (DINOv2's centre padding; the official code does not cut the tokens back either). Pictures that are smaller than the
largest of their batch are padded below and to the right, where the target is to be ignored. Axes: B pictures, H × W grid, D channels.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ..teachers.teacher import Teacher

Pixels = NDArray[np.uint8]


def stacked(pictures: Sequence[Pixels], side_hw: tuple[int, int] | None = None) -> tuple[Pixels, list[tuple[int, int]]]:
    """Pictures (h, w, 3) in one array (B, H, W, 3), zeros below and to the right, and their own sizes; `side_hw` is the least H and W."""
    sizes = [(picture.shape[0], picture.shape[1]) for picture in pictures]
    largest = [max(side, *(size[axis] for size in sizes)) for axis, side in enumerate(side_hw or (0, 0))]
    pixels = np.zeros((len(pictures), *largest, 3), np.uint8)
    for place, picture in enumerate(pictures):
        pixels[place, : picture.shape[0], : picture.shape[1]] = picture
    return pixels, sizes


@torch.no_grad()
def patch_tokens(teacher: Teacher, pixels_BHWC: Pixels, sizes: Sequence[tuple[int, int]]) -> Tensor:
    """(B, H, W, D) fp32 on the model's device; beyond each picture's own size the encoder sees zeros, the mean colour."""
    x_BCHW = teacher.spec.preprocessing.apply(torch.from_numpy(pixels_BHWC).to(teacher.device)).contiguous()
    for place, (height, width) in enumerate(sizes):
        x_BCHW[place, :, height:] = 0
        x_BCHW[place, :, :, width:] = 0
    stride, (height, width) = teacher.encoder.stride_px, x_BCHW.shape[-2:]
    missing_h, missing_w = -height % stride, -width % stride
    if missing_h or missing_w:
        x_BCHW = functional.pad(x_BCHW, (missing_w // 2, missing_w - missing_w // 2, missing_h // 2, missing_h - missing_h // 2))
    with torch.autocast(teacher.device.type, torch.bfloat16, enabled=teacher.spec.precision == "bf16"):
        patch_BHWD: Tensor = teacher.encoder(x_BCHW.contiguous(memory_format=torch.channels_last))[1]
    return patch_BHWD.float()
