"""How `--grid` should make a teacher's grid smaller: what each way keeps of a real teacher's tokens, as the patch loss sees it.

The tokens are efficientnet-lite0's (stride 32) over photos at large inputs, normalised by their own statistics. Each is resampled to the
smaller grid and upsampled again as the loss does it (bicubic). Cosine and L_patch against the teacher's own tokens say how near a student
that has learnt the stored grid perfectly comes to the teacher; the norm says how much of the tokens' length is left to learn from.

    python -m benchmarks.bench_resampling FOLDER_OF_PHOTOS
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from eupe_pipeline.jobs.extraction.stored_tokens import resampled
from eupe_pipeline.storage.features.statistics import Moments, Statistics
from eupe_pipeline.storage.sources.decode import decode_image
from eupe_pipeline.storage.views.view_spec import resize
from eupe_pipeline.student.model.losses import patch_loss, upsample
from eupe_pipeline.student.model.recipe import LossConfig
from eupe_pipeline.teachers.registry.resolve import load_teacher, resolve_teacher
from torch import Tensor
from torch.nn import functional

from .figures import report

TEACHER = "efficientnet-lite0"
CASES = ((1024, 16), (896, 16), (640, 16), (448, 7))
"""Input size, which sets the teacher's grid, and the stored grid."""
Resample = Callable[[Tensor, tuple[int, int]], Tensor]


def by_library(patch_BHWD: Tensor, grid: tuple[int, int], mode: str, antialias: bool) -> Tensor:
    """Return one of torch's interpolations."""
    smooth = None if mode in ("area", "nearest-exact") else False
    found = functional.interpolate(patch_BHWD.permute(0, 3, 1, 2), size=grid, mode=mode, align_corners=smooth, antialias=antialias)
    return found.permute(0, 2, 3, 1)


WAYS: dict[str, Resample] = {
    "least squares": resampled,
    "area": partial(by_library, mode="area", antialias=False),
    "bicubic antialiased": partial(by_library, mode="bicubic", antialias=True),
    "bicubic": partial(by_library, mode="bicubic", antialias=False),
    "bilinear antialiased": partial(by_library, mode="bilinear", antialias=True),
    "nearest": partial(by_library, mode="nearest-exact", antialias=False),
}


def tokens_at(size_px: int, photos: list[Path]) -> Tensor:
    """Return normalised patch tokens of every photo and its mirror image."""
    teacher = load_teacher(resolve_teacher(TEACHER, size_px=size_px))
    found = []
    for photo in photos:
        pixels = decode_image(photo.read_bytes(), where=str(photo))
        for flip in (False, True):
            with torch.inference_mode():
                found.append(teacher(torch.from_numpy(resize(pixels, flip, size_px).copy())[None]).patch_BHWD.numpy())
    patch = np.concatenate(found)
    moments = Moments(patch.shape[-1])
    moments.update(patch)
    return torch.from_numpy(Statistics.from_moments(None, moments, len(patch)).normalize_patch(patch))


def kept(tokens_BHWD: Tensor, grid: tuple[int, int], way: Resample) -> dict[str, float]:
    """Return what is left of the tokens when a grid is stored, upsampled as the loss does it."""
    small = way(tokens_BHWD, grid).contiguous()
    again = upsample(small, *tokens_BHWD.shape[1:3])
    cosine = functional.cosine_similarity(again, tokens_BHWD, dim=-1)
    return {
        "cosine": float(cosine.mean()),
        "cosine_p1": float(np.percentile(cosine.numpy(), 1)),
        "patch_loss": float(patch_loss(again, tokens_BHWD, LossConfig())),
        "norm": float(small.norm(dim=-1).mean() / tokens_BHWD.norm(dim=-1).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/results/bench-resampling.json"))
    options = parser.parse_args()
    photos = sorted(path for path in options.photos.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    cases: dict[str, dict[str, dict[str, float]]] = {}
    for size_px, side in CASES:
        tokens = tokens_at(size_px, photos)
        case = f"{tokens.shape[1]}x{tokens.shape[2]} to {side}x{side}"
        cases[case] = {name: kept(tokens, (side, side), way) for name, way in WAYS.items()}
        for name, row in cases[case].items():
            print(f"{case:15} {name:21} " + "  ".join(f"{what} {value:.4f}" for what, value in row.items()), flush=True)
    figures = {f"grid.{name}_patch_loss": float(np.mean([case[name]["patch_loss"] for case in cases.values()])) for name in WAYS}
    details = {"command": "python -m benchmarks.bench_resampling PHOTOS", "teacher": TEACHER, "photos": len(photos), "cases": cases}
    report(figures, {}, details, options.out)


if __name__ == "__main__":
    main()
