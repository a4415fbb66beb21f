"""The official hub's two families, stated again from the paper's and the recipe's facts, to load an export strictly and compare outputs.

Written for the tests alone and apart from timm, transformers and our own mapping: parameter names are the published checkpoints', the
mathematics is spelled out. Axes: B images, N tokens, D channels. `hubconf.py`-style builders at the end make it a repository for
`torch.hub.load`.
"""

import itertools
import math
from enum import Enum
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MaskedLinear(nn.Linear):
    def __init__(self, width: int) -> None:
        super().__init__(width, 3 * width)
        self.register_buffer("bias_mask", torch.ones(3 * width))

    def forward(self, x: Tensor) -> Tensor:
        mask: Any = self.bias_mask
        out: Tensor = x @ self.weight.T + self.bias * mask
        return out


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = heads, MaskedLinear(width), nn.Linear(width, width)

    def forward(self, x: Tensor, angles: Tensor, prefix: int) -> Tensor:
        batch, count, width = x.shape
        q, k, v = (part.view(batch, count, self.heads, -1).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        q, k = (torch.cat([part[:, :, :prefix], turn(part[:, :, prefix:], angles)], dim=2) for part in (q, k))
        weights = (q @ k.transpose(-1, -2) / math.sqrt(width // self.heads)).softmax(dim=-1)
        out: Tensor = self.proj((weights @ v).transpose(1, 2).reshape(batch, count, width))
        return out


def turn(x: Tensor, angles: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()], dim=-1)


class Scale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(width))


class Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-5), nn.LayerNorm(width, eps=1e-5)
        self.attn, self.mlp, self.ls1, self.ls2 = Attention(width, heads), Mlp(width), Scale(width), Scale(width)

    def forward(self, x: Tensor, angles: Tensor, prefix: int) -> Tensor:
        x = x + self.ls1.gamma * self.attn(self.norm1(x), angles, prefix)
        inner: Tensor = self.ls2.gamma * self.mlp.fc2(F.gelu(self.mlp.fc1(self.norm2(x))))
        return x + inner


class Projection(nn.Module):
    def __init__(self, width: int, patch_px: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch_px, patch_px)


