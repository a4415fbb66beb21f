"""Encoders: pixels in, normed class and patch tokens out; the two trainable families, built by timm.

Axes: B images, H and W patches, C and D channels. `Encoder` is the one interface that students train and that teachers
freeze. A ViT's tokens have passed the final norm; its class token is the learnt one, the registers are dropped. A
ConvNeXt's class token is norm(mean of the last map), its patch tokens norm(map): 8×8 at 256 px, as the official hub does.
timm leaves the coordinate rescale of EUPE's rotary embedding off and pools by average; both are set here, and `EupeVit` has
what timm's ViT does otherwise than the official code. Any input whose sides are multiples of the stride works. The state
dict is timm's with the prefix `backbone.`.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...storage.core.errors import BadInput
from ..runtime.timm_import import import_timm
from .architectures import Facts, Options
from .preprocessing import Preprocessing
from .tokens import LayerTokens, Tokens

import_timm()

from timm.layers import LayerNorm  # noqa: E402 - only after import_timm
from timm.models._manipulate import checkpoint  # noqa: E402
from timm.models.convnext import ConvNeXt  # noqa: E402
from timm.models.eva import Eva  # noqa: E402
from timm.models.vision_transformer import VisionTransformer  # noqa: E402

NATIVE_SIZE_PX = 256


class Encoder(nn.Module):
    """Preprocessed float pixels (B, 3, h, w) → Tokens; the sides must be multiples of `stride_px`.

    `architecture` is canonical and JSON-able, `width` the channels of the patch tokens, `cls` what serves as class token,
    `preprocessing` how the pixels were meant to be made.
    """

    def __init__(self, backbone: nn.Module, architecture: Options, *, width: int, stride_px: int, cls: str, prep: Preprocessing) -> None:
        super().__init__()
        self.backbone = backbone
        self.architecture = architecture
        self.width = width
        self.stride_px = stride_px
        self.cls = cls
        self.preprocessing = prep
        self.class_parameters: tuple[str, ...] = ()
        """Those of the backbone that only its class token depends on: where no teacher has one, nothing trains them."""

    @property
    def cls_width(self) -> int:
        """Return the channels of the class token: those of the patch tokens, unless the architecture states others."""
        return int(self.architecture.get("cls_width", self.width))

    def grid(self, height_px: int, width_px: int) -> tuple[int, int]:
        """Return (rows, columns) of patch tokens; raise BadInput unless both sides are multiples of the stride."""
        stride = self.stride_px
        if height_px % stride or width_px % stride or not height_px or not width_px:
            raise BadInput(f"an input of {height_px}×{width_px} px is not a multiple of this encoder's {stride} px stride")
        return height_px // stride, width_px // stride

    def tokens(self, pixels_BCHW: Tensor, grid: tuple[int, int]) -> Tokens:
        """Return the tokens of a batch, by the family's own forward."""
        raise NotImplementedError

    def forward(self, pixels_BCHW: Tensor) -> Tokens:
        """Return the tokens of a batch; raise BadInput on sides that the stride does not divide."""
        return self.tokens(pixels_BCHW, self.grid(*pixels_BCHW.shape[-2:]))

    @property
    def depth(self) -> int:
        """Return how many blocks there are whose tokens `with_layers` gives; 0 for an encoder that gives its final tokens alone."""
        return 0

    def with_layers(self, pixels_BCHW: Tensor, layers: Sequence[int]) -> LayerTokens:
        """Return the tokens of a batch and those of some blocks, counted from 1, in evaluation mode; where `depth` is not 0."""
        raise NotImplementedError


class FeaturesEncoder(Encoder):
    """An encoder whose tokens follow from the features of timm's backbone; one whose backbone is a ViT gives intermediate layers."""

    def features(self, pixels_BCHW: Tensor) -> Tensor:
        """Return the backbone's features: a sequence (B, N, D), or a map."""
        return self.backbone.forward_features(pixels_BCHW)  # type: ignore[no-any-return, operator]

    def of_features(self, features: Tensor, grid: tuple[int, int]) -> Tokens:
        """Return the tokens that are in the features."""
        raise NotImplementedError

    def tokens(self, pixels_BCHW: Tensor, grid: tuple[int, int]) -> Tokens:
        """Return cls (B, D') or None, patch (B, H, W, D)."""
        return self.of_features(self.features(pixels_BCHW), grid)

    @property
    def depth(self) -> int:
        """Return the blocks of a ViT, whose tokens lie on one grid and have one width from the first to the last."""
        return len(self.backbone.blocks) if isinstance(self.backbone, VisionTransformer | Eva) else 0

    def with_layers(self, pixels_BCHW: Tensor, layers: Sequence[int]) -> LayerTokens:
        """Return the tokens of a batch and those of some blocks, as timm's `forward_intermediates(norm=True)` gives them."""
        grid, backbone = self.grid(*pixels_BCHW.shape[-2:]), self.backbone
        features, intermediates = backbone.forward_intermediates(  # type: ignore[operator]
            pixels_BCHW, indices=[layer - 1 for layer in layers], norm=True, output_fmt="NLC"
        )
        of_layers = {layer: torch.unflatten(patch_BND, 1, grid) for layer, patch_BND in zip(sorted(layers), intermediates, strict=True)}
        return LayerTokens(self.of_features(features, grid), of_layers)


