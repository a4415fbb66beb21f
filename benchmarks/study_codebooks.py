"""A teacher whose tokens went through product codebooks, one bit a value: 16 times fewer bytes than fp16, for the study's arm `1 bit`.

Normalised tokens are turned by a random rotation, which spreads what matters over all parts (OPQ's rotation is learnt, ours is not), cut
into parts of 8 values, and each part is replaced by the nearest of 256 centroids of k-means (product quantisation, Jégou et al. 2011): a
byte for 8 values. Class and patch tokens have codebooks of their own. The student learns from what a store of such bytes would give back;
that nothing is saved here, since the tokens are written as fp32, is the price of trying it without a codec.

The file is given to `extract-features` as a teacher of one's own: `study_codebooks.py:build`, its weights the codebooks.
"""

from pathlib import Path

import numpy as np
import torch
from eupe_pipeline.storage.features.features import FeatureReader
from eupe_pipeline.teachers.encoders.own_encoder import OwnTeacher
from eupe_pipeline.teachers.registry.resolve import load_teacher, resolve_teacher
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

NAME = "codebooks"
TEACHER = "efficientnet-lite0"
PART = 8  # values of a byte
CODES = 256
_ITERATIONS, _TOKENS = 12, 16_384
_PARTS_AT_ONCE = 16
_SIZE, _OLDER_SIZE_PX = "size_px", 128


def make_codebooks(reader: FeatureReader, path: Path, size_px: int) -> None:
    """Learn the codebooks of class and patch tokens from a feature set of fp32 tokens, and write them with the teacher's input size."""
    generator = torch.Generator().manual_seed(0)
    rows = np.arange(0, reader.views.rows, max(1, reader.views.rows // 2048))
    stored = reader.read(rows)
    patch = torch.from_numpy(reader.decode(stored)).flatten(0, 2)
    kept = patch[torch.randperm(len(patch), generator=generator)[:_TOKENS]]
    assert stored.cls is not None
    tokens = {"cls": torch.from_numpy(np.asarray(stored.cls, np.float32)), "patch": kept}
    arrays = {}
    for kind, normalised in tokens.items():
        rotation, _ = torch.linalg.qr(torch.randn(normalised.shape[1], normalised.shape[1], generator=generator))
        arrays[f"{kind}_rotation"] = rotation.contiguous()
        arrays[f"{kind}_codes"] = k_means((normalised @ rotation).unflatten(1, (-1, PART)).transpose(0, 1), generator)
    statistics = reader.statistics.arrays()
    arrays |= {name: torch.from_numpy(np.array(statistics[name])) for name in ("cls_mean", "cls_std", "patch_mean", "patch_std")}
    save_file(arrays | {_SIZE: torch.tensor(size_px)}, path)


def k_means(parts_PnD: Tensor, generator: torch.Generator) -> Tensor:
    """Return centroids (P, 256, D) of each part's n samples, by Lloyd's iterations from samples drawn at random."""
    start = torch.randperm(parts_PnD.shape[1], generator=generator)[:CODES]
    codes_PCD = parts_PnD[:, start].clone()
    for _ in range(_ITERATIONS):
        nearest_Pn = nearest(parts_PnD, codes_PCD)
        index_PnD = nearest_Pn[..., None].expand_as(parts_PnD)
        sums_PCD = torch.zeros_like(codes_PCD).scatter_add_(1, index_PnD, parts_PnD)
        counts_PC = torch.zeros(codes_PCD.shape[:2]).scatter_add_(1, nearest_Pn, torch.ones(nearest_Pn.shape))
        codes_PCD = torch.where(counts_PC[..., None] > 0, sums_PCD / counts_PC[..., None].clamp_min(1), codes_PCD)
    return codes_PCD


def nearest(parts_PnD: Tensor, codes_PCD: Tensor) -> Tensor:
    """Return the index (P, n) of each sample's nearest centroid."""
    found = []
    for start in range(0, len(parts_PnD), _PARTS_AT_ONCE):
        parts, codes = parts_PnD[start : start + _PARTS_AT_ONCE], codes_PCD[start : start + _PARTS_AT_ONCE]
        found.append((torch.baddbmm(codes.square().sum(-1)[:, None], parts, codes.transpose(1, 2), alpha=-2)).argmin(dim=-1))
    return torch.cat(found)


class Quantised(nn.Module):
    """The teacher, its tokens replaced by those of the codebooks."""

    def __init__(self, arrays: dict[str, Tensor], size_px: int) -> None:
        super().__init__()
        self.encoder = load_teacher(resolve_teacher(TEACHER, size_px=size_px), "cpu").encoder
        for name, values in arrays.items():
            self.register_buffer(name, values)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return class (B, D) and patch tokens (B, H, W, D) of normalised pixels (B, 3, h, w)."""
        tokens = self.encoder(pixels)
        return self._through("cls", tokens.cls_BD), self._through("patch", tokens.patch_BHWD)

    def _through(self, kind: str, tokens: Tensor) -> Tensor:
        mean, std, rotation, codes_PCD = (getattr(self, f"{kind}_{name}") for name in ("mean", "std", "rotation", "codes"))
        parts_PnD = (((tokens - mean) / std).flatten(0, -2) @ rotation).unflatten(1, (-1, PART)).transpose(0, 1)
        index_PnD = nearest(parts_PnD, codes_PCD)[..., None].expand_as(parts_PnD)
        back_nD = codes_PCD.gather(1, index_PnD).transpose(0, 1).flatten(1) @ rotation.T
        restored: Tensor = back_nD.reshape(tokens.shape) * std + mean
        return restored


def build(weights: Path) -> OwnTeacher:
    """Return the teacher with the codebooks in a file."""
    arrays = load_file(weights)
    size_px = int(arrays.pop(_SIZE, torch.tensor(_OLDER_SIZE_PX)))
    prep = resolve_teacher(TEACHER, size_px=size_px).preprocessing
    return OwnTeacher(
        Quantised(arrays, size_px), name=NAME, size_px=size_px, stride_px=32, cls="class token", mean=prep.mean, std=prep.std,
        interpolation=prep.interpolation, pixel_scale=prep.pixel_scale, channel_order=prep.channel_order,
    )  # fmt: skip
