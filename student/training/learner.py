"""One student in training: its weights, optimiser, moving average, checkpoints and metrics in one run folder.

The trainer calls `forward_backward` for each micro-batch of a step and then `optimizer_step`. Several learners may share a stream; each
computes exactly what it would compute alone, because torch's generators are seeded anew from (seed, step) before each forward pass. All
micro-batches of a step and all ranks use the same seed: what the model draws once a forward pass (the RoPE rescale) then does not depend on
how a batch is divided. Price: with drop-path, samples at the same row of different micro-batches leave out the same branches.
A loss or gradient that is not finite stops the run before the weights change, naming the images. On CUDA the device itself leaves the
weights as they are, and the host looks at the loss a step later (`reads_later`), so that the device never waits for it.
"""

import contextlib
import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...storage.core.errors import BadInput, CacheDamaged, EupeError
from ...storage.core.events import Event
from ...storage.features.layers import split_target
from ...storage.views.input_size import area_px
from ...teachers.encoders.tokens import SampledTokens, Tokens
from ...teachers.runtime.copy_streams import HostValues
from ...teachers.runtime.devices import Choice, attention_kernel, autocast
from ...teachers.runtime.host_memory import keep_freed_memory
from ..data.stream import NOWHERE, by_target
from ..data.targets import Targets
from ..model.batch_norms import KeptStatistics, average_over_ranks, follow, follow_statistics
from ..model.draws import draw_shift, dropped_teachers, step_seed
from ..model.grids import NO_SHIFT, Shift, most_shifted, shift_pixels, smallest_shift
from ..model.losses import NO_SPACES, ClassSpace, distillation_loss, term_weights
from ..model.optimizers import build_optimizer, guard_next_step, set_learning_rate, take_back_guarded_step
from ..model.ranks import ALONE, Ranks
from ..model.recipe import TrainRecipe
from ..model.schedule import learning_rate
from ..model.sharding import clip_gradient_norm, parallelize, set_gradient_sync
from ..model.student import Student
from ..quantised.aware import AwareEncoder
from .checkpoint import (
    best_checkpoint,
    checkpoint_score,
    latest_checkpoint,
    load_best,
    read_int8_ranges,
    remove_leftovers,
    restore,
    save_checkpoint,
    step_in_name,
)
from .metrics import Metrics, read_metrics
from .run_folder import RunFolder, save_model

Sums = dict[tuple[str, str], Tensor]
"""Loss `LOSS` and unweighted terms by (teacher, term)."""
LOSS = ("", "")
_SMOOTHED_STEPS = 100  # the loss is averaged evenly over the first steps, with a decay of 1 − 1/100 after them


class TrainingDiverged(EupeError, ArithmeticError):
    """Loss or gradient are not finite; the text names the step and the images."""


def reads_later(device: str) -> bool:
    """Return whether the host looks at a step's loss only after it has queued the next one: where a device has a queue."""
    return torch.device(device).type == "cuda"


@dataclass(frozen=True)
class _Step:
    """A step whose loss and norm of the gradient, over all ranks, the host has not looked at yet."""

    number: int
    image_ids: Callable[[], str]
    own_sums: Sums
    statistics: KeptStatistics
    """Running statistics of batch norms as they were before it."""
    values: HostValues
    """The sums in the order of `own_sums`, and the norm."""
    refused: Tensor
    """1 on the device where one of both is not finite, else 0."""


