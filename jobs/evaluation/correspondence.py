"""Semantic correspondence of a model on SPair-71k's layout, without training; see `student.probes.correspondence`.

Two protocols: `paper` (EUPE, appendix C.5) takes 100 pairs of each category, at 448 px for patches of 14 px and else 512; `ours` takes all
pairs at 512 px. Which 100 pairs they are the paper does not say: here those that `storage.annotations.spair` draws.

Each picture goes through the model once, in the order in which pairs need it; the token maps of the last pictures are kept. There is no
state to resume: a run takes one forward a picture (1,800 in the test split) and a product a pair.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ...storage.annotations.dense_pairs import read_picture
from ...storage.annotations.pair_layout import correspondence_layout
from ...storage.annotations.spair import KeypointPair, keypoint_pairs, pairs_digest, sample_pairs
from ...storage.core.choices import PAIR_PROTOCOLS, PairProtocol, PairSplit
from ...storage.core.errors import unknown_name
from ...storage.core.events import OnEvent, ignore_event
from ...storage.core.lru_cache import LruCache
from ...storage.views.input_size import SizePx, size_hw, size_json, size_text, square_side
from ...student.probes.correspondence import ALPHA, Points, correct_keypoints, match_keypoints, summarize_pck
from ...student.probes.dense_tokens import patch_tokens, stacked
from ...teachers.registry.teacher import Teacher
from ...teachers.runtime.devices import choose_device
from .dense import DenseOptions, open_dense_model
from .knn import evaluated

SIDE_PX = 512
PAPER_PAIRS = 100  # of each category
_PAPER_SIDES_PX = {14: 448}  # by patch size; others have SIDE_PX
_KEPT_MAPS = 512
_SAY_EVERY = 20


@dataclass(frozen=True, kw_only=True)
class CorrespondenceOptions(DenseOptions):
    """A correspondence evaluation: of which model, over which pairs, by which protocol."""

    split: PairSplit = "test"
    """Of the dataset."""
    protocol: PairProtocol = "ours"
    """paper: 100 pairs a category, 448 px for patches of 14 px; ours: all pairs at 512 px."""
    pairs_per_category: int | None = None
    """None: the protocol's."""

    def __post_init__(self) -> None:
        if self.protocol not in PAIR_PROTOCOLS:
            raise unknown_name("protocol of correspondence", self.protocol, PAIR_PROTOCOLS)


def evaluate_correspondence(options: CorrespondenceOptions, on_event: OnEvent = ignore_event) -> dict[str, Any]:
    """Return PCK@0.1 in percent: `pck` (mean over categories), `categories`, over keypoints, and over pairs; kept beside the model.

    `pairs_per_category` and `size_px` win over the protocol's.
    """
    if options.check:
        return correspondence_layout(options.data, options.split).result()
    data, split = options.data, options.split
    model, paper = open_dense_model(options), options.protocol == "paper"
    own_side_px = _PAPER_SIDES_PX.get(model.spec.stride_px, SIDE_PX) if paper else SIDE_PX
    if paper and options.size_px is not None:
        why = "the paper's protocol of correspondence, which resizes to squares,"
        square_side(options.size_px, why, "--protocol ours takes others")
    size_px, limit = options.size_px or own_side_px, options.pairs_per_category or (PAPER_PAIRS if paper else None)
    pairs = keypoint_pairs(data, split)
    pairs = pairs if limit is None else sample_pairs(pairs, limit)
    differs = [f"side_px is {size_text(size_px)}"] * (size_px != own_side_px) + [f"pairs_per_category is {limit}"] * (limit != PAPER_PAIRS)
    differing = {"differs_from_paper": differs} if paper and differs else {}
    known = {
        **({"name": "paper"} if paper else {}), **({} if limit is None else {"pairs_per_category": limit}),
        "data": {"split": split, "pairs": len(pairs), "digest": pairs_digest(data, split, pairs)}, "alpha": ALPHA, "threshold": "box",
        "side_px": size_json(size_px), "layers": "last, normed patch tokens", "upsampling": "bilinear", "similarity": "cosine",
    }  # fmt: skip
    if options.dry_run:
        return {"dry_run": True, "model": options.model, "folder": str(model.folder), "protocol": known}

    def compute() -> dict[str, Any]:
        teacher = model.load(choose_device(options.device).value)
        return {"pairs": len(pairs), **differing, **_measure(teacher, pairs, size_px, on_event)}

    return evaluated("correspondence", model, known, compute, on_event)


def _measure(teacher: Teacher, pairs: list[KeypointPair], size_px: SizePx, on_event: OnEvent) -> dict[str, Any]:
    maps, started = _Maps(teacher, size_px), time.perf_counter()
    by_category: dict[str, list[Any]] = {}
    for done, pair in enumerate(pairs, start=1):
        (source_HWD, source_scale), (target_HWD, target_scale) = maps.of(pair.source), maps.of(pair.target)
        predicted: Points = match_keypoints(source_HWD, target_HWD, pair.source_points * source_scale, size_px) / target_scale
        by_category.setdefault(pair.category, []).append(correct_keypoints(predicted, pair.target_points, pair.longer_side_px))
        if done % _SAY_EVERY == 0 or done == len(pairs):
            rate = done / (time.perf_counter() - started)
            on_event(
                {"event": "progress", "stage": "correspondence", "done": done, "total": len(pairs), "unit": "pairs", "rate": rate,
                 "seconds_left": (len(pairs) - done) / rate}
            )  # fmt: skip
    return summarize_pck(by_category)


class _Maps:
    """Token maps of the last pictures."""

    def __init__(self, teacher: Teacher, size_px: SizePx) -> None:
        self.teacher, self.size_px = teacher, size_px
        self._kept: LruCache[Path, tuple[Tensor, Points]] = LruCache(_KEPT_MAPS)

    def of(self, path: Path) -> tuple[Tensor, Points]:
        """Return the tokens (H, W, D) of the resized picture, and the factor from x, y of the picture to x, y of that."""
        return self._kept.get_or_make(path, lambda: self._compute(path))

    def _compute(self, path: Path) -> tuple[Tensor, Points]:
        picture, (height, width) = read_picture(path), size_hw(self.size_px)
        resized = np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))
        scale = np.array([width / picture.shape[1], height / picture.shape[0]])
        return patch_tokens(self.teacher, *stacked([resized]))[0], scale
