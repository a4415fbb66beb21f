"""Monocular depth of a model by a linear head over bins: NYUv2's layout, or any folder of pictures and depth.

See `student.probes.depth` for the protocol, `storage.annotations.dense_pairs` for the layouts. NYU's white frame and Eigen's crop are for
pictures that are listed in NYU's files, and for others when asked for. By the official protocol the encoder is in training mode while the
head learns and a ConvNeXt's input is padded to a multiple of 4 (`dense_tokens`); by ours neither.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from ...storage.annotations.dense_layout import depth_layout
from ...storage.annotations.dense_pairs import NYU_PER_METRE, Pair, depth_pairs, is_nyu, read_depth, read_picture
from ...storage.core.errors import BadInput
from ...storage.core.events import OnEvent, ignore_event
from ...storage.sources.decode import Pixels
from ...storage.views.input_size import size_hw
from ...student.probes.dense_head import NYU_RECIPE, DenseHead, HeadRecipe
from ...student.probes.dense_tokens import padding_px, patch_tokens, stacked
from ...student.probes.depth import (
    BINS,
    DepthView,
    Metres,
    bin_depths,
    depth_metrics,
    predicted_depth,
    training_depth_loss,
    training_view,
    valid_depth,
)
from ...teachers.registry.teacher import Teacher
from .dense import DenseEvaluation, HeadOptions, open_dense_model, progress_reporter, refuse_other_size, run_dense

OFFICIAL = {"name": "official", "encoder": "training mode while the head learns", "convnext": "padded to a multiple of 4"}
"""Protocol fields that only a record of the official protocol has; one without a name is ours."""


@dataclass(frozen=True, kw_only=True)
class DepthOptions(HeadOptions):
    """A depth evaluation: of which model, over which depth maps, and how."""

    nyu_crops: bool | None = None
    """Cut NYU's white frame off and measure inside Eigen's crop; None: for NYU's lists of files."""
    per_metre: float = NYU_PER_METRE
    """Units of a PNG in a metre."""
    view: DepthView = field(default_factory=DepthView)
    head: HeadRecipe = NYU_RECIPE


def evaluate_depth(options: DepthOptions, on_event: OnEvent = ignore_event) -> dict[str, Any]:
    """Return rmse (m), abs_rel and delta1 on the validation pictures, means over pictures; kept beside the model.

    Raises `BadInput` before any step where a split has no depth that counts.
    """
    if options.check:
        return depth_layout(options.data).result()
    data, per_metre = options.data, options.per_metre
    crops = is_nyu(data) if options.nyu_crops is None else options.nyu_crops
    view, recipe = replace(options.view, nyu_crops=crops), options.recipe(options.head)
    if options.size_px is not None:
        view = replace(view, crop_hw=size_hw(options.size_px))
    model = open_dense_model(options)
    pairs = {split: depth_pairs(data, split) for split in ("train", "val")}
    _refuse_no_depth(pairs, per_metre, view)
    protocol = {
        **(OFFICIAL if options.official else {}),
        "bins": BINS, "per_metre": per_metre, "mirrored_too": True, "view": asdict(view),
        "head": {"dropout": 0.0, "batch_norm": True, **recipe.identity()},
    }  # fmt: skip
    evaluation = DenseEvaluation(
        "depth", recipe, BINS, 0.0, pairs,
        draw=lambda pair, generator: training_view(*_read(pair, per_metre), view, generator),
        loss_of=lambda logits_BKHW, depth_BHW, step: training_depth_loss(logits_BKHW, depth_BHW[:, None], view, step),
        measure=lambda teacher, head: _measure(teacher, head, pairs["val"], per_metre, view, options.official, on_event),
        encoder_trains=lambda step: options.official, input=_input(options), constants={"values_K": bin_depths(BINS, view)},
        padding_px=lambda teacher: padding_px(teacher.encoder, options.official),
    )  # fmt: skip
    return run_dense(evaluation, model, protocol, options, on_event)


def _input(options: DepthOptions) -> dict[str, Any]:
    rule = "the whole picture at its own size, its sides padded by zeros on both ends to a multiple of the stride"
    less = ", of a ConvNeXt to a multiple of 4" if options.official else ""
    mirror = "averaged with the mirrored picture's depth, upsampled to the picture bilinearly"
    return {"size_px": None, "rule": f"{rule}{less}; {mirror}"}


def _read(pair: Pair, per_metre: float) -> tuple[Pixels, Metres]:
    picture, depth_m = read_picture(pair.picture), read_depth(pair.target, per_metre)
    refuse_other_size(pair, depth_m, picture)
    return picture, depth_m


def _refuse_no_depth(pairs: Mapping[str, list[Pair]], per_metre: float, view: DepthView) -> None:
    if not any(bool((read_depth(pair.target, per_metre) != 0).any()) for pair in pairs["train"]):  # stops at the first
        raise BadInput("no training picture has a pixel with depth, so a head would learn nothing; 0 stands for nothing measured")
    if not any(bool(valid_depth(read_depth(pair.target, per_metre), view).any()) for pair in pairs["val"]):
        raise BadInput(f"no validation picture has depth between {view.min_m} and {view.max_m} m where it is measured; check --per-metre")


def _measure(
    teacher: Teacher, head: DenseHead, pairs: list[Pair], per_metre: float, view: DepthView, official: bool, on_event: OnEvent
) -> dict[str, Any]:
    metrics, report = [], progress_reporter("depth", pairs, on_event)
    for done, pair in enumerate(pairs, start=1):
        picture, truth_m = _read(pair, per_metre)
        logits = head(patch_tokens(teacher, *stacked([picture, picture[:, ::-1]]), padding_px(teacher.encoder, official)))
        guess_m = predicted_depth(logits, (truth_m.shape[0], truth_m.shape[1]), view)
        metrics.append(depth_metrics(guess_m, truth_m, valid_depth(truth_m, view)))
        report(done)
    counted = [picture_metrics for picture_metrics in metrics if np.isfinite(picture_metrics["rmse"])]
    return {name: float(np.mean([picture_metrics[name] for picture_metrics in counted])) for name in ("rmse", "abs_rel", "delta1")}
