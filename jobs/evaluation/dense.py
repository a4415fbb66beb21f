"""The part that segmentation and depth share: a frozen model, a head trained on batches that follow from (seed, step), measurements.

    FOLDER/evaluations/<evaluation>-<digest12>.partial.json           the measurements so far
    FOLDER/evaluations/<evaluation>-<digest12>.partial.safetensors    the head (`student.probes.head_training`)
    FOLDER/evaluations/<evaluation>-<digest12>.head.safetensors       the trained head (`student.heads.kept`)

Both partial files go when the result is there. A measurement is made every `evaluate_every` steps and at the end; the official segmentation
loop reports the best of them, so they are all kept.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...storage.annotations.dense_pairs import Pair, pairs_digest, picture_digests
from ...storage.core.choices import HEAD_PROTOCOLS, Device, HeadProtocol
from ...storage.core.errors import BadInput, unknown_name
from ...storage.core.events import OnEvent
from ...storage.sources.decode import Pixels
from ...storage.views.input_size import SizePx
from ...student.data.order import KeyedPermutation
from ...student.heads.kept import KeptHead, head_path, keep_head
from ...student.model.draws import bits64, step_seed
from ...student.probes.dense_head import DenseHead, HeadRecipe
from ...student.probes.dense_tokens import patch_tokens, stacked, training_mode
from ...student.probes.evaluation_records import PARTIAL, record_path, to_strict_json, write_partial
from ...student.probes.head_training import HeadTraining
from ...teachers.registry.teacher import Teacher
from ...teachers.runtime.devices import choose_device
from .knn import evaluated
from .models import Model, open_model
from .split_checks import check_overlap

PARTIAL_HEAD = ".partial.safetensors"
READ_THREADS = 2
Batch = tuple[Pixels, list[tuple[int, int]], Tensor]


@dataclass(frozen=True, kw_only=True)
class DenseOptions:
    """A model and a folder of pictures: what all evaluations of patch tokens share."""

    model: str
    """A run's folder, an exported folder, a checkpoint file or a teacher; tokens in a store have other crops."""
    data: Path
    """The dataset's folder, in its published layout."""
    size_px: SizePx | None = None
    """Input size; None: the protocol's."""
    device: Device = "auto"
    weights: Path | None = None
    """A named teacher's weight file."""
    out: Path | None = None
    """Folder that keeps the result; None: the model's own."""
    allow_random_weights: bool = False
    """A named teacher without its file gets random weights, for trials; its record says so."""
    check: bool = False
    """Only tell what the data lack; the model is not looked at."""
    dry_run: bool = False
    """Only say by what protocol, and where the result would be kept."""


@dataclass(frozen=True, kw_only=True)
class HeadOptions(DenseOptions):
    """How a head is trained on patch tokens and measured; None: the official value."""

    protocol: HeadProtocol = "official"
    """official, as the published evaluation code does it, or ours."""
    steps: int | None = None
    """Of the head; the schedule is shortened with them."""
    batch_size: int | None = None
    """Pictures of a step."""
    evaluate_every: int = 5000
    """Steps between measurements."""
    seed: int = 0
    allow_overlap: bool = False
    """Validation pictures that are also trained on are a warning instead of an error."""
    keep_head: bool = True
    """Keep the head of the last step beside its record, so that `export --head` can take it along."""

    def __post_init__(self) -> None:
        if self.protocol not in HEAD_PROTOCOLS:
            raise unknown_name("protocol of a dense evaluation", self.protocol, HEAD_PROTOCOLS)

    @property
    def official(self) -> bool:
        """Whether the official code's arithmetic is followed."""
        return self.protocol == "official"

    def recipe(self, official: HeadRecipe) -> HeadRecipe:
        """Return the head's recipe with these values."""
        recipe = official if self.steps is None else official.shortened(self.steps)
        return recipe if self.batch_size is None else replace(recipe, batch_size=self.batch_size)