class VitEncoder(FeaturesEncoder):
    """DINOv3-style ViT with registers and rotary position embedding."""

    def of_features(self, features: Tensor, grid: tuple[int, int]) -> Tokens:
        """Return cls (B, D) and patch (B, H, W, D), both after the final norm."""
        patch_BND = features[:, 1 + self.architecture["registers"] :]
        return Tokens(features[:, 0], torch.unflatten(patch_BND, 1, grid))  # no len(): an exported graph keeps the batch open


class EupeVit(Eva):  # type: ignore[misc] # timm is untyped
    """timm's ViT with the official code's random weights and draws: std 0.02 at every depth, a rescale of positions for each block.

    timm divides the weights that end block n by √(2n), 0.004 instead of 0.020 in the twelfth, and draws one rescale a forward pass.
    """

    draws_in_each_block = True

    def fix_init_weight(self) -> None:
        """Leave the weights as they were drawn."""

    def forward_features(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Return tokens (B, N, D) after the norm."""
        if not (self.training and self.draws_in_each_block):
            tokens_BND: Tensor = super().forward_features(x, attn_mask, is_causal)
            return tokens_BND
        x_BHWD = self.patch_embed(x)
        x_BND, rope = self._pos_embed(x_BHWD)  # the first block's draw
        x_BND = self.norm_pre(x_BND)
        for number, block in enumerate(self.blocks):
            rope = self.rope.get_embed(shape=x_BHWD.shape[1:3]) if number else rope
            x_BND = checkpoint(block, x_BND, rope=rope) if self.grad_checkpointing else block(x_BND, rope=rope)
        normed: Tensor = self.norm(x_BND)
        return normed


class ConvNextEncoder(Encoder):
    """ConvNeXt with one norm for the pooled vector and for every position."""

    def tokens(self, pixels_BCHW: Tensor, grid: tuple[int, int]) -> Tokens:
        """Return cls (B, D) = norm(mean), patch (B, H, W, D) = norm(map)."""
        x_BCHW: Tensor = self.backbone.forward_features(pixels_BCHW)  # type: ignore[operator]
        norm: Any = self.backbone.head.norm
        normed = partial(F.layer_norm, normalized_shape=(self.width,), weight=norm.weight, bias=norm.bias, eps=norm.eps)
        return Tokens(normed(x_BCHW.mean(dim=(2, 3))), normed(x_BCHW.permute(0, 2, 3, 1)))


def _vit_backbone(options: Options) -> nn.Module:
    rescale = options["rope_rescale"]
    backbone: nn.Module = EupeVit(
        img_size=16 * options["patch_px"],  # only a default: dynamic_img_size takes any
        patch_size=options["patch_px"],
        dynamic_img_size=True,
        num_classes=0,
        global_pool="token",
        embed_dim=options["width"],
        depth=options["depth"],
        num_heads=options["heads"],
        qkv_bias=options["qkv_bias"],
        mlp_ratio=(options["mlp_hidden"] + 0.5) / options["width"],  # timm truncates width * ratio: half a channel spare
        swiglu_mlp=options["mlp"] == "swiglu",
        swiglu_align_to=8,
        init_values=options["layer_scale"],
        num_reg_tokens=options["registers"],
        use_abs_pos_emb=False,
        use_rot_pos_emb=True,
        rope_type="dinov3",
        rope_rotate_half=True,
        rope_temperature=options["rope_base"],
        rope_rescale_coords=None if rescale == 1 else float(rescale),
        use_fc_norm=False,
        norm_layer=partial(LayerNorm, eps=options["norm_eps"]),
    )
    return backbone


def _convnext_backbone(options: Options) -> nn.Module:
    backbone: nn.Module = ConvNeXt(
        num_classes=0,
        depths=tuple(options["depths"]),
        dims=tuple(options["widths"]),
        ls_init_value=options["layer_scale"],
        norm_eps=options["norm_eps"],
    )
    return backbone


def build_vit(options: Options, known: Facts) -> VitEncoder:
    """Return a ViT of ours, randomly initialised, from its full options."""
    prep = Preprocessing(size_px=NATIVE_SIZE_PX)
    return VitEncoder(_vit_backbone(options), options, width=known.width, stride_px=known.stride_px, cls=known.cls, prep=prep)


def build_convnext(options: Options, known: Facts) -> ConvNextEncoder:
    """Return a ConvNeXt of ours, randomly initialised, from its full options."""
    prep = Preprocessing(size_px=NATIVE_SIZE_PX)
    return ConvNextEncoder(_convnext_backbone(options), options, width=known.width, stride_px=known.stride_px, cls=known.cls, prep=prep)
