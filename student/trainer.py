"""The training loop, the same for all three stages and for cached and live targets.

A step is a pure function of (recipe, weights, optimiser state, step): its batch, its input sizes, its learning rate and the seed of torch's
generators all follow from the step's number, so a run that is stopped anywhere and run again gives bit-equal losses on a CPU. SIGTERM and
SIGINT end the step in hand, write a checkpoint and raise `Interrupted`. A loss or gradient that is not finite stops the run before the
weights change, naming the images. Price: one wait for the device a step, to look at the loss.
"""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from ..storage.errors import BadInput, EupeError, Interrupted
from ..storage.viewset import ViewSet
from .checkpoint import latest_checkpoint, restore, save_checkpoint
from .config import TrainRecipe
from .devices import Choice, computing
from .draws import choose_size, step_seed
from .losses import distillation_loss
from .models import Student, count_parameters
from .optimizers import build_optimizer, set_learning_rate
from .order import Order
from .run import Metrics, RunFolder, save_model
from .schedule import learning_rate
from .stream import STUDENT, Batch, Stream
from .targets import Rendering, TargetSource

Event = dict[str, Any]
OnEvent = Callable[[Event], None]


class TrainingDiverged(EupeError, ArithmeticError):
    """Loss or gradient are not finite; the text names the step and the images."""


@dataclass
class Clock:
    """Where a run's time went since it (re)started, in seconds."""

    started: float = field(default_factory=time.perf_counter)
    waited: float = 0.0
    steps: int = 0

    @property
    def seconds(self) -> float:
        """Wall time so far."""
        return time.perf_counter() - self.started

    @property
    def wait_share(self) -> float:
        """Share of the wall time that went by waiting for data."""
        return self.waited / max(self.seconds, 1e-9)


