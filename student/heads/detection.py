"""Detection on patch tokens: how pictures and boxes are drawn for training, the loss, and AP by pycocotools.

Training: half of the pictures cropped to at least half of each side (objects whose centre is cut off go), mirrored half of the time, then
resized to a square whatever their shape, as LW-DETR does. Measuring: the whole picture as a square, the 100 best pairs of box and class,
boxes in the picture's own pixels, COCO's AP. The protocol is ours: nobody publishes one for frozen encoders of this kind. Boxes are left,
top, right, bottom. Axes: B pictures, n objects of one, Q queries, K classes.
"""

import contextlib
import importlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...storage.annotations.coco import CocoPicture, CocoSplit
from ...storage.core.errors import BadInput
from ...storage.sources.decode import Pixels
from ...storage.views.view_spec import resize
from ...teachers.encoders.encoder import Encoder
from ..probes.dense_head import HeadRecipe
from .detector import Detector

INTERPOLATION = "bilinear"  # of whole pictures to squares
MOST_FOUND = 100  # COCO's limit for a picture
ENCODER_RATE = 0.1
"""Share of the learning rate at which a finetuned encoder learns."""
_LIBRARIES = ("scipy", "pycocotools")

DETECTION_RECIPE = HeadRecipe(20_000, 16, 2e-4, 1e-4, warmup_steps=500, beta2=0.999, clip_norm=0.1, warmup_ratio=1e-3)


@dataclass(frozen=True)
class DetectorShape:
    """The size of the detector, under the names of transformers' LwDetrConfig."""

    d_model: int = 256
    decoder_layers: int = 3
    decoder_ffn_dim: int = 2048
    decoder_self_attention_heads: int = 8
    decoder_cross_attention_heads: int = 16
    num_queries: int = 300
    group_detr: int = 13
    c2f_num_blocks: int = 3

    def for_grid(self, stride_px: int, size_px: int) -> dict[str, Any]:
        """Return the config for patches of a size: maps coarser than 16 px are doubled; no more queries than places.

        Raises `BadInput` for an input without room for a box.
        """
        scale = 2.0 if stride_px > 16 else 1.0
        places = int(size_px // stride_px * scale) ** 2
        if places < 4:
            raise BadInput(f"an input of {size_px} px has {places} places for boxes; give a larger --size")
        return {**asdict(self), "num_queries": min(self.num_queries, places), "projector_scale_factors": [scale]}


def need_libraries() -> None:
    """Raise `BadInput` that names the extra where a library of the detector or of AP is missing."""
    missing = [name for name in _LIBRARIES if importlib.util.find_spec(name) is None]
    import transformers

    if not hasattr(transformers, "LwDetrForObjectDetection"):
        missing.append(f"a transformers with LW-DETR (this is {transformers.__version__})")
    if missing:
        raise BadInput(f"detection needs {' and '.join(missing)}; run: pip install 'eupe-pipeline[detection]'")


class View(NamedTuple):
    """A square picture (S, S, 3), boxes (n, 4) as shares of its sides, categories (n,)."""

    pixels: Pixels
    boxes: NDArray[np.float32]
    categories: NDArray[np.int64]


def training_view(
    picture: Pixels, boxes: NDArray[np.float32], categories: NDArray[np.int64], size_px: int, generator: np.random.Generator
) -> View:
    """Draw a crop and a mirroring of a picture with boxes in its pixels."""
    if generator.random() < 0.5:
        height, width = (max(1, round(side * generator.uniform(0.5, 1.0))) for side in picture.shape[:2])
        top, left = (int(generator.integers(0, side - kept + 1)) for side, kept in zip(picture.shape, (height, width), strict=False))
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2 - np.array([left, top], np.float32)
        inside = ((centres > 0) & (centres < np.array([width, height], np.float32))).all(axis=1)
        moved = boxes[inside] - np.array([left, top, left, top], np.float32)
        boxes, categories = np.clip(moved, 0, np.array([width, height, width, height], np.float32)), categories[inside]
        picture = picture[top : top + height, left : left + width]
    shares = boxes / np.array([picture.shape[1], picture.shape[0]] * 2, np.float32)
    if generator.random() < 0.5:
        picture, shares = picture[:, ::-1], np.stack([1 - shares[:, 2], shares[:, 1], 1 - shares[:, 0], shares[:, 3]], axis=1)
    return View(resize(picture, False, size_px, INTERPOLATION), shares.astype(np.float32), categories)


class LearningDetector(nn.Module):
    """A detector while it learns, with the encoder in eval mode: frozen, or finetuned as a part of it."""

    def __init__(self, detector: Detector, encoder: Encoder | None) -> None:
        super().__init__()
        self.detector, self.encoder = detector, encoder

    def train(self, mode: bool = True) -> "LearningDetector":
        """Set the detector's mode; the encoder draws nothing and keeps its statistics."""
        super().train(mode)
        if self.encoder is not None:
            self.encoder.eval()
        return self

    def loss(self, patch_BHWD: Tensor, views: Sequence[View]) -> Tensor:
        """Return LW-DETR's loss: classes by IoU, boxes by L1 and GIoU, of the matched queries of every group and layer."""
        labels = [
            {"class_labels": torch.from_numpy(view.categories).to(patch_BHWD.device), "boxes": _centred(view.boxes).to(patch_BHWD.device)}
            for view in views
        ]
        loss: Tensor = self.detector.detr(patch_BHWD.permute(0, 3, 1, 2), labels=labels).loss
        return loss

    def optimizer(self, recipe: HeadRecipe) -> torch.optim.Optimizer:
        """Return AdamW over what learns, the encoder at a tenth of the rate."""
        groups: list[dict[str, Any]] = [{"params": list(self.detector.parameters()), "rate_share": 1.0}]
        if self.encoder is not None:
            groups.append({"params": list(self.encoder.parameters()), "rate_share": ENCODER_RATE})
        return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, recipe.beta2), weight_decay=recipe.weight_decay)


