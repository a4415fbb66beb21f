"""Semantic segmentation of a model by a linear head: ADE20k's layout, or any folder of pictures and masks.

See `student.probes.segmentation` for the two protocols, `storage.annotations.dense_pairs` for the layouts. Each mask is read before the
first step (`mask_checks`), so that a value that is no class, masks of one class and a split without labels are refused by name and not
after hours. By the official protocol the encoder is in training mode until the first measurement, because the official loop puts it into
eval mode there and never back.
"""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import Tensor
from torch.nn import functional

from ...storage.annotations.dense_layout import segmentation_layout
from ...storage.annotations.dense_pairs import Pair, read_picture, segmentation_pairs
from ...storage.core.choices import MaskDataset
from ...storage.core.events import OnEvent, ignore_event
from ...storage.sources.decode import Pixels
from ...storage.views.input_size import square_side
from ...student.probes.dense_head import ADE20K_RECIPE, DenseHead, HeadRecipe
from ...student.probes.dense_tokens import patch_tokens, stacked
from ...student.probes.segmentation import (
    IGNORE,
    STORED_IGNORE,
    Confusion,
    Mask,
    SegmentationView,
    resize_shorter,
    segmentation_loss,
    slide_inference,
    training_view,
    upsampled_argmax,
)
from ...teachers.registry.teacher import Teacher
from .dense import DenseEvaluation, HeadOptions, open_dense_model, progress_reporter, refuse_other_size, run_dense
from .mask_checks import MaskClasses, check_masks

_DROPOUT = 0.1
_ANY_SHAPE = "give --size SIDE: square windows slide over pictures of any shape, and models of any input take them"
OFFICIAL = {
    "name": "official", "loss": "mean over all pixels, ignored and padded ones too", "masks": "resized by torch's nearest",
    "encoder": "training mode until the first measurement",
}  # fmt: skip
"""Protocol fields that only a record of the official protocol has; one without a name is ours."""


@dataclass(frozen=True, kw_only=True)
class SegmentationOptions(HeadOptions):
    """A segmentation evaluation: of which model, over which masks, and how."""

    classes: int | None = None
    """Number of classes; None: found in the training masks."""
    zero_is_ignored: bool | None = None
    """Whether class 0 means nothing and the others count from 1; None: for ADE20k."""
    ignore: int | None = STORED_IGNORE
    """The value of masks that means nothing; None: every value is a class."""
    dataset: MaskDataset | None = None
    """None: known by what the folder holds."""
    view: SegmentationView = field(default_factory=SegmentationView)
    head: HeadRecipe = ADE20K_RECIPE


def evaluate_segmentation(options: SegmentationOptions, on_event: OnEvent = ignore_event) -> dict[str, Any]:
    """Return mIoU, pixel accuracy and IoU by class in percent on the validation split, and the `best_miou` of all measurements."""
    if options.check:
        return segmentation_layout(options.data).result()
    data, view = options.data, options.view
    if options.size_px is not None:
        side = square_side(options.size_px, "segmentation, whose windows are square by the official protocol and by ours,", _ANY_SHAPE)
        view = replace(view, size_px=side, stride_px=side * 2 // 3)
    model, recipe = open_dense_model(options), options.recipe(options.head)
    pairs = {split: segmentation_pairs(data, split) for split in ("train", "val")}
    masks = check_masks(data, pairs, options.classes, options.zero_is_ignored, options.ignore, options.dataset, on_event)
    protocol = {
        **(OFFICIAL if options.official else {}),
        "classes": masks.classes, "zero_is_ignored": masks.zero_is_ignored, "ignore": options.ignore, "view": asdict(view),
        "head": {"dropout": _DROPOUT, "batch_norm": True, **recipe.identity()},
    }  # fmt: skip
    evaluation = DenseEvaluation(
        "segmentation", recipe, masks.classes, _DROPOUT, pairs, fill=IGNORE, size_hw=(view.size_px, view.size_px), best="miou",
        draw=lambda pair, generator: training_view(*_read(pair, masks), view, generator, options.protocol),
        loss_of=lambda logits_BKHW, masks_BHW, step: segmentation_loss(logits_BKHW, masks_BHW, options.protocol),
        measure=lambda teacher, head: _measure(teacher, head, pairs["val"], masks, view, on_event),
        encoder_trains=lambda step: options.official and step < options.evaluate_every,
        input=_input(view), labels=tuple(str(number + masks.zero_is_ignored) for number in range(masks.classes)),
    )  # fmt: skip
    return run_dense(evaluation, model, protocol, options, on_event)


def _input(view: SegmentationView) -> dict[str, Any]:
    size, stride = view.size_px, view.stride_px
    rule = (
        f"the shorter side resized to {size} px (bilinear), windows of {size} px every {stride} px, each window's logits upsampled to it "
        "bilinearly and averaged where windows overlap, then upsampled to the picture"
    )
    return {"size_px": size, "stride_px": stride, "rule": rule}


def _read(pair: Pair, masks: MaskClasses) -> tuple[Pixels, Mask]:
    picture, mask = read_picture(pair.picture), masks.read(pair)
    refuse_other_size(pair, mask, picture)
    return picture, mask


def _measure(
    teacher: Teacher, head: DenseHead, pairs: list[Pair], masks: MaskClasses, view: SegmentationView, on_event: OnEvent
) -> dict[str, Any]:
    confusion, report = Confusion(masks.classes), progress_reporter("segmentation", pairs, on_event)

    def predict(window: Pixels) -> Tensor:
        logits = head(patch_tokens(teacher, *stacked([window])))
        return functional.interpolate(logits, window.shape[:2], mode="bilinear")[0].cpu()

    for done, pair in enumerate(pairs, start=1):
        picture, mask = _read(pair, masks)
        logits = slide_inference(resize_shorter(picture, view.size_px), predict, view.size_px, view.stride_px)
        confusion.add(mask, upsampled_argmax(logits, *mask.shape))
        report(done)
    return confusion.metrics()
