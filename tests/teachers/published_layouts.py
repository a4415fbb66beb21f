"""Small models with random weights under the names that RADIOv2.5 and DUNE are published with, and rows of the table for them."""

import argparse
from pathlib import Path
from typing import Any

import torch
from eupe_pipeline.teachers.encoders.preprocessing import CLIP_MEAN, CLIP_STD, Preprocessing
from eupe_pipeline.teachers.encoders.published_vit import build_published_vit, published_vit
from eupe_pipeline.teachers.registry.table import TeacherDefinition, Terms
from torch import Tensor

WIDTH, DEPTH, HEADS = 48, 2, 3
SMALL_RADIO = published_vit("radio", WIDTH, DEPTH, HEADS, patch_px=8, side=8, cls_tokens=4, summary=(0, 1, 2))
SMALL_DUNE = published_vit("dune", WIDTH, DEPTH, HEADS, patch_px=8, side=4)


def small_row(name: str, architecture: dict[str, Any]) -> TeacherDefinition:
    prep = Preprocessing(32, mean=CLIP_MEAN, std=CLIP_STD) if architecture["layout"] == "radio" else Preprocessing(32)
    return TeacherDefinition(
        architecture, build_published_vit, prep, architecture["cls_width"], WIDTH, 8, name, "here", Terms("none", None, "here")
    )


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape) * 0.2


def _blocks(prefix: str, layer_scale: str | None) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for block in range(DEPTH):
        at = f"{prefix}{block}."
        for norm in ("norm1", "norm2"):
            found |= {f"{at}{norm}.weight": 1 + _random(WIDTH), f"{at}{norm}.bias": _random(WIDTH)}
        for name, out, into in (("attn.qkv", 3, 1), ("attn.proj", 1, 1), ("mlp.fc1", 4, 1), ("mlp.fc2", 1, 4)):
            found |= {f"{at}{name}.weight": _random(out * WIDTH, into * WIDTH), f"{at}{name}.bias": _random(out * WIDTH)}
        if layer_scale is not None:
            found |= {f"{at}{number}.{layer_scale}": 1 + _random(WIDTH) for number in ("ls1", "ls2")}
    return found


def radio_tensors(prefix: str = "radio_model.model.", layer_scale: str | None = None) -> dict[str, Tensor]:
    """A RADIOv2.5 as its folder on the hub holds it."""
    torch.manual_seed(11)
    return {
        "radio_model.input_conditioner.norm_mean": torch.tensor(CLIP_MEAN).view(3, 1, 1),
        "radio_model.input_conditioner.norm_std": torch.tensor(CLIP_STD).view(3, 1, 1),
        "radio_model.summary_idxs": torch.tensor([0, 1, 2]),
        f"{prefix}patch_generator.embedder.weight": _random(WIDTH, 3 * 64), f"{prefix}patch_generator.pos_embed": _random(1, 64, WIDTH),
        f"{prefix}patch_generator.cls_token.token": _random(8, WIDTH), **_blocks(f"{prefix}blocks.", layer_scale),
    }  # fmt: skip


def head_tensors(width: int, hidden: int, out: int, blocks: int = 1, pre_norm: bool = False) -> dict[str, Tensor]:
    """An adaptor's second form, by the names of NVlabs/RADIO's MLP2."""

    def linear(name: str, outer: int, inner: int) -> dict[str, Tensor]:
        return {f"{name}.weight": _random(outer, inner), f"{name}.bias": _random(outer)}

    def norm(name: str, channels: int) -> dict[str, Tensor]:
        return {f"{name}.weight": 1 + _random(channels), f"{name}.bias": _random(channels)}

    found = {**(norm("pre_norm.0", width) if pre_norm else {}), **linear("fc1", hidden, width)}
    for block in range(blocks):
        found |= norm(f"blocks.{block}.0", hidden) | linear(f"blocks.{block}.2", hidden, hidden)
    return {**found, **norm("final.0", hidden), **linear("final.2", out, hidden)}


def adaptor_tensors(**widths: int) -> dict[str, Tensor]:
    """Heads and projections of patch tokens as a training of RADIO keeps them, numbered; a keyword is a teacher: channels that it has."""
    torch.manual_seed(13)
    found: dict[str, Tensor] = {}
    for number, out in enumerate(widths.values()):
        found |= {f"_heads.{number}.{name}": tensor for name, tensor in head_tensors(WIDTH, 40, out).items()}
        found |= {f"_feature_projections.{number}.{name}": tensor for name, tensor in head_tensors(WIDTH, 24, 28).items()}
    return found


def dune_tensors() -> dict[str, Tensor]:
    """A DUNE with the projectors and the teachers' norms of its training."""
    torch.manual_seed(12)
    return {
        "encoder.cls_token": _random(1, 1, WIDTH), "encoder.register_tokens": _random(1, 4, WIDTH),
        "encoder.pos_embed": _random(1, 17, WIDTH),
        "encoder.mask_token": torch.zeros(1, WIDTH), "encoder.patch_embed.proj.weight": _random(WIDTH, 3, 8, 8),
        "encoder.patch_embed.proj.bias": _random(WIDTH), "encoder.norm.weight": 1 + _random(WIDTH), "encoder.norm.bias": _random(WIDTH),
        **_blocks("encoder.blocks.0.", "gamma"), "projectors.mast3r_vitlarge_16.linear.weight": _random(64, WIDTH),
        "teacher_norms.mast3r_vitlarge_16.normalizers.patch.mean": _random(64),
    }  # fmt: skip


def training_checkpoint(path: Path, **parts: Any) -> Path:
    """A .pth as a training writes it: the arguments beside the tensors."""
    torch.save({"args": argparse.Namespace(teachers=[{"name": "clip"}], lr=0.1), "iter": 7, **parts}, path)
    return path
