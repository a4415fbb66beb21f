"""Object detection of a model: LW-DETR's detector on its patch tokens, frozen or finetuned, in COCO's layout; AP by pycocotools.

    FOLDER/evaluations/detection-<digest12>.json                  the record
    FOLDER/evaluations/detection-<digest12>.head.safetensors      the detector, with the encoder where it was finetuned
    FOLDER/evaluations/detection-<digest12>.partial.safetensors   the training so far

See `student.heads.detection` for the protocol, which is ours, and `storage.annotations.coco` for the layout, which is checked whole before
the first step (`check` does nothing else).
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...storage.annotations.coco import CocoSplit, check_together, coco_digest, pictures_of, read_coco
from ...storage.annotations.coco_layout import coco_layout
from ...storage.annotations.dense_pairs import read_picture
from ...storage.core.errors import BadInput
from ...storage.core.events import OnEvent, ignore_event
from ...storage.views.input_size import square_side
from ...storage.views.view_spec import resize
from ...student.heads.detection import (
    DETECTION_RECIPE,
    INTERPOLATION,
    MOST_FOUND,
    DetectorShape,
    LearningDetector,
    View,
    average_precision,
    best_found,
    need_libraries,
    training_view,
)
from ...student.heads.detector import Detector
from ...student.heads.kept import KeptHead, head_path, keep_head
from ...student.model.draws import step_seed
from ...student.probes.dense_head import HeadRecipe
from ...student.probes.evaluation_records import record_path
from ...student.probes.head_training import HeadTraining
from ...teachers.registry.teacher import Teacher
from ...teachers.runtime.devices import choose_device, mixed_precision
from ..evaluation.dense import PARTIAL_HEAD, READ_THREADS, DenseOptions, drawing_generator, open_dense_model, pictures_of_step
from ..evaluation.knn import evaluated
from ..evaluation.models import Model
from ..evaluation.split_checks import check_overlap

SIZE_PX = 512
_AT_ONCE = 8


@dataclass(frozen=True, kw_only=True)
class DetectionOptions(DenseOptions):
    """A detection evaluation: of which model, over which pictures with boxes, and how its detector is trained."""

    finetune: bool = False
    """Train a copy of the encoder as well, at a tenth of the rate, instead of leaving it frozen."""
    steps: int | None = None
    """Of the detector; the schedule is shortened with them."""
    batch_size: int | None = None
    """Pictures of a step."""
    learning_rate: float | None = None
    seed: int = 0
    allow_overlap: bool = False
    """Validation pictures that are also trained on are a warning instead of an error."""
    keep_head: bool = True
    """Keep the detector beside its record, so that `export --head` can take it along."""
    shape: DetectorShape = field(default_factory=DetectorShape)
    head: HeadRecipe = DETECTION_RECIPE

    def recipe(self) -> HeadRecipe:
        """Return how the detector is trained."""
        recipe = self.head if self.steps is None else self.head.shortened(self.steps)
        changes = {"batch_size": self.batch_size, "learning_rate": self.learning_rate}
        return replace(recipe, **{name: value for name, value in changes.items() if value is not None})  # type: ignore[arg-type]


class _Batch(NamedTuple):
    pixels_BHWC: Tensor
    views: list[View]


def evaluate_detection(options: DetectionOptions, on_event: OnEvent = ignore_event) -> dict[str, Any]:
    """Return COCO's AP in percent on the validation pictures, by IoU, size and class; kept beside the model.

    Raises `BadInput` for anything in the layout that cannot be learnt from or measured, before any step.
    """
    if options.check:
        report = coco_layout(options.data)
        return {**report.found, **report.result()}
    train, val = (read_coco(options.data, split) for split in ("train", "val"))
    check_together(train, val)
    splits = {"train": train, "val": val}
    need_libraries()
    model, recipe, size_px = open_dense_model(options), options.recipe(), square_side(options.size_px or SIZE_PX, "the detector")
    if size_px % model.spec.stride_px:
        raise BadInput(f"--size {size_px} is no multiple of this model's patches of {model.spec.stride_px} px")
    pictures = {"train": pictures_of(train), "val": pictures_of(val)}
    in_both = check_overlap(
        pictures["train"], pictures["val"], lambda index: val.pictures[index].path.name, where="training and validation split",
        allowed=options.allow_overlap, on_event=on_event,
    )  # fmt: skip
    data = {
        name: {"pictures": len(split.pictures), "boxes": split.boxes, "digest": coco_digest(split, pictures[name])}
        for name, split in splits.items()
    }
    settings = {
        "width": model.spec.patch_dim, "outputs": len(val.names), "shape": options.shape.for_grid(model.spec.stride_px, size_px),
        **({"finetuned": True} if options.finetune else {}),
    }  # fmt: skip
    protocol = {
        "data": data, "layers": "last, normed patch tokens", "detector": "LW-DETR of transformers", "settings": settings,
        "encoder": "finetuned" if options.finetune else "frozen", "size_px": size_px, "head": recipe.identity(), "seed": options.seed,
    }  # fmt: skip
    if options.dry_run:
        return {"dry_run": True, "model": model.name, "folder": str(model.folder), "protocol": protocol}
    job = _Job(options, model, recipe, size_px, splits, settings, protocol, on_event)
    return evaluated("detection", model, protocol, lambda: job.compute(in_both), on_event, keeps_head=options.keep_head)


@dataclass(frozen=True)
class _Job:
    """One detection evaluation, ready to run."""

    options: DetectionOptions
    model: Model
    recipe: HeadRecipe
    size_px: int
    splits: Mapping[str, CocoSplit]
    settings: Mapping[str, Any]
    protocol: dict[str, Any]
    on_event: OnEvent

    def compute(self, in_both: int) -> dict[str, Any]:
        """Train, measure, keep the head; return the results."""
        full_protocol = {**self.protocol, "model": self.model.identity}
        path = record_path(self.model.folder, "detection", full_protocol)
        teacher, partial = self.model.load(choose_device(self.options.device).value), path.with_suffix(PARTIAL_HEAD)
        learning = self.train(teacher, partial)
        val = self.splits["val"]
        results = {
            "train_pictures": len(self.splits["train"].pictures), "val_pictures": len(val.pictures), "test_images_in_train": in_both,
            **self.measure(teacher, learning.detector),
        }  # fmt: skip
        if self.options.keep_head:
            tensors = learning.detector.state_dict()
            if learning.encoder is not None:
                tensors |= {f"encoder.{name}": tensor for name, tensor in learning.encoder.state_dict().items()}
            rule = f"the whole picture as a square of {self.size_px} px (bilinear); the {MOST_FOUND} best pairs of box and class count"
            described = {"size_px": self.size_px, "interpolation": INTERPOLATION, "whole": True, "rule": rule}
            head = KeptHead("detection", self.model.identity, full_protocol, self.settings, described, val.names, results, tensors)
            keep_head(head_path(path), head, self.on_event)
        partial.unlink(missing_ok=True)
        return results

    def train(self, teacher: Teacher, partial: Path) -> LearningDetector:
        """Return the trained detector in eval mode, resumed from the partial file where there is one."""
        torch.manual_seed(step_seed(self.options.seed, -1))
        teacher.encoder.requires_grad_(self.options.finetune)
        encoder = teacher.encoder if self.options.finetune else None
        learning = LearningDetector(Detector(self.settings), encoder).to(teacher.device)
        training = HeadTraining(
            learning, self.recipe, partial, seed=self.options.seed, on_event=self.on_event, make_batch=self.batch,
            loss_of=lambda head, batch, step: head.loss(self.tokens(teacher, batch.pixels_BHWC), batch.views),
            optimizer=learning.optimizer(self.recipe),
        )  # fmt: skip
        training.train_until(self.recipe.steps)
        return learning.eval()

    def batch(self, step: int) -> _Batch:
        """Return the drawn views of a step."""
        pictures, seed = self.splits["train"].pictures, self.options.seed

        def draw(numbered: tuple[int, int]) -> View:
            index, number = numbered
            picture = pictures[number]
            return training_view(read_picture(picture.path), *picture.learnt(), self.size_px, drawing_generator(seed, step, index))

        with ThreadPoolExecutor(READ_THREADS) as pool:
            numbers = pictures_of_step(step, self.recipe.batch_size, len(pictures), seed)
            views = list(pool.map(draw, enumerate(numbers)))
        return _Batch(torch.from_numpy(np.stack([view.pixels for view in views])), views)

    def tokens(self, teacher: Teacher, pixels_BHWC: Tensor) -> Tensor:
        """Return patch tokens (B, H, W, D) in fp32, with gradients where the encoder is finetuned."""
        x_BCHW = teacher.spec.preprocessing.apply(pixels_BHWC.to(teacher.device)).contiguous()
        with (
            torch.set_grad_enabled(self.options.finetune and torch.is_grad_enabled()),
            mixed_precision(teacher.device, teacher.spec.precision),
        ):
            patch_BHWD: Tensor = teacher.encoder(x_BCHW).patch_BHWD.float()
        return patch_BHWD

    @torch.no_grad()
    def measure(self, teacher: Teacher, detector: Detector) -> dict[str, Any]:
        """Return AP over the validation pictures."""
        val, found = self.splits["val"], list[dict[str, Any]]()
        for start in range(0, len(val.pictures), _AT_ONCE):
            pictures = val.pictures[start : start + _AT_ONCE]
            squares = np.stack([resize(read_picture(picture.path), False, self.size_px, INTERPOLATION) for picture in pictures])
            boxes_BQ4, scores_BQK = (part.cpu() for part in detector.found(self.tokens(teacher, torch.from_numpy(squares))))
            for picture, boxes_Q4, scores_QK in zip(pictures, boxes_BQ4, scores_BQK, strict=True):
                found += best_found(boxes_Q4, scores_QK, picture, val)
            done = start + len(pictures)
            self.on_event({"event": "progress", "stage": "detection", "done": done, "total": len(val.pictures), "unit": "images"})
        return average_precision(val, found)
