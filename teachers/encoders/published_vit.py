"""ViTs in the layouts that RADIOv2.5 (NVIDIA) and DUNE (NAVER) are published in, which neither timm nor transformers builds.

Names, shapes and what is computed are facts from their code (NVlabs/RADIO: vit_patch_generator, radio_model; naver/dune: DINOv2's ViT
with registers); nothing of it is copied. Both are timm's blocks behind a patch embedding with learnt positions and prefix tokens:

- radio: patches without bias, a grid of positions for 2048 px that is stretched bilinearly to a square of the longer side (corners on
  corners) and cut; a class token for each teacher of RADIO, then registers; no final norm. What stands for the picture, the summary, is the
  class tokens of some teachers, one after the other.
- radio-dinov2: RADIOv2.5-g, DINOv2's giant ViT (`dinov2_arch`) behind RADIO's patches and positions: patches with bias, one class token
  before four registers, a gated MLP (SwiGLU), a final norm.
- dune: DINOv2's: one class token with a position of its own, registers without one, positions stretched by a bicubic filter with DINOv2's
  offset of a tenth of a patch, a final norm.

A file is read as published: as the state dict, in transformers' wrapping, or with training's heads, which are left out by rule. Every other
tensor is used or named. Axes: B images, N tokens, D channels.
"""

import re
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...storage.core.errors import BadInput
from ..runtime.timm_import import import_timm
from .architectures import Options
from .frozen import FrozenEncoder
from .preprocessing import CLIP_MEAN, CLIP_STD, Preprocessing
from .tokens import Tokens

import_timm()

from timm.layers import GluMlp  # noqa: E402 - only after import_timm
from timm.models.vision_transformer import Block  # noqa: E402

PUBLISHED_VIT = "published-vit"
_DINOV2_OFFSET = 0.1  # of a patch
_ROUNDED = 2.0**-7  # constants in a checkpoint of bf16
_RADIO_HEADS = re.compile(r"(radio_model\.)?(adaptors|_heads|_feature_projections)\.")
RADIO_LAYOUTS = ("radio", "radio-dinov2")
_RADIO_PREFIX = re.compile(r"^(radio_model\.model\.|base_model\.|model\.)(?=inner\.|patch_generator\.|blocks\.|norm\.|head\.)")
_INNER_UNUSED = re.compile(r"((radio_model\.)?model\.|base_model\.)?(inner\.mask_token|(?<=model\.)input_conditioner\.norm_(mean|std))")
_DUNE_HEADS = re.compile(r"(projectors|teacher_norms)\.|(encoder\.)?mask_token$")


def published_vit(
    layout: str, width: int, depth: int, heads: int, *, patch_px: int, side: int, cls_tokens: int = 1, registers: int = 4,
    summary: tuple[int, ...] = (0,), gated: int | None = None,
) -> Options:  # fmt: skip
    """Return the architecture record: `side` rows and columns of stored positions, `summary` the class tokens that are one.

    `gated` is the width within a gated MLP; None: a plain one of four times the width.
    """
    several = len(summary) > 1
    return {
        "name": PUBLISHED_VIT, "layout": layout, "width": width, "depth": depth, "heads": heads, "stride_px": patch_px, "side": side,
        "cls_tokens": cls_tokens, "registers": registers, "summary": list(summary), "cls_width": width * len(summary),
        "cls": "concatenated class tokens" if several else "class token", **({} if gated is None else {"gated": gated}),
    }  # fmt: skip


def _gated(hidden: int, in_features: int, **values: Any) -> nn.Module:
    """Return DINOv2's gated MLP, `w3(silu(w1 x) · w2 x)` with w1 and w2 in one layer, as timm's block asks for its MLP."""
    mlp: nn.Module = GluMlp(in_features, 2 * hidden, act_layer=nn.SiLU, gate_last=False, drop=values.get("drop", 0.0))
    return mlp