def _centred(boxes: NDArray[np.float32]) -> Tensor:
    corners = torch.from_numpy(boxes).reshape(-1, 4)
    return torch.cat([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], dim=1)


def best_found(boxes_Q4: Tensor, scores_QK: Tensor, picture: CocoPicture, split: CocoSplit) -> list[dict[str, Any]]:
    """Return a picture's best pairs of box and class in COCO's form of results; the boxes are cut at the picture's edges."""
    scores, places = scores_QK.flatten().sort(descending=True, stable=True)
    scores, places = scores[:MOST_FOUND], places[:MOST_FOUND]
    queries, classes = places // scores_QK.shape[1], places % scores_QK.shape[1]
    sides = torch.tensor([picture.width, picture.height] * 2, dtype=torch.float64)
    corners = boxes_Q4.double().clamp(0, 1)[queries] * sides
    found = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], dim=1).tolist()
    return [
        {"image_id": picture.id, "category_id": split.category_ids[category], "bbox": box, "score": score}
        for box, category, score in zip(found, classes.tolist(), scores.tolist(), strict=True)
    ]


FIGURES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


def average_precision(split: CocoSplit, found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return COCO's AP in percent by pycocotools: over IoU 0.5 to 0.95, at 0.5, at 0.75, by size and by class; None where nothing is."""
    api, measure = importlib.import_module("pycocotools.coco"), importlib.import_module("pycocotools.cocoeval")
    with contextlib.redirect_stdout(io.StringIO()):  # it reports on the standard output
        truth = api.COCO()
        truth.dataset = _as_coco(split)
        truth.createIndex()
        evaluation = measure.COCOeval(truth, truth.loadRes([dict(one) for one in found]), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][:, :, :, 0, 2]  # IoU × recall × class, all sizes, 100 found
    by_class = {name: _percent(float(np.mean(precision[:, :, index]))) for index, name in enumerate(split.names)}
    return {**{name: _percent(float(value)) for name, value in zip(FIGURES, evaluation.stats, strict=False)}, "ap_by_class": by_class}


def _percent(value: float) -> float | None:
    """Return percent; pycocotools says −1 where no object is of the kind."""
    return None if value < 0 else 100 * value


def _as_coco(split: CocoSplit) -> dict[str, Any]:
    return {
        "images": [{"id": one.id, "height": one.height, "width": one.width} for one in split.pictures],
        "categories": [{"id": number, "name": name} for number, name in zip(split.category_ids, split.names, strict=True)],
        "annotations": [
            {"id": one.id, "image_id": picture.id, "category_id": split.category_ids[one.category], "bbox": list(one.box), "area": one.area,
             "iscrowd": int(one.crowd)}
            for picture in split.pictures for one in picture.objects
        ],
    }  # fmt: skip