@dataclass(frozen=True)
class DenseEvaluation:
    """One dense evaluation, ready to run. Axes: B pictures, K outputs."""

    name: str
    recipe: HeadRecipe
    outputs: int
    dropout: float
    pairs: Mapping[str, Sequence[Pair]]
    """Pictures with what is to be found in them, of `train` and `val`."""
    draw: Callable[[Pair, np.random.Generator], tuple[Pixels, NDArray[Any]]]
    """A training view (h, w, 3) and its target (h, w); called in threads."""
    loss_of: Callable[[Tensor, Tensor, int], Tensor]
    """Of logits (B, K, h, w), targets (B, H, W) and the step."""
    measure: Callable[[Teacher, DenseHead], dict[str, Any]]
    """Results with the head as it is, in eval mode."""
    fill: float = 0
    """The target where a picture is smaller than its batch."""
    size_hw: tuple[int, int] | None = None
    """Of every batch; None: its largest picture's."""
    encoder_trains: Callable[[int], bool] = lambda step: False
    """Whether the encoder is in training mode at a step of the head's training; it is frozen all the same."""
    padding_px: Callable[[Teacher], int] = lambda teacher: teacher.encoder.stride_px
    """Of what the sides of an input are made a multiple."""
    best: str | None = None
    """A figure of which the highest of all measurements is given too."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What the kept head needs beside its tensors."""
    input: Mapping[str, Any] = field(default_factory=dict)
    """How a measurement makes the encoder's input of a picture."""
    labels: tuple[str, ...] = ()
    """Names of the classes."""
    constants: Mapping[str, Tensor] = field(default_factory=dict)
    """Tensors of the kept head that are not trained."""

    def batch(self, seed: int, step: int) -> Batch:
        """Return pixels (B, H, W, 3) of a step's drawn views, the size of each picture in them, and their targets."""

        def draw_view(numbered: tuple[int, int]) -> tuple[Pixels, NDArray[Any]]:
            index, number = numbered
            return self.draw(self.pairs["train"][number], drawing_generator(seed, step, index))

        with ThreadPoolExecutor(READ_THREADS) as pool:
            views = list(pool.map(draw_view, enumerate(pictures_of_step(step, self.recipe.batch_size, len(self.pairs["train"]), seed))))
        pixels, sizes = stacked([picture for picture, _ in views], self.size_hw)
        targets = np.full(pixels.shape[:3], self.fill, views[0][1].dtype)
        for index, (_, target) in enumerate(views):
            targets[index, : target.shape[0], : target.shape[1]] = target
        return pixels, sizes, torch.from_numpy(targets)

    def loss(self, teacher: Teacher, head: DenseHead, batch: Batch, step: int) -> Tensor:
        """Return the loss of a batch with the head as it is."""
        pixels, sizes, targets = batch
        with training_mode(teacher.encoder, self.encoder_trains(step)):
            tokens_BHWD = patch_tokens(teacher, pixels, sizes, self.padding_px(teacher))
        return self.loss_of(head(tokens_BHWD), targets.to(teacher.device), step)


def open_dense_model(options: DenseOptions) -> Model:
    """Open a model that computes tokens; raises `BadInput` for cached tokens, whose crops are not those of this evaluation."""
    refuse_feature_set(options.model)
    return open_model(options.model, weights=options.weights, out=options.out, allow_random_weights=options.allow_random_weights)


def refuse_feature_set(name: str) -> None:
    """Raise `BadInput` for the key of a feature set."""
    if "@" in Path(name).name and not Path(name).exists():
        raise BadInput(f"{name} is a feature set, and this evaluation needs tokens of its own crops; give the teacher or the run behind it")


def run_dense(
    evaluation: DenseEvaluation, model: Model, protocol: dict[str, Any], options: HeadOptions, on_event: OnEvent
) -> dict[str, Any]:
    """Return the results of the last step with `by_step`: read from the record when there is one, else resumed from the partial files.

    With `dry_run` only the protocol and the folder that would keep the result.
    """
    pictures = {split: picture_digests(pairs) for split, pairs in evaluation.pairs.items()}
    digests = {split: pairs_digest(pairs, pictures[split]) for split, pairs in evaluation.pairs.items()}
    data = {split: {"pictures": len(images), "digest": digests[split]} for split, images in pictures.items()}
    in_both = check_overlap(
        pictures["train"], pictures["val"], lambda index: evaluation.pairs["val"][index].id, where="training and validation split",
        allowed=options.allow_overlap, on_event=on_event,
    )  # fmt: skip
    protocol = {"data": data, "layers": "last, normed patch tokens", **protocol}
    if options.dry_run:
        return {"dry_run": True, "model": model.name, "folder": str(model.folder), "protocol": protocol}
    full_protocol = {**protocol, "seed": options.seed, "evaluate_every": options.evaluate_every}
    path = record_path(model.folder, evaluation.name, {**full_protocol, "model": model.identity})
    progress, head_file = path.with_suffix(PARTIAL), path.with_suffix(PARTIAL_HEAD)

    def compute() -> dict[str, Any]:
        teacher = model.load(choose_device(options.device).value)
        head, measured = _train_and_measure(evaluation, teacher, head_file, progress, options, on_event)
        results = {**differences(evaluation.recipe, options), "test_images_in_train": in_both, **measured}
        if options.keep_head:
            protocol = {**full_protocol, "model": model.identity}
            keep_head(head_path(path), _kept(evaluation, head, model, protocol, results), on_event)
        for file in (progress, head_file):
            file.unlink(missing_ok=True)
        return results

    return evaluated(evaluation.name, model, full_protocol, compute, on_event, keeps_head=options.keep_head)