class Trainer:
    """Trains one student on one target source in one run folder."""

    def __init__(
        self,
        recipe: TrainRecipe,
        student: Student,
        source: TargetSource,
        views: ViewSet,
        order: Order,
        folder: RunFolder,
        *,
        device: Choice,
        precision: Choice,
        statistics: Mapping[str, str],
        on_event: OnEvent = lambda event: None,
    ) -> None:
        self.recipe, self.student, self.source, self.order, self.folder = recipe, student.to(device.value), source, order, folder
        self.device, self.precision, self.statistics, self.on_event = device, precision, dict(statistics), on_event
        self.optimizer = build_optimizer(student, recipe.optimizer)
        self.forward = torch.compile(student) if recipe.compile else student
        self.stream = Stream(
            views,
            source,
            order,
            self._student_rendering,
            batch_size=recipe.run.batch_size,
            threads=recipe.run.reader_threads,
            prefetch=recipe.run.prefetch_batches,
            pin=device.value == "cuda",
        )
        self.dataset = views.dataset
        self._stop = threading.Event()

    def _student_rendering(self, step: int) -> Rendering:
        size_px = choose_size(self.recipe.seed, STUDENT, step, self.recipe.student.sizes_px)
        return Rendering(STUDENT, size_px, self.student.encoder.preprocessing.interpolation)

    def train(self) -> dict[str, Any]:
        """Run to the end, from the newest checkpoint when there is one; returns the summary and writes model and summary."""
        first = self._resume()
        steps = self.recipe.run.steps
        metrics = Metrics(self.folder.out, first)
        self.on_event(self._start_event(first))
        line: Event = {}
        try:
            with self._signals():
                line = self._loop(first, steps, metrics)
        finally:
            metrics.close()
        save_model(self.student, self.folder.model, size_px=max(self.recipe.student.sizes_px), targets=self.statistics)
        summary = self._summary(first, line)
        self.folder.finish(summary)
        self.on_event({"event": "end", **summary})
        return summary

    def _resume(self) -> int:
        checkpoint = latest_checkpoint(self.folder.checkpoints)
        if checkpoint is None:
            return 0
        if checkpoint.step > self.recipe.run.steps:
            raise BadInput(f"{checkpoint.folder} is past the {self.recipe.run.steps} steps of this recipe")
        restore(checkpoint, self.student, self.optimizer)
        return checkpoint.step

    def _start_event(self, first: int) -> Event:
        return {
            "event": "start",
            "step": first,
            "steps": self.recipe.run.steps,
            "parameters": count_parameters(self.student),
            "device": f"{self.device.value}  # {self.device.why}",
            "precision": f"{self.precision.value}  # {self.precision.why}",
            "images": self.order.epoch_length,
            "excluded_images": len(self.order.excluded),
        }

    def _loop(self, first: int, steps: int, metrics: Metrics) -> Event:
        """Steps [first, steps); returns the last logged line."""
        self.clock = Clock()
        line: Event = {}
        batches = self.stream.batches(first, steps)
        with contextlib.closing(batches):  # type: ignore[type-var]
            for step in range(first, steps):
                asked = time.perf_counter()
                batch = next(batches)
                self.clock.waited += time.perf_counter() - asked
                loss, terms = self._step(batch)
                self.clock.steps += 1
                done = step + 1
                if done % self.recipe.run.log_every == 0 or done == steps:
                    line = self._line(done, batch, loss, terms)
                    metrics.write(line)
                    self.on_event({"event": "step", "steps": steps, **line})
                self._keep(done, steps)
        return line

    def _keep(self, done: int, steps: int) -> None:
        """Write the checkpoint that is due after `done` steps; raises `Interrupted` when a signal has come."""
        stopping = self._stop.is_set() and done < steps
        if stopping or done == steps or done % self.recipe.run.checkpoint_every == 0:
            described = {"recipe": self.recipe.to_dict(), "identities": self.source.identities()}
            keep = self.recipe.run.keep_checkpoints
            save_checkpoint(self.folder.checkpoints, done, self.student, self.optimizer, described, keep)
            self.on_event({"event": "checkpoint", "step": done})
        if stopping:
            raise Interrupted(
                f"stopped after step {done} of {steps}; the state is kept in {self.folder.out}, run the same command again to go on"
            )

    def _step(self, batch: Batch) -> tuple[Tensor, dict[str, dict[str, Tensor]]]:
        """One optimiser step; returns the loss and its unweighted terms."""
        step, config = batch.plan.step, self.recipe.optimizer
        torch.manual_seed(step_seed(self.recipe.seed, step))
        self.student.train()
        tensors = batch.to(self.device.value)
        with torch.no_grad():
            targets = self.source.resolve(tensors)
        with computing(self.device.value, self.precision.value):
            predicted = self.forward(tensors[f"pixels/{STUDENT}"])
        loss, terms = distillation_loss(predicted, targets, self.recipe.loss, self.recipe.teacher.weights)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.student.parameters(), config.clip_norm or math.inf)
        self._refuse_non_finite(batch, {"loss": loss.detach(), "norm of the gradient": norm})
        set_learning_rate(self.optimizer, learning_rate(step, self.recipe.run.steps, config))
        self.optimizer.step()
        return loss.detach(), {name: {term: value.detach() for term, value in each.items()} for name, each in terms.items()}

    def _refuse_non_finite(self, batch: Batch, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            if not math.isfinite(float(value)):
                images = [self.dataset.row(image).id for image in batch.plan.places.image_B[:8].tolist()]
                raise TrainingDiverged(
                    f"the {name} is {float(value)} at step {batch.plan.step + 1}; the weights were not changed. Images of this batch: "
                    f"{', '.join(images)}, … Lower optimizer.learning_rate or optimizer.clip_norm, or set precision = 'fp32'"
                )

    def _line(self, done: int, batch: Batch, loss: Tensor, terms: Mapping[str, Mapping[str, Tensor]]) -> Event:
        rate = self.clock.steps / max(self.clock.seconds, 1e-9)
        return {
            "step": done,
            "loss": float(loss),
            "losses": {name: {term: float(value) for term, value in each.items()} for name, each in terms.items()},
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "sizes_px": {one.key: one.size_px for one in batch.plan.renderings},
            "epoch": self.order.epoch_of(done * self.recipe.run.batch_size),
            "images_per_s": rate * self.recipe.run.batch_size,
            "wait_share": self.clock.wait_share,
            "seconds": self.clock.seconds,
            "seconds_left": (self.recipe.run.steps - done) / rate,
        }

    def _summary(self, first: int, line: Mapping[str, Any]) -> dict[str, Any]:
        seconds = self.clock.seconds
        return {
            "stage": self.recipe.stage,
            "steps": self.recipe.run.steps,
            "resumed_from": first,
            "seconds": seconds,
            "images_per_s": self.clock.steps * self.recipe.run.batch_size / max(seconds, 1e-9),
            "wait_share": self.clock.wait_share,
            "loss": line.get("loss"),
            "losses": line.get("losses", {}),
            "parameters": count_parameters(self.student),
            "backbone_parameters": count_parameters(self.student.encoder),
            "device": self.device._asdict(),
            "precision": self.precision._asdict(),
            "model": str(self.folder.model),
        }

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Let SIGTERM and SIGINT end the run after the step in hand; outside the main thread they are left alone."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number: int, frame: FrameType | None) -> None:
            self._stop.set()

        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
