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
from torch import Tensor
from torch.nn import functional

from ..storage.decode import Pixels
from ..storage.dense_pairs import Pair, read_classes, read_picture, segmentation_pairs
from ..storage.errors import BadInput
from ..student.dense_head import ADE20K_RECIPE, DenseHead, HeadRecipe
from ..student.segmentation import (
    IGNORE,
    Confusion,
    Mask,
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
from .evaluate_dense import (
    READ_THREADS,
    DenseEvaluation,
    DenseOptions,
    open_dense_model,
    refuse_other_size,
    run_dense,
    said_progress,
)
from .labelled_features import OnEvent

ADE20K = "ADEChallengeData2016"
_DROPOUT = 0.1


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
        "classes": classes, "zero_is_ignored": masks.zero_is_ignored, "ignore": own.ignore, "view": asdict(view),
        "head": {"dropout": _DROPOUT, "batch_norm": True, **recipe.identity()},
    }  # fmt: skip
    evaluation = DenseEvaluation(
        "segmentation", recipe, classes, _DROPOUT, pairs, fill=IGNORE, size_hw=(view.size_px, view.size_px), best="miou",
        draw=lambda pair, generator: training_view(*_read(pair, masks, classes), view, generator),
        loss_of=lambda logits_BKHW, masks_BHW, step: segmentation_loss(logits_BKHW, masks_BHW),
        measure=lambda teacher, head: _measure(teacher, head, pairs["val"], masks, classes, view, on_event),
    )  # fmt: skip
    return run_dense(evaluation, subject, protocol, options, on_event)


@dataclass(frozen=True)
class _Masks:
    zero_is_ignored: bool
    ignore: int

    def read(self, pair: Pair) -> Mask:
        """Classes from 0 and IGNORE."""
        stored = read_classes(pair.target)
        mask = np.where(stored == self.ignore, IGNORE, stored)
        return without_zero(mask) if self.zero_is_ignored else mask


def _count_classes(pairs: list[Pair], masks: _Masks) -> int:
    with ThreadPoolExecutor(READ_THREADS) as pool:
        largest = max(pool.map(lambda pair: int(np.where((mask := masks.read(pair)) == IGNORE, -1, mask).max()), pairs))
    if not 1 <= largest < IGNORE:
        raise BadInput(
            f"the training masks hold classes up to {largest}; segmentation needs 2 to {IGNORE}: say --classes and --ignore-index"
        )
    return largest + 1


def _read(pair: Pair, masks: _Masks, classes: int) -> tuple[Pixels, Mask]:
    picture, mask = read_picture(pair.picture), masks.read(pair)
    refuse_other_size(pair, mask, picture)
    if (mask[mask != IGNORE] >= classes).any():
        raise BadInput(f"{pair.target} holds class {int(mask[mask != IGNORE].max())}, and there are {classes}; say --classes")
    return picture, mask


def _measure(
    teacher: Teacher, head: DenseHead, pairs: list[Pair], masks: _Masks, classes: int, view: SegmentationView, on_event: OnEvent
) -> dict[str, Any]:
    confusion, say = Confusion(classes), said_progress("segmentation", pairs, on_event)

    def predict(window: Pixels) -> Tensor:
        logits = head(patch_tokens(teacher, *stacked([window])))
        return functional.interpolate(logits, window.shape[:2], mode="bilinear")[0].cpu()

    for done, pair in enumerate(pairs, start=1):
        picture, mask = _read(pair, masks, classes)
        logits = slide(resize_shorter(picture, view.size_px), predict, view.size_px, view.stride_px)
        confusion.add(mask, classes_at(logits, *mask.shape))
        say(done)
    return confusion.metrics()
