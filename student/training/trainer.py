"""The training loop, the same for all three stages, for cached and live targets, and for one student or several on one stream.

A step is a pure function of (recipe, weights, optimiser state, step): its batch, its input sizes, its learning rate and the seed of torch's
generators all follow from the step's number, so a run that is stopped anywhere and run again gives bit-equal losses on a CPU. A stop
signal finishes the current step, writes a checkpoint and raises `Interrupted`; a step that diverges leaves a checkpoint of the step
before, and all that it was computed from (`nonfinite`).
Images are read and targets made once for all students; a student whose checkpoint is ahead of the others' waits until they have caught
up. On CUDA the host is a step ahead of the device and waits for it only where it logs, evaluates or saves: losses, the stop flags of
several ranks and the copies to the device are looked at a step later.
"""

import contextlib
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...storage.core.choices import ResizeOn
from ...storage.core.errors import BadInput, Interrupted, StoreUnavailable
from ...storage.core.events import Event, OnEvent, ignore_event
from ...storage.core.stop_signals import call_on_stop
from ...storage.views.input_size import SizePx, size_json
from ...storage.views.pixels import ReadableViews, are_stored, origin_of_pixels
from ...storage.views.view_spec import Input
from ..data.following import POLL_S, FollowedOrder
from ..data.order import BatchOrder
from ..data.prefetch import largest_inputs, prefetch_of
from ..data.stream import Batch, Plan, Stream, apply_photometric, places_of
from ..data.targets import STUDENT, Memory, Rendering, Targets, TargetSource
from ..model.draws import choose_size
from ..model.ranks import AnyLater
from ..model.recipe import TrainRecipe
from ..model.student import count_parameters
from .learner import Learner, TrainingDiverged
from .nonfinite import MicroBatch, Origin, keep_step


class _Sent(NamedTuple):
    """One step's plan and its tensors on the device."""

    plan: Plan
    tensors: Memory


@dataclass
class Clock:
    """Where a run's time went since it (re)started, in seconds."""

    started: float = field(default_factory=time.perf_counter)
    waited: float = 0.0
    steps: int = 0

    @property
    def seconds(self) -> float:
        """Return the wall time so far."""
        return time.perf_counter() - self.started

    @property
    def wait_share(self) -> float:
        """Return the share of the wall time that went by waiting for data."""
        return self.waited / max(self.seconds, 1e-9)


