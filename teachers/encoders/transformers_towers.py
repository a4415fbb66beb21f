"""Vision towers of transformers as teachers (`hf:FOLDER`): which kinds there are, and how each one's outputs become tokens.

Patch tokens have passed the final norm in every family that has one, as timm's have. C-RADIO's class token is the summary that its own code
gives: the class tokens of some of its teachers, one after the other. SAM 3 has no class token; its tokens are those of its ViT, before the
neck. SigLIP 2 of fixed size calls itself `siglip`; its NaFlex form (`siglip2`) gets a square image's patches, as many as its processor
allows. Folders are read in `checkpoints.transformers_models`.
"""

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from .frozen import FrozenEncoder
from .tokens import Tokens

RADIO, SAM3 = "radio", "sam3_vit_model"


class Family(NamedTuple):
    """How one kind of model is built and read."""

    model: str
    """Class in transformers."""
    cls: str
    """What serves as class token."""
    two_towers: bool = False
    """Whether the config and the checkpoint may hold a text tower beside it."""
    takes_patches: bool = False
    """Whether it wants patches and the grid's shape in the place of an image."""


FAMILIES: dict[str, Family] = {
    "dinov3_vit": Family("DINOv3ViTModel", "class token"),
    "dinov2": Family("Dinov2Model", "class token"),
    "dinov2_with_registers": Family("Dinov2WithRegistersModel", "class token"),
    "siglip_vision_model": Family("SiglipVisionModel", "attention pool", True),
    "siglip2_vision_model": Family("Siglip2VisionModel", "attention pool", True, True),
    "clip_vision_model": Family("CLIPVisionModel", "class token", True),
    RADIO: Family("RadioModel", "concatenated class tokens"),
    SAM3: Family("Sam3ViTModel", "none"),
}


class HfEncoder(FrozenEncoder):
    """A vision tower of transformers; tokens after the final norm."""

    def tokens(self, pixels_BCHW: Tensor, grid: tuple[int, int]) -> Tokens:
        """Return cls (B, D') or None, patch (B, H, W, D)."""
        return self._of_output(self._output(pixels_BCHW, grid), grid)

    def _output(self, pixels_BCHW: Tensor, grid: tuple[int, int], **options: bool) -> Any:
        kind, backbone = self.architecture["model_type"], cast(Any, self.backbone)
        if kind == SAM3:
            _fit_positions(backbone, *pixels_BCHW.shape[-2:])
        if FAMILIES[kind].takes_patches:
            return backbone(**_patches(pixels_BCHW, grid), **options)
        resample = {"interpolate_pos_encoding": True} if FAMILIES[kind].two_towers else {}
        return backbone(pixel_values=pixels_BCHW, **resample, **options)

    def _of_output(self, output: Any, grid: tuple[int, int]) -> Tokens:
        states: Tensor = output.last_hidden_state
        if self.architecture["model_type"] == "clip_vision_model":
            backbone = cast(Any, self.backbone)
            states = getattr(backbone, "vision_model", backbone).post_layernorm(states)
        patch_BHWD = _grid(states, grid)
        if self.cls == "none":
            return Tokens(None, patch_BHWD)
        pooled = {"attention pool": "pooler_output", "concatenated class tokens": "summary"}.get(self.cls)
        return Tokens(states[:, 0] if pooled is None else getattr(output, pooled), patch_BHWD)


def _grid(states: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the patch tokens (B, H, W, D) at the end of a sequence."""
    count = grid[0] * grid[1]
    return states[:, states.shape[1] - count :].reshape(len(states), *grid, states.shape[-1])


def _fit_positions(vit: Any, height_px: int, width_px: int) -> None:
    """Give the layers with global attention the rotary positions that SAM 3's ViT has when it is built for this size of image."""
    if vit.config.image_size in (height_px if height_px == width_px else None, (height_px, width_px)):
        return
    vit.config.image_size = (height_px, width_px)
    for layer in vit.layers:
        layer.position_ids = layer.precompute_positions(vit.config, layer.window_size).to(layer.position_ids.device)


def _patches(pixels_BCHW: Tensor, grid: tuple[int, int]) -> dict[str, Tensor]:
    """Return the inputs of a NaFlex model: patches (B, N, p·p·C), a mask of ones, and each image's grid (B, 2)."""
    images, channels, height, width = pixels_BCHW.shape
    rows, columns = grid
    cut = pixels_BCHW.reshape(images, channels, rows, height // rows, columns, width // columns).permute(0, 2, 4, 3, 5, 1)
    patches_BNP = cut.reshape(images, rows * columns, -1)
    shapes = pixels_BCHW.new_tensor([grid] * images, dtype=torch.int64)
    return {
        "pixel_values": patches_BNP, "pixel_attention_mask": shapes.new_ones((images, rows * columns)), "spatial_shapes": shapes,
    }  # fmt: skip
