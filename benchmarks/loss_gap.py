"""Cached against live losses with the fp32 codec: the same recipe, views and steps, through the two target sources.

The store is filled by the real extraction job, one view a forward, and the live teacher forwards one view at a time as well: matrix kernels
round differently for other batch sizes, which is the only difference that there could be.
"""

from dataclasses import replace
from pathlib import Path

import torch
from eupe_pipeline.jobs.extraction.extract import extract_features
from eupe_pipeline.jobs.extraction.options import ExtractOptions, TeacherRequest
from eupe_pipeline.jobs.training.data import open_features
from eupe_pipeline.jobs.training.train import initial_student
from eupe_pipeline.storage.images.indexing import build_index
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.views.view_set import ViewSet
from eupe_pipeline.storage.views.view_spec import ViewSpec
from eupe_pipeline.student.data.order import Order
from eupe_pipeline.student.data.targets import CachedTargets, LiveTargets, TargetSource
from eupe_pipeline.student.model.recipe import OptimizerConfig, RunConfig, StudentConfig, TrainRecipe
from eupe_pipeline.student.model.student import Student, TargetSpec
from eupe_pipeline.student.training.learner import Learner
from eupe_pipeline.student.training.run_folder import RunFolder, read_metrics, save_model
from eupe_pipeline.student.training.trainer import Trainer
from eupe_pipeline.teachers.encoders.build import build_encoder
from eupe_pipeline.teachers.registry.resolve import load_teacher, resolve_teacher
from eupe_pipeline.teachers.runtime.devices import Choice

from .training_store import make_images

SIZE_PX = 64


def loss_gap_fp32(folder: Path, steps: int) -> float:
    """Return the largest difference of the two runs' losses over `steps` steps."""
    make_images(folder / "images", 24)
    torch.manual_seed(1)
    teacher_student = Student(build_encoder({"name": "vit-mini", "layer_scale": 1.0}), 8, {"none": TargetSpec(None, 4, (1, 1))})
    save_model(teacher_student, folder / "teacher" / "model", size_px=SIZE_PX, targets={})
    store = FeatureStore.create(str(folder / "store"))
    build_index(store.objects, str(folder / "images"), "gap")
    options = ExtractOptions(
        store.url, "gap", (TeacherRequest(str(folder / "teacher")),), ViewSpec(views_per_image=2), codec="fp32", batch_size=1, workers=0,
        images_per_shard=8, statistics_batches=48,
    )  # fmt: skip
    extract_features(options)
    readers = open_features(store, ["teacher"], "gap")
    teacher = load_teacher(resolve_teacher(str(folder / "teacher")))
    live = LiveTargets({"teacher": teacher}, {"teacher": readers["teacher"].statistics}, forward_batch=1)
    curves = [
        _losses(source, folder / name, steps, readers["teacher"].views)
        for name, source in (("cached", CachedTargets(readers)), ("live", live))
    ]
    return float(max(abs(one - other) for one, other in zip(*curves, strict=True)))


def _losses(source: TargetSource, out: Path, steps: int, views: ViewSet) -> list[float]:
    recipe = replace(
        TrainRecipe(precision="fp32", device="cpu"),
        student=StudentConfig("vit-mini", {}, (SIZE_PX,)),
        optimizer=OptimizerConfig(learning_rate=1e-2),
        run=RunConfig(steps, 8, checkpoint_every=steps, log_every=1),
    )
    cpu = Choice("cpu", "benchmark")
    learner = Learner(
        recipe, initial_student(recipe, source.specs), RunFolder(out), device=cpu, precision=Choice("fp32", ""), statistics={}
    )
    out.mkdir()
    Trainer([learner], source, views, Order(len(views.dataset), views.views_per_image, 0)).train()
    return [line["loss"] for line in read_metrics(out)]