class PublishedVit(nn.Module):
    """Normalised pixels (B, 3, h, w) → tokens (B, prefix + N, D)."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        width, patch_px, radio = options["width"], options["stride_px"], options["layout"] == "radio"
        self._side, self._radio = options["side"], options["layout"] in RADIO_LAYOUTS
        self.patch_embed = nn.Conv2d(3, width, patch_px, stride=patch_px, bias=not radio)
        self.pos_embed = nn.Parameter(torch.randn(1, self._side**2, width) * width**-0.5)
        self.prefix = nn.Parameter(torch.randn(1, options["cls_tokens"] + options["registers"], width) * width**-0.5)
        norm = partial(nn.LayerNorm, eps=1e-6)
        mlp = {} if options.get("gated") is None else {"mlp_layer": partial(_gated, options["gated"])}
        block = partial(Block, width, options["heads"], qkv_bias=True, init_values=1.0, norm_layer=norm, **mlp)
        self.blocks = nn.Sequential(*(block() for _ in range(options["depth"])))
        self.norm = nn.Identity() if radio else norm(width)

    def forward_features(self, pixels_BCHW: Tensor) -> Tensor:
        """Return prefix and patch tokens, after the final norm where there is one."""
        x_BCHW: Tensor = self.patch_embed(pixels_BCHW)
        x_BND = (x_BCHW + self._positions(*x_BCHW.shape[-2:])).flatten(2).transpose(1, 2)
        x_BND = torch.cat([self.prefix.expand(len(x_BND), -1, -1), x_BND], dim=1)
        tokens_BND: Tensor = self.norm(self.blocks(x_BND))
        return tokens_BND

    def _positions(self, rows: int, columns: int) -> Tensor:
        """Return the stored positions for a grid, (1, D, rows, columns)."""
        stored: Tensor = torch.unflatten(self.pos_embed, 1, (self._side, self._side)).permute(0, 3, 1, 2)
        if rows == columns == self._side:
            return stored
        if self._radio:
            longer = max(rows, columns)
            square = functional.interpolate(stored, (longer, longer), mode="bilinear", align_corners=True)
            return square[..., :rows, :columns]
        scale = [(count + _DINOV2_OFFSET) / self._side for count in (rows, columns)]
        return functional.interpolate(stored, scale_factor=scale, mode="bicubic", antialias=False)


class PublishedVitEncoder(FrozenEncoder):
    """A `PublishedVit` behind our interface."""

    def tokens(self, pixels_BCHW: Tensor, grid: tuple[int, int]) -> Tokens:
        """Return cls (B, D') = the summary's class tokens, patch (B, H, W, D)."""
        features_BND, options = self.features(pixels_BCHW), self.architecture
        prefix = options["cls_tokens"] + options["registers"]
        patch_BHWD = torch.unflatten(features_BND[:, prefix:], 1, grid)
        return Tokens(features_BND[:, options["summary"]].flatten(1), patch_BHWD)

    def from_published(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the module's tensors of a published file; raise `BadInput` for one of another kind."""
        read = _from_radio if self.architecture["layout"] in RADIO_LAYOUTS else _from_dune
        return _with_layer_scale(read(tensors, self.architecture), self.architecture)


def build_published_vit(architecture: Options) -> PublishedVitEncoder:
    """Return the encoder with random weights."""
    prep = Preprocessing(architecture["side"] * architecture["stride_px"])  # the spec's replaces it
    return PublishedVitEncoder(
        PublishedVit(architecture), architecture, width=architecture["width"], stride_px=architecture["stride_px"],
        cls=architecture["cls"], prep=prep,
    )  # fmt: skip


def _from_radio(tensors: dict[str, Tensor], options: Options) -> dict[str, Tensor]:
    """RADIO's names: `patch_generator.…` and timm's blocks, with or without a prefix; layer scale is `grandma` or `gamma`.

    In RADIOv2.5-g they lie in `inner.`, beside a mask token and constants that its forward pass does not use; its MLPs are DINOv2's.
    """
    inner, named = options["layout"] == "radio-dinov2", dict[str, Tensor]()
    for published, tensor in tensors.items():
        if _RADIO_HEADS.match(published) or (inner and _INNER_UNUSED.fullmatch(published)):
            continue
        name = _RADIO_PREFIX.sub("", published).removeprefix("radio_model.")
        if name.startswith("input_conditioner."):
            _check_constants(name, tensor)
        elif name == "summary_idxs":
            if tensor.tolist() != options["summary"]:
                raise BadInput(f"the summary of this file is of the class tokens {tensor.tolist()}, expected {options['summary']}")
        else:
            name = name.removeprefix("inner.") if inner else name
            ours = _RADIO_NAMES.get(name, name).replace(".grandma", ".gamma")
            ours = ours.replace(".mlp.w12.", ".mlp.fc1.").replace(".mlp.w3.", ".mlp.fc2.") if inner else ours
            if ours in named:
                raise BadInput(f"this file has two tensors for one place: {published} is the second that is our {ours}")
            named[ours] = _radio_shape(name, tensor)
    return named


_RADIO_NAMES = {
    "patch_generator.embedder.weight": "patch_embed.weight", "patch_generator.embedder.bias": "patch_embed.bias",
    "patch_generator.pos_embed": "pos_embed", "patch_generator.cls_token.token": "prefix",
}  # fmt: skip


def _radio_shape(name: str, tensor: Tensor) -> Tensor:
    if name == "patch_generator.embedder.weight" and tensor.ndim == 2:  # a linear layer over (channel, row, column)
        side = round((tensor.shape[1] / 3) ** 0.5)
        return tensor.reshape(len(tensor), 3, side, side) if 3 * side**2 == tensor.shape[1] else tensor
    return tensor[None] if name == "patch_generator.cls_token.token" else tensor


def _check_constants(name: str, tensor: Tensor) -> None:
    """Raise `BadInput` unless the file normalises pixels as the preprocessing does."""
    wanted = {"input_conditioner.norm_mean": CLIP_MEAN, "input_conditioner.norm_std": CLIP_STD}.get(name)
    if wanted is None or not torch.allclose(tensor.float().flatten(), torch.tensor(wanted), rtol=_ROUNDED, atol=0):
        raise BadInput(f"{name} of this file is {tensor.flatten().tolist()[:3]}, expected CLIP's constants {wanted}")


def _from_dune(tensors: dict[str, Tensor], options: Options) -> dict[str, Tensor]:
    """DUNE's names: those of DINOv2 behind `encoder.`, with the blocks in one chunk; the class token's position is added to it."""
    plain = {name.replace("module.", "").replace("_orig_mod.", ""): tensor for name, tensor in tensors.items()}
    kept = {name: tensor for name, tensor in plain.items() if not _DUNE_HEADS.match(name)}
    named = {
        re.sub(r"^blocks\.\d+\.(?=\d+\.)", "blocks.", name.removeprefix("encoder.")).replace("patch_embed.proj.", "patch_embed."): tensor
        for name, tensor in kept.items()
    }  # fmt: skip
    if len(named) < len(kept) or len(plain) < len(tensors):
        raise BadInput(
            f"this file has two tensors for one place: of {len(tensors)} names {len(plain)} differ, {len(named)} without encoder."
        )
    missing = [name for name in ("cls_token", "register_tokens", "pos_embed") if name not in named]
    if missing:
        raise BadInput(f"this is not a published DUNE: it lacks {', '.join(missing)}; its first names: {', '.join(sorted(tensors)[:5])}")
    cls, registers, positions = (named.pop(name) for name in ("cls_token", "register_tokens", "pos_embed"))
    return {**named, "prefix": torch.cat([cls + positions[:, :1], registers], dim=1), "pos_embed": positions[:, 1:]}


def _with_layer_scale(named: dict[str, Tensor], options: Options) -> dict[str, Tensor]:
    """Return the tensors with layer scale; ones, which change no bit, where the file has none at all."""
    names = [f"blocks.{block}.ls{number}.gamma" for block in range(options["depth"]) for number in (1, 2)]
    if any(name in named for name in names):
        return named
    return {**named, **{name: torch.ones(options["width"]) for name in names}}
