"""What segmentation and depth share: a frozen model, a head trained on batches that follow from (seed, step), measurements on the way.

    FOLDER/evaluations/<evaluation>-<digest12>.partial.json           the measurements so far
    FOLDER/evaluations/<evaluation>-<digest12>.partial.safetensors    the head (`student.head_training`)

Both partial files go when the result is there. A measurement is made every `evaluate_every` steps and at the end; the official segmentation
loop reports the best of them, so they are all kept.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from ..storage.atomic import make_folder, write_atomically
from ..storage.dense_pairs import Pair
from ..storage.errors import BadInput
from ..student.dense_head import DenseHead, HeadRecipe
from ..student.devices import choose_device
from ..student.draws import bits64, step_seed
from ..student.evaluation_record import PARTIAL, record_path
from ..student.head_training import Batch, HeadTraining
from ..student.order import KeyedPermutation
from ..teachers.teacher import Teacher
from .evaluate import evaluated
from .labelled_features import OnEvent
from .subjects import Model, open_model

PARTIAL_HEAD = ".partial.safetensors"
Target = TypeVar("Target")


@dataclass(frozen=True)
class DenseOptions:
    """How a dense evaluation is run; None: the official value."""

    steps: int | None = None
    """Of the head; the schedule is shortened with them."""
    batch_size: int | None = None
    size_px: int | None = None
    evaluate_every: int = 5000
    seed: int = 0
    device: str = "auto"
    weights: Path | None = None
    out: Path | None = None
    dry_run: bool = False

    def recipe(self, official: HeadRecipe) -> HeadRecipe:
        """The head's recipe with these values."""
        recipe = official if self.steps is None else official.shortened(self.steps)
        return recipe if self.batch_size is None else replace(recipe, batch_size=self.batch_size)


@dataclass(frozen=True)
class DenseEvaluation(Generic[Batch]):
    """One dense evaluation, ready to run."""

    name: str
    recipe: HeadRecipe
    outputs: int
    dropout: float
    make_batch: Callable[[int], Batch]
    """Pixels and targets of a step, made in a thread."""
    loss_of: Callable[[Teacher, DenseHead, Batch, int], torch.Tensor]
    measure: Callable[[Teacher, DenseHead], dict[str, Any]]
    """Results with the head as it is, in eval mode."""
    best: str | None = None
    """A figure of which the highest of all measurements is given too."""


def open_dense_model(name: str, options: DenseOptions) -> Model:
    """A model that computes; raises `BadInput` for cached tokens, whose crops are not those of this evaluation."""
    if "@" in Path(name).name and not Path(name).exists():
        raise BadInput(f"{name} is a feature set, and this evaluation needs tokens of its own crops; give the teacher or the run behind it")
    return open_model(name, weights=options.weights, out=options.out)


def run_dense(
    evaluation: DenseEvaluation[Batch], model: Model, protocol: dict[str, Any], options: DenseOptions, on_event: OnEvent
) -> dict[str, Any]:
    """Results of the last step with `by_step`; from the record when there is one, going on from the partial files otherwise."""
    whole = {**protocol, "seed": options.seed, "evaluate_every": options.evaluate_every}
    path = record_path(model.folder, evaluation.name, {**whole, "model": model.identity})
    progress, head_file = path.with_suffix(PARTIAL), path.with_suffix(PARTIAL_HEAD)

    def compute() -> dict[str, Any]:
        teacher = model.load(choose_device(options.device).value)
        found = _train_and_measure(evaluation, teacher, head_file, progress, options, on_event)
        for file in (progress, head_file):
            file.unlink(missing_ok=True)
        return found

    return evaluated(evaluation.name, model, whole, compute, on_event)


def _train_and_measure(
    evaluation: DenseEvaluation[Batch], teacher: Teacher, head_file: Path, progress: Path, options: DenseOptions, on_event: OnEvent
) -> dict[str, Any]:
    torch.manual_seed(step_seed(options.seed, -1))
    head = DenseHead(teacher.spec.patch_dim, evaluation.outputs, evaluation.dropout).to(teacher.device)
    training = HeadTraining(
        head, evaluation.recipe, head_file, seed=options.seed, make_batch=evaluation.make_batch, on_event=on_event,
        loss_of=lambda head, batch, step: evaluation.loss_of(teacher, head, batch, step),
    )  # fmt: skip
    by_step: dict[str, Any] = json.loads(progress.read_text()) if progress.is_file() else {}
    for stop in _stops(evaluation.recipe.steps, options.evaluate_every):
        training.train_until(stop)
        if str(stop) not in by_step:
            head.eval()
            with torch.no_grad():
                by_step[str(stop)] = evaluation.measure(teacher, head)
            make_folder(progress.parent)
            write_atomically(progress, json.dumps(by_step).encode())
            on_event({"event": "evaluation", "step": stop, evaluation.name: by_step[str(stop)]})
    best = {} if evaluation.best is None else {f"best_{evaluation.best}": max(one[evaluation.best] for one in by_step.values())}
    return {**by_step[str(evaluation.recipe.steps)], **best, "by_step": by_step}


def _stops(steps: int, every: int) -> list[int]:
    return sorted({*range(every, steps, every), steps})


def places_of(step: int, batch_size: int, count: int, seed: int) -> list[int]:
    """Which pictures a step sees: epochs of keyed permutations, nothing dropped."""
    places = range(step * batch_size, (step + 1) * batch_size)
    return [int(KeyedPermutation(count, seed, "dense", place // count)(np.array([place % count]))[0]) for place in places]


def generator_of(seed: int, step: int, place: int) -> np.random.Generator:
    """What draws the view of one picture of a step."""
    return np.random.Generator(np.random.Philox(bits64(seed, "dense view", step, place)))


def said_progress(stage: str, pairs: Sequence[Pair], on_event: OnEvent) -> Callable[[int], None]:
    """A function that tells how many pictures are done, with rate and time left."""
    started = time.perf_counter()

    def say(done: int) -> None:
        rate = done / max(time.perf_counter() - started, 1e-9)
        on_event({"event": "progress", "stage": stage, "done": done, "total": len(pairs), "unit": "images", "rate": rate,
                  "seconds_left": (len(pairs) - done) / rate})  # fmt: skip

    return say