class Trainer:
    """Trains learners on one target source; their recipes differ in `[student]` alone, and their input sizes are the same."""

    def __init__(
        self,
        learners: Sequence[Learner],
        source: TargetSource,
        views: ReadableViews,
        order: BatchOrder,
        *,
        resize: ResizeOn = "host",
        on_event: OnEvent = ignore_event,
        stop_asked: Callable[[], bool] = lambda: False,
        after_step: Callable[[Sequence[Learner], int], None] = lambda learners, done: None,
    ) -> None:
        self.after_step = after_step
        self.learners, self.source, self.order, self.stop_asked = list(learners), source, order, stop_asked
        first = self.learners[0]
        self.recipe, self.ranks, self.device = first.recipe, first.ranks, first.device.value
        self.on_event = on_event if self.ranks.first else lambda event: None
        self.interpolation = _common_interpolation(self.learners)
        run = self.recipe.run
        resize = "host" if are_stored(views, self._inputs()) else resize  # nothing is resized
        self.prefetch = prefetch_of(self.recipe, source, self.ranks, resize)
        self.stream = Stream(
            views, source, order, self._student_rendering, batch_size=run.batch_size, threads=run.reader_threads,
            largest_px=largest_inputs(self.recipe, source), slots=self.prefetch.slots, pin=self.device.startswith("cuda"),
            ranks=self.ranks, resize=resize,
        )  # fmt: skip
        self.views, self.dataset = views, views.dataset
        self.clock = Clock()
        self._stop = threading.Event()
        self._sent: deque[_Sent] = deque(maxlen=2)
        """The batches of the steps whose losses may not have been looked at yet, on the device."""
        self._stop_flag: AnyLater | None = None

    def _student_rendering(self, step: int) -> Rendering:
        """Return the student's input in a step: its size is drawn."""
        return Rendering(STUDENT, choose_size(self.recipe.seed, STUDENT, step, self.recipe.student.sizes_px), self.interpolation)

    def _sizes_px(self, plan: Plan) -> dict[str, SizePx]:
        """Return the input sizes that are drawn in a step: the student's, and those of live teachers or of feature sets by size."""
        drawn = self.source.inputs_px(plan.step) if self.recipe.teacher.sizes_px else {}
        return {**{rendering.key: rendering.size_px for rendering in plan.renderings}, **drawn}

    def _inputs(self) -> set[Input]:
        """Return every input that a step of this run may want."""
        students = {Input(size_px, self.interpolation) for size_px in self.recipe.student.sizes_px}
        drawn = self.recipe.teacher.sizes_px
        return students | {
            Input(size_px, rendering.interpolation) for rendering in self.source.renderings(0) for size_px in drawn or (rendering.size_px,)
        }

    def train(self) -> list[dict[str, Any]]:
        """Train to the end, each learner from its newest checkpoint; write each model and summary, and return the summaries."""
        for learner in self.learners:
            learner.resume()
        first, resumed = min(learner.steps_done for learner in self.learners), [learner.steps_done for learner in self.learners]
        try:
            for learner in self.learners:
                self.on_event({"event": "start", **self._student_fields(learner), **self._start_event(learner)})
            with call_on_stop(self._stop.set):
                self._loop(first, self.recipe.run.steps)
        finally:
            for learner in self.learners:
                learner.close()
        summaries = [self._summary(learner, start) for learner, start in zip(self.learners, resumed, strict=True)]
        for learner, summary in zip(self.learners, summaries, strict=True):
            learner.finish(summary)
            self.on_event({"event": "end", **self._student_fields(learner), **summary})
        return summaries

    def _student_fields(self, learner: Learner) -> Event:
        """Return the fields that tell the events of several students apart; {} for one."""
        return {"student": learner.name, "stage": learner.name} if len(self.learners) > 1 else {}

    def _start_event(self, learner: Learner) -> Event:
        """Return what the `start` event says of a learner."""
        return {
            "step": learner.steps_done,
            "steps": self.recipe.run.steps,
            "parameters": count_parameters(learner.student),
            "device": f"{learner.device.value}  # {learner.device.why}",
            "precision": f"{learner.precision.value}  # {learner.precision.why}",
            "ranks": self.ranks.count,
            "prefetch": self.prefetch.why(),
            "pixels": origin_of_pixels(self.views, self._inputs()),
            "photometric": self.views.spec.photometric,
            "images": self.order.epoch_length,
            "batch_size": self.recipe.run.batch_size,
            "excluded_images": len(self.order.excluded),
        }

    def _loop(self, first: int, steps: int) -> None:
        """Take steps [first, steps)."""
        self.clock = Clock()
        batches = self.stream.batches(first, steps)
        with contextlib.closing(batches):  # type: ignore[type-var]
            for step in range(first, steps):
                with self._keeping_what_diverges():
                    asked = time.perf_counter()
                    self._wait_for_targets(step, steps)
                    batch = next(batches)
                    self.clock.waited += time.perf_counter() - asked
                    learners = self.step(batch)
                    self.clock.steps += 1
                    done = step + 1
                    self._call_after_step(learners, done)
                    if done % self.recipe.run.log_every == 0 or done == steps:
                        self._log(learners, batch, done, steps)
                    self._save_if_due(learners, done, steps)

    @contextlib.contextmanager
    def _keeping_what_diverges(self) -> Iterator[None]:
        """Where a step diverges, keep it and checkpoints of the step before, and raise `TrainingDiverged`."""
        try:
            yield
        except TrainingDiverged as diverged:
            refused = next(learner for learner in self.learners if learner.refused)
            for learner in self.learners:
                learner.settle()
            sent = next(sent for sent in self._sent if sent.plan.step == refused.steps_done)
            origin = Origin(self._image_ids(sent.plan), sent.plan.indices.row_B.tolist())
            kept = keep_step(refused, self._micro_batches(sent), origin, self.source.specs, self.source.identities())
            try:
                self._save([learner for learner in self.learners if learner.steps_done], refused.steps_done)
            except StoreUnavailable as error:
                kept = f"{kept}. No checkpoint of the step before could be written: {error}"
            raise TrainingDiverged(f"{diverged}. {kept}") from diverged

    def _call_after_step(self, learners: Sequence[Learner], done: int) -> None:
        """Call `after_step` (evaluations); its time is left out of the run's clock."""
        begun = time.perf_counter()
        self.after_step(learners, done)
        self.clock.started += time.perf_counter() - begun

    def step(self, batch: Batch) -> list[Learner]:
        """Take one optimiser step with every learner that has not taken it yet; return those."""
        step = batch.plan.step
        learners = [learner for learner in self.learners if learner.steps_done == step]
        sent = _Sent(batch.plan, batch.to(self.device, keep=self.learners[0].reads_later))
        self._sent.append(sent)
        for part in self._micro_batches(sent):
            for learner in learners:
                pixels_BHWC, targets = to_device(learner.device.value, part.pixels_BHWC, part.targets)
                places = {name: place_B4.to(learner.device.value) for name, place_B4 in part.places.items()}
                learner.forward_backward(step, pixels_BHWC, targets, part.share, part.last, places)
        for learner in learners:
            learner.optimizer_step(step, lambda: ", ".join(self._image_ids(batch.plan)[:8]))
        return learners

    def _micro_batches(self, sent: _Sent) -> Iterator[MicroBatch]:
        """Yield the micro-batches of this rank's batch."""
        for start, stop in self._spans():
            part = {name: tensor[start:stop] for name, tensor in sent.tensors.items()}
            seen = apply_photometric(self.views.spec.photometric, part)
            with torch.no_grad():
                targets = self.source.resolve(seen)
            share = (stop - start) / self.recipe.run.batch_size
            yield MicroBatch(seen[f"pixels/{STUDENT}"], targets, share, stop == self.stream.batch_size, places_of(seen))

    def _spans(self) -> list[tuple[int, int]]:
        """Return [start, stop) of each micro-batch in this rank's batch."""
        size, smallest = self.stream.batch_size, self.recipe.run.batch_size // self.ranks.count
        parts = min(smallest, self.recipe.run.accumulate)  # the same on every rank: sharded weights are gathered for each part together
        edges = np.linspace(0, size, parts + 1).astype(int).tolist()
        return list(itertools.pairwise(edges))

    def _image_ids(self, plan: Plan) -> list[str]:
        """Return the ids of a step's images."""
        return [self.dataset.row(image).id for image in plan.indices.image_B.tolist()]

    def _save_if_due(self, learners: Sequence[Learner], done: int, steps: int) -> None:
        """Save the checkpoints that are due after `done` steps; raises `Interrupted` when a signal has come."""
        stopping = self._stop_requested_lately() and done < steps
        if stopping or done == steps or done % self.recipe.run.checkpoint_every == 0:
            self._save(learners, done)
        if stopping:
            raise self._interrupted(done, steps)

    def _wait_for_targets(self, step: int, steps: int) -> None:
        """Wait until a step's targets are in the store on all ranks, when the run follows an extraction.

        A stop signal, and an extraction that has ended without them, save checkpoints of the steps before and raise.
        """
        if not isinstance(self.order, FollowedOrder):
            return
        while self.ranks.any(not self.order.ready(step, self.recipe.run.batch_size), self.device):
            self.on_event({"event": "progress", "stage": "wait for the extraction", **self.order.progress(), "unit": "shards"})
            hopeless, stopping = self.ranks.any(self.order.hopeless() is not None, self.device), self._stop_requested()
            if hopeless or stopping:
                self._save([learner for learner in self.learners if learner.steps_done == step], step)
                raise self.order.given_up() if hopeless else self._interrupted(step, steps)
            time.sleep(POLL_S)

    def _stop_requested(self) -> bool:
        """Return whether any rank was asked to stop; collective."""
        return self.ranks.any(self._stop.is_set() or self.stop_asked(), self.device)

    def _stop_requested_lately(self) -> bool:
        """Return the same; where several ranks would wait for their devices to answer, what was so a step ago. Collective."""
        if self.ranks.count == 1 or not self.learners[0].reads_later:
            return self._stop_requested()
        asked, self._stop_flag = self._stop_flag, self.ranks.any_later(self._stop.is_set() or self.stop_asked(), self.device)
        return asked is not None and asked.wait()

    def _save(self, learners: Sequence[Learner], done: int) -> None:
        """Save a checkpoint of each learner; collective."""
        for learner in learners:
            learner.save({"identities": self.source.identities()})
        self.on_event({"event": "checkpoint", "step": done})

    def _interrupted(self, done: int, steps: int) -> Interrupted:
        folders = ", ".join(str(learner.folder.out) for learner in self.learners)
        return Interrupted(f"stopped after step {done} of {steps}; the state is kept in {folders}, run the same command again to go on")

    def _log(self, learners: Sequence[Learner], batch: Batch, done: int, steps: int) -> None:
        """Append a line of metrics for each learner and report it."""
        rate = self.clock.steps / max(self.clock.seconds, 1e-9)
        shared = {
            "sizes_px": {key: size_json(size_px) for key, size_px in self._sizes_px(batch.plan).items()},
            "epoch": self.order.epoch_of(done * self.recipe.run.batch_size),
            "images_per_s": rate * self.recipe.run.batch_size,
            "wait_share": self.clock.wait_share,
            "seconds": self.clock.seconds,
            "seconds_left": (steps - done) / rate,
        }
        for learner in learners:
            line = {"step": done, **learner.losses(), **shared}
            learner.log(line)
            self.on_event({"event": "step", "steps": steps, **self._student_fields(learner), **line})

    def _summary(self, learner: Learner, resumed_from: int) -> dict[str, Any]:
        seconds = self.clock.seconds
        return {
            "stage": self.recipe.stage,
            "steps": self.recipe.run.steps,
            "resumed_from": resumed_from,
            "seconds": seconds,
            "images_per_s": self.clock.steps * self.recipe.run.batch_size / max(seconds, 1e-9),
            "wait_share": self.clock.wait_share,
            "loss": learner.last_metrics.get("loss"),
            "losses": learner.last_metrics.get("losses", {}),
            "parameters": count_parameters(learner.student),
            "backbone_parameters": count_parameters(learner.student.encoder),
            "device": learner.device._asdict(),
            "precision": learner.precision._asdict(),
            "ranks": self.ranks.count,
            "prefetch": self.prefetch.described(),
            "model": str(learner.folder.model),
            **learner.best(),
        }


def _common_interpolation(learners: Sequence[Learner]) -> str:
    """Return how the students' pixels are resized; raises `BadInput` when one stream cannot serve them all."""
    kinds = {learner.student.encoder.preprocessing.interpolation for learner in learners}
    shared = {_comparable_values(learner.recipe) for learner in learners}
    if len(kinds) > 1 or len(shared) > 1:
        raise BadInput("students of one pass need one recipe: only [student] may differ, and not sizes_px")
    return kinds.pop()


def _comparable_values(recipe: TrainRecipe) -> str:
    """Return what the recipes of learners on one stream must have in common."""
    plain = recipe.decisive()
    return repr([plain["student"]["sizes_px"], {key: value for key, value in plain.items() if key != "student"}])


def to_device(device: str, pixels_BHWC: Tensor, targets: Targets) -> tuple[Tensor, Targets]:
    """Return pixels and targets on a learner's device; nothing is copied where they are there already."""
    moved = {
        name: type(tokens)._make(field.to(device) if isinstance(field, Tensor) else field for field in tokens)
        for name, tokens in targets.items()
    }
    return pixels_BHWC.to(device), moved
