"""Stage 2 on a GPU: a ViT-T from cached int8 targets of the 1.9 B proxy, against the same steps with the proxy live in bf16.

Images a second of optimiser steps on streamed batches, the share of them in which the device waits for a batch (it is synchronised after
each step, so that the wait is the stream's and not the queue's), and cached over live against 1 + proxy's forward / student's step. The
targets are random codes in the proxy's shape, the proxy has random weights: both cost what real ones do.
"""

import itertools
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from eupe_pipeline.jobs.training.train import initial_student
from eupe_pipeline.storage.features.features import FeatureReader
from eupe_pipeline.student.data.order import Order
from eupe_pipeline.student.data.stream import Batch
from eupe_pipeline.student.data.targets import CachedTargets, LiveTargets, TargetSource
from eupe_pipeline.student.model.recipe import RunConfig, StudentConfig, TrainRecipe
from eupe_pipeline.student.training.learner import Learner
from eupe_pipeline.student.training.run_folder import RunFolder
from eupe_pipeline.student.training.trainer import Trainer
from eupe_pipeline.teachers.encoders.build import canonical
from eupe_pipeline.teachers.encoders.preprocessing import Preprocessing
from eupe_pipeline.teachers.registry.resolve import load_teacher
from eupe_pipeline.teachers.registry.spec import RANDOM_WEIGHTS, TeacherSpec
from eupe_pipeline.teachers.runtime.devices import Choice, choose_precision

from .bench_train import kept
from .figures import interleave, medians
from .training_store import make_store, unit_statistics


@dataclass(frozen=True)
class TrainingSize:
    """How much is trained."""

    proxy: str = "proxy-1.9b"
    student: str = "eupe_vitt16"
    size_px: int = 256
    images: int = 2048
    batch: int = 256
    steps: int = 8
    rounds: int = 5
    threads: int = 14
    patch_px: int = 16

    @classmethod
    def tiny(cls) -> "TrainingSize":
        """Return a few images of 64 px and a proxy of a few layers."""
        return cls("vit-mini", "vit-mini", 32, 16, 4, 1, 2, 1, 8)


def _synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def proxy_spec(size: TrainingSize) -> TeacherSpec:
    """Return the proxy with random weights."""
    architecture, side = canonical(size.proxy), size.size_px // size.patch_px
    prep, width = Preprocessing(size.size_px), int(architecture["width"])
    return TeacherSpec("proxy", architecture, Path(), RANDOM_WEIGHTS, prep, "class token", width, width, (side, side), "bf16")


def trainer_of(recipe: TrainRecipe, source: TargetSource, reader: FeatureReader, folder: Path, device: str) -> Trainer:
    """Return a trainer whose steps are called one by one."""
    learner = Learner(
        recipe,
        initial_student(recipe, source.specs),
        RunFolder(folder),
        device=Choice(device, "benchmark"),
        precision=choose_precision("bf16", device),
        statistics={},
    )
    return Trainer([learner], source, reader.views, Order(len(reader.views.dataset), reader.views.views_per_image, 0))


class Steps:
    """Optimiser steps of one trainer: seconds of each, and how much of them it waited for its batch."""

    def __init__(self, trainer: Trainer, count: int, device: str) -> None:
        self.trainer, self.count, self.device = trainer, count, device
        self.seconds: list[float] = []
        self.waits: list[float] = []

    def streamed(self, number: int) -> None:
        """Train on other images each round; the first step is not counted, because a stream's start is no part of a long run."""
        first = (number + 1) * (self.count + 1)
        self._do(self.trainer.stream.batches(first, first + self.count + 1), counted=number >= 0)

    def in_memory(self, number: int) -> None:
        """Train on one batch that is kept."""
        batch = kept(next(self.trainer.stream.batches(0, 1)))
        self._do(itertools.repeat(batch, self.count + 1), counted=number >= 0)

    def _do(self, batches: Iterable[Batch], *, counted: bool) -> None:
        iterator = iter(batches)
        for step in range(self.count + 1):
            began = time.perf_counter()
            batch = next(iterator)
            got = time.perf_counter()
            self.trainer.learners[0].steps_done = batch.plan.step
            self.trainer.step(batch)
            _synchronise(self.device)
            if counted and step:
                self.waits.append(got - began)
                self.seconds.append(time.perf_counter() - began)


def forwards(source: LiveTargets, batch: Batch, device: str) -> Callable[[int], None]:
    """Compute the live targets of one batch and nothing else."""

    def run(number: int) -> None:
        source.resolve(batch.tensors)
        _synchronise(device)

    return run


def bench_training(folder: Path, size: TrainingSize, device: str) -> tuple[dict[str, float], dict[str, Any]]:
    """Return figures (with `ideal`, what cached over live can be), and the seconds of a step that they were made of."""
    spec = proxy_spec(size)
    reader = make_store(folder, size.images, spec.grid, spec.patch_dim)
    run = RunConfig(10**6, size.batch, reader_threads=size.threads)
    recipe = replace(TrainRecipe(device=device), student=StudentConfig(size.student, {}, (size.size_px,)), run=run)
    live = LiveTargets({"bench": load_teacher(spec, device)}, {"bench": unit_statistics(spec.patch_dim)})
    sources: dict[str, TargetSource] = {
        "cached": CachedTargets({"bench": reader}),
        "memory": CachedTargets({"bench": reader}),
        "live": live,
    }
    steps = {name: Steps(trainer_of(recipe, one, reader, folder / name, device), size.steps, device) for name, one in sources.items()}
    batch = kept(next(steps["live"].trainer.stream.batches(0, 1)))
    contestants = {
        "cached": steps["cached"].streamed,
        "memory": steps["memory"].in_memory,
        "live": steps["live"].streamed,
        "forward": forwards(live, batch, device),
    }
    forward_s = medians(interleave(contestants, size.rounds))["forward"]
    cached, memory, alive = (float(np.median(steps[name].seconds)) for name in ("cached", "memory", "live"))
    figures = {
        "gpu.train_vitt.images_per_s": size.batch / cached,
        "gpu.train_vitt.wait_share": sum(steps["cached"].waits) / sum(steps["cached"].seconds),
        "gpu.train_vitt.step/in_memory": memory / cached,
        "gpu.train_vitt.cached/live": alive / cached,
        "ideal": 1 + forward_s / memory,
    }
    return figures, {"cached_s": cached, "memory_s": memory, "live_s": alive, "forward_s": forward_s, "size": asdict(size)}
