"""Semantic segmentation of a model by a linear head: ADE20k's layout, or any folder of pictures and masks.

See `student.segmentation` for the protocol and `storage.dense_pairs` for the layouts. ADE20k is known by its 150 classes that count from 1
(its folder is called ADEChallengeData2016, or `zero` says that class 0 is ignored); elsewhere masks count from 0, and the number of classes
is the largest class of the training masks plus one.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..storage.dense_pairs import Pair, pairs_digest, read_classes, read_picture, segmentation_pairs
from ..storage.errors import BadInput
from ..student.dense_head import ADE20K_RECIPE, DenseHead, HeadRecipe
from ..student.segmentation import (
    IGNORE,
    Confusion,
    Mask,
    Pixels,
    SegmentationView,
    classes_at,
    resize_shorter,
    segmentation_loss,
    slide,
    training_view,
    without_zero,
)
from ..teachers.teacher import Teacher
from .dense_tokens import patch_tokens, stacked
from .evaluate_dense import DenseEvaluation, DenseOptions, generator_of, open_dense_model, places_of, run_dense, said_progress
from .labelled_features import OnEvent

ADE20K = "ADEChallengeData2016"
_DROPOUT = 0.1
_THREADS = 2

Batch = tuple[Pixels, list[tuple[int, int]], Tensor]


@dataclass(frozen=True)
class SegmentationOptions:
    """What is particular to segmentation."""

    classes: int | None = None
    """Number of classes; None: found in the training masks."""
    zero_is_ignored: bool | None = None
    """Whether class 0 means nothing and the others count from 1; None: for ADE20k."""
    ignore: int = IGNORE
    """The value of masks that means nothing."""
    view: SegmentationView = field(default_factory=SegmentationView)
    head: HeadRecipe = ADE20K_RECIPE


def evaluate_segmentation(
    model: str, data: Path, options: DenseOptions, own: SegmentationOptions | None = None, on_event: OnEvent = lambda event: None
) -> dict[str, Any]:
    """mIoU, pixel accuracy and IoU by class in percent on the validation split, `best_miou` of all measurements; kept beside the model."""
    own = own or SegmentationOptions()
    view = own.view if options.size_px is None else replace(own.view, size_px=options.size_px, stride_px=options.size_px * 2 // 3)
    subject, recipe = open_dense_model(model, options), options.recipe(own.head)
    pairs = {split: segmentation_pairs(data, split) for split in ("train", "val")}
    masks = _Masks(data.resolve().name == ADE20K if own.zero_is_ignored is None else own.zero_is_ignored, own.ignore)
    classes = own.classes or _count_classes(pairs["train"], masks)
    protocol = {
        "data": {split: {"pictures": len(several), "digest": pairs_digest(several)} for split, several in pairs.items()},
        "classes": classes, "zero_is_ignored": masks.zero_is_ignored, "ignore": own.ignore, "layers": "last, normed patch tokens",
        "head": {"dropout": _DROPOUT, "batch_norm": True, **recipe.identity()}, "view": asdict(view),
    }  # fmt: skip
    if options.dry_run:
        return {"dry_run": True, "model": model, "folder": str(subject.folder), "protocol": protocol}
    evaluation = DenseEvaluation(
        "segmentation", recipe, classes, _DROPOUT,
        make_batch=lambda step: _batch(pairs["train"], masks, view, recipe, options.seed, step),
        loss_of=_loss,
        measure=lambda teacher, head: _measure(teacher, head, pairs["val"], masks, classes, view, on_event),
        best="miou",
    )  # fmt: skip
    return run_dense(evaluation, subject, protocol, options, on_event)


@dataclass(frozen=True)
class _Masks:
    zero_is_ignored: bool
    ignore: int

    def read(self, pair: Pair, size: tuple[int, ...] | None = None) -> Mask:
        """Classes from 0 and IGNORE; raises `BadInput` when the mask has not its picture's size."""
        stored = read_classes(pair.target)
        if size is not None and stored.shape != size:
            raise BadInput(f"{pair.target} has {stored.shape} pixels and its picture {size}; masks are as large as their pictures")
        mask = np.where(stored == self.ignore, IGNORE, stored)
        return without_zero(mask) if self.zero_is_ignored else mask


def _count_classes(pairs: list[Pair], masks: _Masks) -> int:
    with ThreadPoolExecutor(_THREADS) as pool:
        largest = max(pool.map(lambda pair: int(np.where((mask := masks.read(pair)) == IGNORE, -1, mask).max()), pairs))
    if not 1 <= largest < IGNORE:
        raise BadInput(
            f"the training masks hold classes up to {largest}; segmentation needs 2 to {IGNORE}: say --classes and --ignore-index"
        )
    return largest + 1


def _read(pair: Pair, masks: _Masks) -> tuple[Pixels, Mask]:
    picture = read_picture(pair.picture)
    return picture, masks.read(pair, picture.shape[:2])


def _batch(pairs: list[Pair], masks: _Masks, view: SegmentationView, recipe: HeadRecipe, seed: int, step: int) -> Batch:
    """Pixels and masks (B, size, size), padded where a picture is smaller."""

    def one(numbered: tuple[int, int]) -> tuple[Pixels, Mask]:
        place, number = numbered
        return training_view(*_read(pairs[number], masks), view, generator_of(seed, step, place))

    with ThreadPoolExecutor(_THREADS) as pool:
        drawn = list(pool.map(one, enumerate(places_of(step, recipe.batch_size, len(pairs), seed))))
    pixels, sizes = stacked([picture for picture, _ in drawn], (view.size_px, view.size_px))
    targets = np.full(pixels.shape[:3], IGNORE, np.int64)
    for place, (_, mask) in enumerate(drawn):
        targets[place, : mask.shape[0], : mask.shape[1]] = mask
    return pixels, sizes, torch.from_numpy(targets)


def _loss(teacher: Teacher, head: DenseHead, batch: Batch, step: int) -> Tensor:
    pixels, sizes, masks_BHW = batch
    return segmentation_loss(head(patch_tokens(teacher, pixels, sizes)), masks_BHW.to(teacher.device))


def _measure(
    teacher: Teacher, head: DenseHead, pairs: list[Pair], masks: _Masks, classes: int, view: SegmentationView, on_event: OnEvent
) -> dict[str, Any]:
    confusion, say = Confusion(classes), said_progress("segmentation", pairs, on_event)

    def predict(window: Pixels) -> Tensor:
        logits = head(patch_tokens(teacher, *stacked([window])))
        return functional.interpolate(logits, window.shape[:2], mode="bilinear")[0].cpu()

    for done, pair in enumerate(pairs, start=1):
        picture, mask = _read(pair, masks)
        if (mask[mask != IGNORE] >= classes).any():
            raise BadInput(f"{pair.target} holds class {int(mask[mask != IGNORE].max())}, and there are {classes}; say --classes")
        logits = slide(resize_shorter(picture, view.size_px), predict, view.size_px, view.stride_px)
        confusion.add(mask, classes_at(logits, *mask.shape))
        say(done)
    return confusion.metrics()
