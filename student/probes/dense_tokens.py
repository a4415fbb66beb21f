"""Patch tokens of pictures of any size, for the dense evaluations: padded after normalisation, as official code does.

A side that the encoder's stride does not divide is padded with zeros on both ends up to the next multiple, and the tokens cover the
padded picture (DINOv2's centre padding; the official code does not cut the tokens back either). Pictures that are smaller than the
largest of their batch are padded below and to the right, where the target is to be ignored.

Two habits of the official probes are options here. Their ConvNeXts are padded to a multiple of 4, their stem's stride, and not of
32: what is left over at 32 has no token. And their encoder is in training mode while the head learns, so that its rotary embedding draws a
scale a forward; batch norms stay in eval mode here, because theirs has none and a moving statistic would change the frozen encoder.
Axes: B pictures, H × W grid, D channels.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from ...storage.core.errors import BadInput
from ...teachers.encoders.encoder import ConvNextEncoder, Encoder
from ...teachers.registry.teacher import Teacher
from ...teachers.runtime.devices import mixed_precision

Pixels = NDArray[np.uint8]
CONVNEXT_STEM_PX = 4


def stacked(pictures: Sequence[Pixels], side_hw: tuple[int, int] | None = None) -> tuple[Pixels, list[tuple[int, int]]]:
    """Stack pictures (h, w, 3) into (B, H, W, 3), zeros below and to the right; returns their own sizes too. `side_hw` is the least H and
    W.
    """
    sizes = [(picture.shape[0], picture.shape[1]) for picture in pictures]
    largest = [max(side, *(size[axis] for size in sizes)) for axis, side in enumerate(side_hw or (0, 0))]
    pixels = np.zeros((len(pictures), *largest, 3), np.uint8)
    for index, picture in enumerate(pictures):
        pixels[index, : picture.shape[0], : picture.shape[1]] = picture
    return pixels, sizes


@contextmanager
def training_mode(encoder: Encoder, on: bool) -> Iterator[None]:
    """Put the encoder into training mode, batch norms excepted, for a `with`; it is in eval mode after it, whatever happens."""
    encoder.train(on)
    for module in encoder.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    try:
        yield
    finally:
        encoder.eval()


def padding_px(encoder: Encoder, official: bool) -> int:
    """Return the number that the sides of an input are padded to a multiple of: the stride; by the official depth probe a ConvNeXt's
    stem.
    """
    return CONVNEXT_STEM_PX if official and isinstance(encoder, ConvNextEncoder) else encoder.stride_px


@torch.no_grad()
def patch_tokens(teacher: Teacher, pixels_BHWC: Pixels, sizes: Sequence[tuple[int, int]], multiple_px: int | None = None) -> Tensor:
    """Compute tokens (B, H, W, D), fp32 on the model's device; beyond each picture's own size the encoder sees zeros, the mean colour.

    Sides are padded to a multiple of `multiple_px`, by default the stride; by a smaller one the rest beyond the last whole token is lost.
    """
    x_BCHW = teacher.spec.preprocessing.apply(torch.from_numpy(pixels_BHWC).to(teacher.device)).contiguous()
    for index, (height, width) in enumerate(sizes):
        x_BCHW[index, :, height:] = 0
        x_BCHW[index, :, :, width:] = 0
    stride, (height, width) = teacher.encoder.stride_px, x_BCHW.shape[-2:]
    missing_h, missing_w = -height % (multiple_px or stride), -width % (multiple_px or stride)
    if missing_h or missing_w:
        x_BCHW = functional.pad(x_BCHW, (missing_w // 2, missing_w - missing_w // 2, missing_h // 2, missing_h - missing_h // 2))
    grid = x_BCHW.shape[2] // stride, x_BCHW.shape[3] // stride
    with mixed_precision(teacher.device, teacher.spec.precision):
        patch_BHWD = teacher.encoder.tokens(x_BCHW.contiguous(memory_format=torch.channels_last), grid).patch_BHWD
    if not bool(torch.isfinite(patch_BHWD).all()):  # an argmax over NaN is class 0: a figure without a meaning
        raise BadInput(f"{teacher.spec.name} gives tokens that are not finite, of which a figure would mean nothing; look at its weights")
    return patch_BHWD.float()