class Learner:
    """A student with everything that its steps change; `steps_done` counts its finished steps.

    `statistics` has the digest of the statistics behind each teacher's targets, by name: what the saved adapters map to. `spaces` has the
    teachers' own spaces of class tokens, where the recipe compares these by angles.
    """

    def __init__(
        self,
        recipe: TrainRecipe,
        student: Student,
        folder: RunFolder,
        *,
        device: Choice,
        precision: Choice,
        statistics: Mapping[str, str],
        ranks: Ranks = ALONE,
        spaces: Mapping[str, ClassSpace] = NO_SPACES,
    ) -> None:
        keep_freed_memory(device.value)
        self.recipe, self.student, self.folder = recipe, student.to(device.value), folder
        self.device, self.precision, self.statistics, self.ranks = device, precision, dict(statistics), ranks
        self.spaces = {
            name: ClassSpace(space.mean_D.to(device.value), space.scale.to(device.value), space.dispersion)
            for name, space in spaces.items()
        }
        self.average = self._copy_for_average()
        parallel_student = parallelize(student, recipe.run.parallel, ranks)
        self.forward: nn.Module = torch.compile(parallel_student) if recipe.compile else parallel_student  # type: ignore[assignment]
        self._parallel_student = parallel_student
        self.optimizer = build_optimizer(student, recipe.optimizer)
        self.parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
        self.steps_done = 0
        self.metrics: Metrics | None = None
        self.last_metrics: Event = {}
        self.smoothed_loss = 0.0
        self._evaluated: tuple[int, float] | None = None
        self.evaluated_by = "knn"
        """Name of the evaluation that `evaluation` is of."""
        self._sums: Sums = {}
        self._last: dict[tuple[str, str], float] = {}
        self.own_sums: Sums = {}
        """Of the step that was refused, this rank's part."""
        self.refused: dict[str, float] = {}
        """What was not finite, or beside it: loss and norm of the gradient over all ranks."""
        self._kept_statistics = KeptStatistics(student)
        self.reads_later = reads_later(device.value)
        self._unread: _Step | None = None
        self.aware = AwareEncoder(student.encoder, recipe.student.sizes_px) if recipe.quantise.steps else None
        """The encoder as its int8 graph computes, for the last phase."""

    def _copy_for_average(self) -> Student | None:
        """Return a copy of the student for the moving average, None without one; raises `BadInput` with FSDP."""
        if not self.recipe.student.ema:
            return None
        if self.ranks.count > 1 and self.recipe.run.parallel == "fsdp":
            raise BadInput("student.ema keeps a whole copy of the weights and does not work with run.parallel = 'fsdp'; use 'ddp'")
        return copy.deepcopy(self.student).requires_grad_(False)

    @property
    def name(self) -> str:
        """Return the architecture's name."""
        return self.recipe.student.architecture

    @property
    def evaluation(self) -> float | None:
        """Return the evaluation of the current weights, higher is better; None where this step was not evaluated."""
        return self._evaluated[1] if self._evaluated is not None and self._evaluated[0] == self.steps_done else None

    @evaluation.setter
    def evaluation(self, figure: float | None) -> None:
        self._evaluated = None if figure is None else (self.steps_done, figure)

    def resume(self) -> None:
        """Load the newest checkpoint when there is one, and open the metrics; raises `BadInput` when it is past the recipe's steps."""
        checkpoint = latest_checkpoint(self.folder.checkpoints)
        if checkpoint is not None:
            if checkpoint.step > self.recipe.run.steps:
                raise BadInput(f"{checkpoint.folder} is past the {self.recipe.run.steps} steps of this recipe")
            restore(checkpoint, self.student, self.optimizer, self.average)
            self.steps_done = checkpoint.step
            self.load_int8_ranges(checkpoint.folder)
            score = checkpoint_score(checkpoint.folder)
            self.smoothed_loss, self.evaluation = score.get("loss", 0.0), score.get("evaluation")
            self.evaluated_by = score.get("evaluated_by", self.evaluated_by)
            self.last_metrics = next(
                (line for line in read_metrics(self.folder.out) if line["step"] == self.steps_done and "loss" in line), {}
            )
        if self.ranks.first:
            remove_leftovers(self.folder.checkpoints)
        self.ranks.barrier()  # the first rank's metrics must not move before all have read the checkpoint
        if self.ranks.first:
            self.metrics = Metrics(self.folder.out, self.steps_done)

    def load_int8_ranges(self, folder: Path) -> None:
        """Go on with the ranges in a checkpoint's folder, where its last step knew of int8; raises `CacheDamaged` without any."""
        if self.aware is None or self.steps_done <= self.recipe.first_aware_step:
            return
        if (ranges := read_int8_ranges(folder)) is None:
            raise CacheDamaged(f"{folder} lacks the int8 ranges of its last phase; move it away to go on from the checkpoint before")
        self.aware.load(ranges, str(folder))

    def int8_ranges(self) -> dict[str, Tensor] | None:
        """Return the ranges after the finished steps, None before the phase that has them."""
        return None if self.aware is None or self.steps_done <= self.recipe.first_aware_step else self.aware.state()

    def forward_backward(
        self, step: int, pixels_BHWC: Tensor, targets: Targets, share: float, last: bool, places: Mapping[str, Tensor] = NOWHERE
    ) -> None:
        """Accumulate the gradient of one micro-batch.

        `pixels_BHWC` is uint8, `share` its share of this rank's batch; `last` marks the step's last micro-batch, whose backward pass
        synchronises the ranks; `places` says where letterboxed images lie, by model (`data.stream.places_of`).
        """
        torch.manual_seed(step_seed(self.recipe.seed, step))
        self.student.train()
        aware = self.aware if step >= self.recipe.first_aware_step else None
        self.student.aware = aware
        if not self._sums:
            self._kept_statistics = KeptStatistics(self.student, aware)
        set_gradient_sync(self._parallel_student, last)
        shift = self._shift(step, pixels_BHWC, targets)
        if shift != NO_SHIFT:
            pixels_BHWC = self._shifted(pixels_BHWC, shift)
        with autocast(self.device.value, self.precision.value):
            predicted = self.forward(pixels_BHWC, {name: tokens for name, tokens in targets.items() if isinstance(tokens, SampledTokens)})
        ordered = {name: targets[name] for name in self.student.teacher_names}  # sums are added in the run's order, whoever came first
        config = self.recipe.teacher
        teachers = [name for name in ordered if split_target(name)[1] is None]
        absent = dropped_teachers(self.recipe.seed, step, teachers, config.drop_probability)
        dropped = {name for name in ordered if split_target(name)[0] in absent}  # a teacher goes with its layers
        loss, terms = distillation_loss(
            predicted, ordered, self.recipe.loss, config.target_weights(ordered), dropped, shift=shift, spaces=self.spaces,
            places=by_target(places, ordered),
        )  # fmt: skip
        with attention_kernel(self.device.value):
            (loss * (share * self.ranks.count)).backward()  # type: ignore[no-untyped-call]  # DDP and FSDP divide by the ranks
        values = {LOSS: loss, **{(name, term): value for name, by_name in terms.items() for term, value in by_name.items()}}
        for key, value in values.items():
            weighted = value.detach().double() * share
            self._sums[key] = self._sums[key] + weighted if key in self._sums else weighted

    def _shift(self, step: int, pixels_BHWC: Tensor, targets: Targets) -> Shift:
        """Return how many tokens the student's window lies further on in a step, by rows and columns."""
        deviation = self.recipe.loss.shift
        if not deviation:
            return NO_SHIFT
        own = self.student.encoder.grid(*pixels_BHWC.shape[1:3])
        theirs = [tokens.patch_BHWD.shape[1:3] for tokens in targets.values() if isinstance(tokens, Tokens)]
        drawn = [
            draw_shift(self.recipe.seed, step, axis, deviation, smallest_shift(side, [grid[axis] for grid in theirs]), most_shifted(side))
            for axis, side in enumerate(own)
        ]
        return drawn[0], drawn[1]

    def _shifted(self, pixels_BHWC: Tensor, shift: Shift) -> Tensor:
        height, width = pixels_BHWC.shape[1:3]
        rows, columns = self.student.encoder.grid(height, width)
        return shift_pixels(pixels_BHWC, (shift[0] * (height // rows), shift[1] * (width // columns)))

    def optimizer_step(self, step: int, image_ids: Callable[[], str]) -> None:
        """Update the weights with the accumulated gradient; raises `TrainingDiverged` before they change if it is not finite.

        Where the host reads later, what is raised here is the step before's.
        """
        taken = self._taken(step, image_ids)
        if self.reads_later:
            self.read()
            guard_next_step(self.optimizer, taken.refused)
            self._update(step, taken.refused)
            self._unread = taken
        else:
            losses = self._finite_losses(taken)
            self._update(step)
            self._count(step, losses)
        self.steps_done = step + 1

    def _taken(self, step: int, image_ids: Callable[[], str]) -> _Step:
        """Clip the gradient and add the sums over all ranks: the end of a step's forward and backward passes."""
        norm = clip_gradient_norm(self.parameters, self.recipe.optimizer.clip_norm or math.inf)
        own_sums = self.take_sums()
        summed = self.ranks.sum(torch.stack(list(own_sums.values())))
        finite = torch.isfinite(summed[list(own_sums).index(LOSS)]) & torch.isfinite(norm)
        values = HostValues(torch.cat([summed, norm.to(summed.dtype).reshape(1)]))
        return _Step(step, image_ids, own_sums, self._kept_statistics, values, (~finite).float())

    def _update(self, step: int, refused: Tensor | None = None) -> None:
        """Change the weights and what follows from them; `refused` on the device makes it void."""
        config = self.recipe.optimizer
        set_learning_rate(self.optimizer, learning_rate(step, self.recipe.run.steps, config))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        average_over_ranks(self.student, self.ranks)
        if self.student.aware is not None and self.aware is not None:
            self.aware.average_over_ranks(self.ranks)
        if self.average is not None:
            follow_statistics(self.average, self.student, self.recipe.student.ema, refused)

    def read(self) -> None:
        """Look at the loss of the step that was taken last, if that is still to be done; raises `TrainingDiverged` as if none had been."""
        taken, self._unread = self._unread, None
        if taken is not None:
            self._count(taken.number, self._finite_losses(taken))

    def settle(self) -> None:
        """Make the state that of the finished steps, where another learner's step stops the run; a step that diverged as well is undone."""
        if self._sums:  # a forward pass has moved running statistics, and no step followed
            self._kept_statistics.put_back()
            self._sums = {}
        with contextlib.suppress(TrainingDiverged):
            self.read()

    def _count(self, step: int, losses: dict[tuple[str, str], float]) -> None:
        """Let the average and the smoothed loss follow an update whose loss is known to be finite."""
        if self.average is not None:
            follow(self.average, self.student, self.recipe.student.ema)
        self.smoothed_loss += (self._whole_loss(losses) - self.smoothed_loss) / min(step + 1, _SMOOTHED_STEPS)
        self._last = losses

    def _whole_loss(self, losses: Mapping[tuple[str, str], float]) -> float:
        """Return a step's loss with the teachers that it dropped, so that steps which dropped others can be compared."""
        if not self.recipe.teacher.drop_probability:
            return losses[LOSS]
        weights = self.recipe.teacher.target_weights(self.student.teacher_names)
        factors = {name: term_weights(weight, self.recipe.loss) for name, weight in weights.items()}
        return sum(factors[name][term] * value for (name, term), value in losses.items() if (name, term) != LOSS)

    def _finite_losses(self, taken: _Step) -> dict[tuple[str, str], float]:
        """Return loss and terms of a step over all ranks; raises `TrainingDiverged`, and goes back before it, where it is not finite."""
        *sums, norm = taken.values.wait()
        losses = dict(zip(taken.own_sums, sums, strict=True))
        values = {"loss": losses[LOSS], "norm of the gradient": norm}
        try:
            self._refuse_non_finite(taken.number, values, taken.image_ids)
        except TrainingDiverged:
            self.refused, self.own_sums, self._sums = values, taken.own_sums, {}
            taken.statistics.put_back()
            if self.steps_done > taken.number:
                take_back_guarded_step(self.optimizer, is_first=taken.number == 0)
                self.steps_done = taken.number
            raise
        return losses

    def take_sums(self) -> Sums:
        """Return this rank's sums over the micro-batches since they were last taken, and begin new ones."""
        sums, self._sums = self._sums, {}
        return sums

    def _refuse_non_finite(self, step: int, values: Mapping[str, float], image_ids: Callable[[], str]) -> None:
        """Raise `TrainingDiverged` that names the value, the step and the images."""
        for name, value in values.items():
            if not math.isfinite(value):
                kept = f" and the state after step {step} is kept: the same command tries this step again" if step else ""
                raise TrainingDiverged(
                    f"the {name} is {value} at step {step + 1}; the weights were not changed{kept}. Images of this batch: "
                    f"{image_ids()}, … Lower optimizer.learning_rate or optimizer.clip_norm, or set precision = 'fp32'"
                    f"{', with another --out' if step else ''}"
                )

    def losses(self) -> Event:
        """Return `loss` and `losses` (unweighted terms by teacher) of the last step, over all ranks, and its `learning_rate`.

        Raises as `read`.
        """
        self.read()
        terms: dict[str, dict[str, float]] = {}
        for (name, term), value in self._last.items():
            if name:
                terms.setdefault(name, {})[term] = value
        return {"loss": self._last[LOSS], "losses": terms, "learning_rate": self.optimizer.param_groups[0]["lr"]}

    def log(self, line: Event) -> None:
        """Append one line of metrics."""
        self.last_metrics = line
        if self.metrics is not None:
            self.metrics.write(line)

    def close(self) -> None:
        """Close the metrics."""
        if self.metrics is not None:
            self.metrics.close()

    def save(self, metadata: Mapping[str, Any]) -> Path:
        """Write a checkpoint of the finished steps and return its folder; collective. Raises as `read`."""
        self.read()
        by = {} if self.evaluation is None else {"evaluated_by": self.evaluated_by}
        score = {"loss": self.smoothed_loss, "evaluation": self.evaluation, **by}
        return save_checkpoint(
            self.folder.checkpoints, self.steps_done, self.student, self.optimizer,
            {"recipe": self.recipe.to_dict(), "score": score, "teachers": self.student.teacher_names, **metadata},
            self.recipe.run.keep_checkpoints, keep_best=self.recipe.run.keep_best, average=self.average,
            int8_ranges=self.int8_ranges(), ranks=self.ranks,
        )  # fmt: skip

    def best(self) -> Event:
        """Return {best_step} for the summary; {} unless the recipe keeps the best checkpoint."""
        best = best_checkpoint(self.folder.checkpoints) if self.recipe.run.keep_best else None
        return {} if best is None else {"best_step": step_in_name(best.name)}

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write the model, its average, the best one and the summary: the run is finished; collective."""
        size_px, ranges = max(self.recipe.student.sizes_px, key=area_px), self.int8_ranges()
        for student, folder in ((self.student, self.folder.model), (self.average, self.folder.average)):
            if student is not None:
                save_model(student, folder, size_px=size_px, targets=self.statistics, ranks=self.ranks, int8_ranges=ranges)
        if self.recipe.run.keep_best and not self.ranks.any(not self.best(), self.device.value):  # all ranks see it, so all load it
            ranges = load_best(self.folder.checkpoints, self.student)
            save_model(self.student, self.folder.best, size_px=size_px, targets=self.statistics, ranks=self.ranks, int8_ranges=ranges)
        if self.ranks.first:
            self.folder.finish(summary)
        self.ranks.barrier()