def _kept(evaluation: DenseEvaluation, head: DenseHead, model: Model, protocol: dict[str, Any], results: dict[str, Any]) -> KeptHead:
    """Return the head as it is kept; dropout has no tensors, and nothing to do in a prediction."""
    settings = {"width": model.spec.patch_dim, "outputs": evaluation.outputs, **evaluation.settings}
    tensors = {**head.state_dict(), **evaluation.constants}
    return KeptHead(evaluation.name, model.identity, protocol, settings, evaluation.input, evaluation.labels, results, tensors)


def _train_and_measure(
    evaluation: DenseEvaluation, teacher: Teacher, head_file: Path, progress: Path, options: HeadOptions, on_event: OnEvent
) -> tuple[DenseHead, dict[str, Any]]:
    torch.manual_seed(step_seed(options.seed, -1))
    head = DenseHead(teacher.spec.patch_dim, evaluation.outputs, evaluation.dropout).to(teacher.device)
    training = HeadTraining(
        head, evaluation.recipe, head_file, seed=options.seed, on_event=on_event,
        make_batch=lambda step: evaluation.batch(options.seed, step),
        loss_of=lambda head, batch, step: evaluation.loss(teacher, head, batch, step),
    )  # fmt: skip
    by_step: dict[str, Any] = json.loads(progress.read_text()) if progress.is_file() else {}
    for stop in _stops(evaluation.recipe.steps, options.evaluate_every):
        training.train_until(stop)
        if str(stop) not in by_step:
            head.eval()
            with torch.no_grad():
                by_step[str(stop)] = evaluation.measure(teacher, head)
            write_partial(progress, lambda: to_strict_json(by_step, evaluation.name), on_event)
            on_event({"event": "evaluation", "step": stop, evaluation.name: by_step[str(stop)]})
    best = {} if evaluation.best is None else {f"best_{evaluation.best}": max(measured[evaluation.best] for measured in by_step.values())}
    return head, {**by_step[str(evaluation.recipe.steps)], **best, "by_step": by_step}


def differences(recipe: HeadRecipe, options: HeadOptions) -> dict[str, list[str]]:
    """Return in what the user's values differ from the official ones; {} when nothing does, or when the protocol is ours anyway."""
    changed = {"steps": options.steps, "batch_size": options.batch_size, "size_px": options.size_px}
    differing = [f"{name} is {value}" for name, value in changed.items() if value is not None]
    differing += [f"evaluate_every is {options.evaluate_every}"] if options.evaluate_every != HeadOptions.evaluate_every else []
    return {"differs_from_official": differing} if options.official and differing else {}


def _stops(steps: int, every: int) -> list[int]:
    return sorted({*range(every, steps, every), steps})


def refuse_other_size(pair: Pair, target: NDArray[Any], picture: Pixels) -> None:
    """Raise `BadInput` unless a mask or depth map (H, W) has its picture's size."""
    if target.shape != picture.shape[:2]:
        raise BadInput(f"{pair.target} has {target.shape} pixels and its picture {picture.shape[:2]}; both must be of one size")


def pictures_of_step(step: int, batch_size: int, count: int, seed: int) -> list[int]:
    """Return which training pictures a step sees: epochs of keyed permutations, nothing dropped."""
    positions = range(step * batch_size, (step + 1) * batch_size)
    return [int(KeyedPermutation(count, seed, "dense", position // count)(np.array([position % count]))[0]) for position in positions]


def drawing_generator(seed: int, step: int, index: int) -> np.random.Generator:
    """Return the random generator that draws the view of one picture of a step."""
    return np.random.Generator(np.random.Philox(bits64(seed, "dense view", step, index)))


def progress_reporter(stage: str, pairs: Sequence[Pair], on_event: OnEvent) -> Callable[[int], None]:
    """Return a function that reports how many pictures are done, with rate and time left."""
    started = time.perf_counter()

    def report(done: int) -> None:
        rate = done / max(time.perf_counter() - started, 1e-9)
        on_event({"event": "progress", "stage": stage, "done": done, "total": len(pairs), "unit": "images", "rate": rate,
                  "seconds_left": (len(pairs) - done) / rate})  # fmt: skip

    return report