class Periods(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.register_buffer("periods", torch.empty(count))


class OfficialVit(nn.Module):
    def __init__(self, width: int, depth: int, heads: int, patch_px: int = 16) -> None:
        super().__init__()
        self.cls_token, self.mask_token = nn.Parameter(torch.empty(1, 1, width)), nn.Parameter(torch.empty(1, width))
        self.storage_tokens = nn.Parameter(torch.empty(1, 4, width))
        self.patch_embed, self.rope_embed = Projection(width, patch_px), Periods(width // heads // 4)
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width, eps=1e-5)

    def forward_features(self, pixels: Tensor) -> dict[str, Tensor]:
        grid = self.patch_embed.proj(pixels)
        batch, _, rows, columns = grid.shape
        prefix = torch.cat([self.cls_token, self.storage_tokens], dim=1).expand(batch, -1, -1)
        x = torch.cat([prefix, grid.flatten(2).transpose(1, 2)], dim=1)
        periods: Any = self.rope_embed.periods
        axes = [(torch.arange(n) + 0.5) / n * 2 - 1 for n in (rows, columns)]
        places = torch.stack(torch.meshgrid(axes, indexing="ij"), dim=-1).view(-1, 2, 1)
        angles = (2 * math.pi * places / periods).flatten(1)
        for block in self.blocks:
            x = block(x, angles, prefix.shape[1])
        x = self.norm(x)
        return {"x_norm_clstoken": x[:, 0], "x_storage_tokens": x[:, 1:5], "x_norm_patchtokens": x[:, 5:]}


class ConvBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma, self.dwconv = nn.Parameter(torch.empty(width)), nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pwconv1, self.pwconv2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.pwconv2(F.gelu(self.pwconv1(self.norm(self.dwconv(x).permute(0, 2, 3, 1)))))
        scaled: Tensor = self.gamma * inner
        return x + scaled.permute(0, 3, 1, 2)


class FirstNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class OfficialConvNext(nn.Module):
    def __init__(self, depths: list[int], widths: list[int]) -> None:
        super().__init__()
        stem = nn.Sequential(nn.Conv2d(3, widths[0], 4, 4), FirstNorm(widths[0], eps=1e-6))
        later = [nn.Sequential(FirstNorm(a, eps=1e-6), nn.Conv2d(a, b, 2, 2)) for a, b in itertools.pairwise(widths)]
        self.downsample_layers = nn.ModuleList([stem, *later])
        self.stages = nn.ModuleList([nn.Sequential(*(ConvBlock(w) for _ in range(d))) for d, w in zip(depths, widths, strict=True)])
        self.norm = nn.LayerNorm(widths[-1], eps=1e-6)
        self.norms = nn.ModuleList([nn.Identity(), nn.Identity(), nn.Identity(), self.norm])

    def forward_features(self, pixels: Tensor) -> dict[str, Tensor]:
        x = pixels
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(downsample(x))
        return {"x_norm_clstoken": self.norm(x.mean(dim=(2, 3))), "x_norm_patchtokens": self.norm(x.flatten(2).transpose(1, 2))}


def official_model(architecture: dict[str, Any]) -> OfficialVit | OfficialConvNext:
    """The restated model of one of our architectures (MLP with GELU only)."""
    if architecture["name"] == "convnext":
        return OfficialConvNext(architecture["depths"], architecture["widths"])
    return OfficialVit(architecture["width"], architecture["depth"], architecture["heads"], architecture["patch_px"])


class Weights(Enum):
    """What the official entries fetch when no file is named."""

    LVD1689M = "LVD1689M"


def _entry(model: OfficialVit | OfficialConvNext, pretrained: bool, weights: Weights | str) -> OfficialVit | OfficialConvNext:
    """The official entries' way: a named file is loaded strictly, but only when `pretrained`; else the weights are random."""
    if not pretrained:
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.02)
        for name, buffer in model.named_buffers():
            buffer.fill_(1.0 if name.endswith("bias_mask") else 100.0)
        return model
    if isinstance(weights, Weights):
        raise RuntimeError(f"this stand-in cannot fetch {weights.value}")
    model.load_state_dict(torch.load(weights, weights_only=True), strict=True)
    return model


# The signatures and defaults of the official entries, facts of their code: ViT-T alone is random unless told otherwise.


def eupe_vitt16(*, pretrained: bool = False, weights: Weights | str = Weights.LVD1689M, check_hash: bool = False) -> nn.Module:
    return _entry(OfficialVit(192, 12, 3), pretrained, weights)


def eupe_vits16(*, pretrained: bool = True, weights: Weights | str = Weights.LVD1689M, check_hash: bool = False) -> nn.Module:
    return _entry(OfficialVit(384, 12, 6), pretrained, weights)


def eupe_vitb16(*, pretrained: bool = True, weights: Weights | str = Weights.LVD1689M, check_hash: bool = False) -> nn.Module:
    return _entry(OfficialVit(768, 12, 12), pretrained, weights)


def eupe_convnext_tiny(*, pretrained: bool = True, weights: Weights | str = Weights.LVD1689M) -> nn.Module:
    return _entry(OfficialConvNext([3, 3, 9, 3], [96, 192, 384, 768]), pretrained, weights)


def eupe_convnext_small(*, pretrained: bool = True, weights: Weights | str = Weights.LVD1689M) -> nn.Module:
    return _entry(OfficialConvNext([3, 3, 27, 3], [96, 192, 384, 768]), pretrained, weights)


def eupe_convnext_base(*, pretrained: bool = True, weights: Weights | str = Weights.LVD1689M) -> nn.Module:
    return _entry(OfficialConvNext([3, 3, 27, 3], [128, 256, 512, 1024]), pretrained, weights)
