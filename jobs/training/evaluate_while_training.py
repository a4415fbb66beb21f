"""Evaluate students while they train: `train --evaluate knn --every 2000` on a labelled dataset, or `--evaluate agreement`.

Agreement is `watch_agreement`'s. For kNN, a keyed sample of the dataset is decoded once, before the first step, at the students' largest
input size, and stays in memory; one half are the neighbours, the other is classified; of images with equal bytes one is taken, so that none
is its own neighbour. A set that shares images with what the student is trained on is refused (`overlap`). Results go to the run's
metrics.jsonl (lines of their own, with the evaluation's name instead of a loss) and TensorBoard, and out as events. They follow from step
and weights alone, and are written before the checkpoint of their step: a run that goes on repeats none and leaves none out. What is
evaluated is no part of the recipe, because it does not change the student.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from ...storage.core.choices import TrainingEvaluation
from ...storage.core.errors import BadInput
from ...storage.core.events import OnEvent
from ...storage.images.dataset import ImageDataset
from ...storage.images.hold_out import drawn_images
from ...storage.store import FeatureStore
from ...storage.views.pixels import center_square
from ...student.model.recipe import RunConfig
from ...student.model.student import Student
from ...student.probes.online_knn import HeldOut, evaluate_student
from ...student.training.learner import Learner
from ..evaluation.labelled_features import Int64s, sample_images
from ..evaluation.split_checks import check_overlap, digests_of, refuse_one_class
from .data import Part
from .options import Watch
from .watch_agreement import AgreementMeasure

TrainedOn = tuple[ImageDataset, Int64s | None]
"""A dataset, and which images of it alone are trained on."""
AfterStep = Callable[[Sequence[Learner], int], None]


class TrainingMeasure(Protocol):
    """One evaluation, made before the first step; raises `BadInput` there when it cannot be measured."""

    def measure(self, student: Student, learner: Learner) -> dict[str, Any]:
        """Return the figures of a learner's student, or of its average; {} on other ranks than the first, and for none. Collective."""

    def score(self, figures: dict[str, Any]) -> float:
        """Return the figure that chooses the best checkpoint; higher is better."""

    def words(self, results: dict[str, Any]) -> str:
        """Return figures by name in one line for people."""


def watching(watch: Watch | None, store: FeatureStore, first: Learner, parts: Sequence[Part], on_event: OnEvent) -> AfterStep:
    """Return the hook for a trainer of `first` and learners like it; raises `BadInput` before any step when the data cannot serve."""
    if watch is None:
        return lambda learners, done: None
    name, steps, ranks = watch.evaluation, first.recipe.run.steps, first.ranks
    row = MEASURES[name](watch, store, first, parts, on_event)
    if ranks.first:
        _warn_apart(watch, first.recipe.run, on_event)

    def after_step(learners: Sequence[Learner], done: int) -> None:
        if done % watch.every and done != steps:
            return
        for learner in learners:
            learner.read()  # what has diverged is not evaluated
            students = {name: learner.student, f"{name}_average": learner.average}
            measured = {key: row.measure(student, learner) for key, student in students.items() if student is not None}
            results = {key: figures for key, figures in measured.items() if figures}
            if results:
                learner.evaluation, learner.evaluated_by = row.score(results[name]), name
            if learner.metrics is not None and results:
                learner.metrics.write({"step": done, **results})
                on_event({"event": "evaluation", "step": done, "student": learner.name, **results})
                on_event({"event": "note", "text": f"step {done}: {learner.name} {row.words(results)}"})
        ranks.barrier()

    return after_step


def _warn_apart(watch: Watch, run: RunConfig, on_event: OnEvent) -> None:
    """Warn where few evaluations fall on checkpoints: a checkpoint is judged by the evaluation of its own step alone."""
    together = math.lcm(watch.every, run.checkpoint_every)
    if run.keep_best and together > watch.every:
        text = f"evaluations every {watch.every} steps meet checkpoints every {run.checkpoint_every} only every {together} steps, and only"
        advice = f"those choose the best checkpoint; give --every {run.checkpoint_every} or --set run.checkpoint_every={watch.every}"
        on_event({"event": "warning", "text": f"{text} {advice}"})


class KnnMeasure:
    """kNN on a labelled dataset, in memory."""

    def __init__(self, watch: Watch, store: FeatureStore, first: Learner, parts: Sequence[Part], on_event: OnEvent) -> None:
        share = first.recipe.data.hold_out
        trained_on = [(part.views.dataset, drawn_images(part.views.dataset, part.subset, share)) for part in parts]
        self._held_out = load_held_out(watch, store, first, trained_on, on_event)

    def measure(self, student: Student, learner: Learner) -> dict[str, Any]:
        """Return kNN's figures by feature and protocol."""
        device, precision = learner.device.value, learner.precision.value
        return evaluate_student(student, self._held_out, device=device, precision=precision, ranks=learner.ranks)

    def score(self, figures: dict[str, Any]) -> float:
        """Return percent by our protocol, of the class token where the student has one.

        It is the figure by which runs were scored before the paper's own protocol was measured, so that one that goes on compares like
        with like.
        """
        return float(figures.get("cls", figures["mean_patch"])["ours"])

    def words(self, results: dict[str, Any]) -> str:
        """Return the percentages by our protocol."""
        shown = [
            f"{name} {figures[feature]['ours']:.1f} %"
            for name, figures in results.items()
            for feature in ("cls", "mean_patch")
            if feature in figures
        ]
        return f"{', '.join(shown)} (class token, mean patch token; our protocol: k = 10, cosine)"


MEASURES: dict[TrainingEvaluation, Callable[[Watch, FeatureStore, Learner, Sequence[Part], OnEvent], TrainingMeasure]] = {
    "knn": KnnMeasure,
    "agreement": AgreementMeasure,
}


def load_held_out(watch: Watch, store: FeatureStore, learner: Learner, trained_on: Sequence[TrainedOn], on_event: OnEvent) -> HeldOut:
    """Return the sample in memory; ranks that are not the first get none.

    Raises `BadInput` without labels, with one class or too few images, and for images that are trained on.
    """
    dataset = store.dataset(watch.data).read_as("stored")  # as the protocols that figures are named after read images
    preprocessing = learner.student.encoder.preprocessing
    images = _sampled(watch, dataset, trained_on, on_event)
    pixels = np.zeros((0, 1, 1, 3), np.uint8)
    if learner.ranks.first:
        pixels = np.stack([center_square(dataset.read_image(image), preprocessing.input) for image in images.tolist()])
    return HeldOut(pixels, dataset.labels()[images], len(images) // 2)


def _sampled(watch: Watch, dataset: ImageDataset, trained_on: Sequence[TrainedOn], on_event: OnEvent) -> Int64s:
    """Images in a keyed order: neighbours and questions are both a cross-section of a dataset that is sorted by class."""
    images = sample_images(dataset, watch.images, "watch")
    digests = list(digests_of(dataset, images.tolist()))
    first_of = {digest: index for index, digest in reversed(list(enumerate(digests)))}
    first = np.array(sorted(first_of.values()))
    if len(first) < len(images):
        on_event({"event": "note", "text": f"{len(images) - len(first)} images of {dataset.key} are copies of others and are left out"})
        images, digests = images[first], [digests[index] for index in first.tolist()]
    labels = dataset.labels()[images]
    if len(images) < 20 or labels.min() < 0:
        raise BadInput(f"{dataset.key} cannot be evaluated by kNN: it needs 20 images or more, each with a label; it has {len(dataset)}")
    refuse_one_class(dataset, [dataset.label_names[label] for label in sorted(set(labels.tolist()))])
    check_overlap(
        (digest for trained, images_drawn in trained_on for digest in digests_of(trained, images_drawn)), digests,
        lambda place: dataset.row(int(images[place])).id,
        where=f"{', '.join(trained.key for trained, _ in trained_on)} is trained on, {dataset.key} evaluated", allowed=watch.allow_overlap,
        on_event=on_event,
    )  # fmt: skip
    return images[np.argsort(np.random.Generator(np.random.Philox(0)).random(len(images)), kind="stable")]
