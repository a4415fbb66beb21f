"""The function of `runs replay`: compute a step that was not finite once more, from what the run kept of it (`student.training.nonfinite`).

The student is built from the recipe, gets the weights before the step, and takes the same micro-batches through the trainer's own code, one
rank after another. On the device and with the versions that the run had, each rank's losses are equal to the bit; the norm of the gradient
of several ranks is summed in another order. With `compile` in the recipe it is left out here: hooks have to see each module.
"""

import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...jobs.training.train import initial_student
from ...storage.core.choices import Device
from ...storage.core.errors import BadInput, CacheDamaged
from ...storage.core.events import OnEvent, ignore_event
from ...student.model.recipe import TrainRecipe
from ...student.model.sharding import clip_gradient_norm
from ...student.model.student import TargetSpec, checkpoint_name
from ...student.training.checkpoint import FORMAT, Checkpoint, restore
from ...student.training.learner import Learner, Sums
from ...student.training.nonfinite import BUNDLE, RankPart, as_hex, kept_step, read_rank, read_spaces
from ...student.training.run_folder import RunFolder
from ...student.training.trainer import to_device
from ...teachers.runtime.devices import Choice, choose_device
from ..recipes.typed_tables import build

_MAX_NAMES = 5


def replay_step(*, folder: Path | str, device: Device | None = None, on_event: OnEvent = ignore_event) -> dict[str, Any]:
    """Compute a kept step again; `folder` is `RUN/nonfinite/step-N` or the run, `device` None the run's own.

    Returns losses by teacher and term, whether they are `equal` to those that were seen, and the first module, weight and gradient that
    are not finite. Raises BadInput without a kept step and for a device that is not there, CacheDamaged for a file that cannot be read.
    """
    kept = _find(Path(folder))
    bundle = _read(kept)
    specs = {str(teacher["name"]): _spec(teacher) for teacher in bundle["teachers"]}
    learner = _learner(kept, bundle, specs, choose_device(device or bundle["device"]))
    watch = _Watch(learner)
    threads = torch.get_num_threads()
    try:
        ranks = [read_rank(kept, rank, specs) for rank in range(bundle["ranks"])]
        sums = [_compute(learner, bundle["step"], part, watch, rank) for rank, part in enumerate(ranks)]
    finally:
        torch.set_num_threads(threads)
    terms = _added(sums)
    norm = float(clip_gradient_norm(learner.parameters, math.inf))
    return {
        "step": bundle["step"] + 1, "student": bundle["student"], "device": f"{learner.device.value}  # {learner.device.why}",
        "precision": learner.precision.value, "ranks": len(ranks), "images": sum(len(part.origin.images) for part in ranks),
        "loss": _number(terms.pop(("", ""))), "losses": _by_teacher(terms), "norm_of_the_gradient": _number(norm),
        "seen": {name: _number(float.fromhex(value)) for name, value in bundle["seen"].items()},
        "equal": [as_hex(checksum) for checksum in sums] == [part.sums for part in ranks],
        "targets_not_finite": _targets_not_finite(ranks),
        "weights_not_finite": _weights_not_finite(learner.student)[:_MAX_NAMES],
        "first_module_not_finite": watch.module, "first_gradient_not_finite": watch.gradient,
    }  # fmt: skip


def _find(folder: Path) -> Path:
    bundle_folder = folder if (folder / BUNDLE).is_file() else kept_step(folder)
    if bundle_folder is None:
        raise BadInput(
            f"{folder} holds no step that was not finite (no {BUNDLE}): give RUN/nonfinite/step-N of a run on this machine; such a step is "
            "kept when a training stops because its loss is not finite"
        )
    return bundle_folder


def _read(kept: Path) -> dict[str, Any]:
    try:
        bundle: dict[str, Any] = json.loads((kept / BUNDLE).read_text())
    except (OSError, ValueError) as error:
        raise CacheDamaged(f"{kept / BUNDLE} cannot be read ({error}); run the training again to have the step kept again") from error
    if bundle.get("format") != 1:
        raise BadInput(f"{kept} has format {bundle.get('format')}, this version reads format 1")
    return bundle


def _spec(teacher: Mapping[str, Any]) -> TargetSpec:
    height, width = teacher["grid"]
    return TargetSpec(teacher["cls_dim"], teacher["patch_dim"], (height, width), teacher["tokens"])


def _learner(kept: Path, bundle: Mapping[str, Any], specs: Mapping[str, TargetSpec], device: Choice) -> Learner:
    """Return the student as it was before the step."""
    recipe = build(TrainRecipe, bundle["recipe"], where=f"{kept / BUNDLE}")
    recipe = replace(recipe, compile=False, student=replace(recipe.student, ema=0.0))  # the average takes no part in a loss
    student = initial_student(recipe, specs)
    folder = RunFolder(Path(tempfile.gettempdir()) / "nothing-is-written")
    precision, spaces = Choice(bundle["precision"], "as the run had it"), read_spaces(kept, student.teacher_names)
    learner = Learner(recipe, student, folder, device=device, precision=precision, statistics={}, spaces=spaces)
    restore(Checkpoint(kept, bundle["step"], {"format": FORMAT}), learner.student, learner.optimizer)
    return learner


def _compute(learner: Learner, step: int, part: RankPart, watch: "_Watch", rank: int) -> Sums:
    """Return the sums of one rank; its gradient is added to those of the ranks before."""
    torch.set_num_threads(part.threads)  # sums of matrix products depend on it
    first = 0
    for number, micro in enumerate(part.parts):
        watch.now = {"rank": rank, "micro_batch": number}
        watch.images = part.origin.images[first : first + len(micro.pixels_BHWC)]
        first += len(micro.pixels_BHWC)
        pixels_BHWC, targets = to_device(learner.device.value, micro.pixels_BHWC, micro.targets)
        places = {model: place_B4.to(learner.device.value) for model, place_B4 in micro.places.items()}
        learner.forward_backward(step, pixels_BHWC, targets, micro.share, micro.last, places)
    return learner.take_sums()


class _Watch:
    """Hooks that remember the first module whose output, and the first parameter whose gradient, is not finite, in order of computation."""

    def __init__(self, learner: Learner) -> None:
        self.module: dict[str, Any] | None = None
        self.gradient: str | None = None
        self.now: dict[str, int] = {}
        self.images: Sequence[str] = ()
        for name, module in learner.student.named_modules():
            module.register_forward_hook(self._forward_hook(_module_name(learner.student, name)))
        for name, parameter in learner.student.named_parameters():
            hook = self._gradient_hook(checkpoint_name(learner.student, name))
            parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]

    def _forward_hook(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            for tensor in _tensors(output) if self.module is None else ():
                bad = ~torch.isfinite(tensor)
                if bad.any():
                    self.module = {
                        "module": name, "kind": type(module).__name__, "not_finite": int(bad.sum()), "of": tensor.numel(), **self.now,
                        "input_is_finite": all(bool(torch.isfinite(tensor).all()) for tensor in _tensors(inputs)), "images": self._of(bad),
                    }  # fmt: skip
                    return

        return hook

    def _of(self, bad: Tensor) -> list[str]:
        """Return the first images whose outputs are not finite, where an output has a row for each image."""
        if len(bad) != len(self.images):
            return []
        return [image for image, is_bad in zip(self.images, bad.flatten(1).any(1).tolist(), strict=True) if is_bad][:_MAX_NAMES]

    def _gradient_hook(self, name: str) -> Any:
        def hook(parameter: nn.Parameter) -> None:
            if self.gradient is None and parameter.grad is not None and not torch.isfinite(parameter.grad).all():
                self.gradient = name

        return hook


def _module_name(student: nn.Module, name: str) -> str:
    """Return a module's name with its teacher's in the place of an adapter's number."""
    return checkpoint_name(student, f"{name}.").removesuffix(".") if name.startswith("adapters.") else name


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the floating-point tensors in a module's input or output."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping | tuple | list):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(part)


def _added(sums: Sequence[Sums]) -> dict[tuple[str, str], float]:
    """Return the sums over all ranks."""
    return {key: sum(float(part[key]) for part in sums) for key in sums[0]}


def _by_teacher(terms: Mapping[tuple[str, str], float]) -> dict[str, dict[str, Any]]:
    losses: dict[str, dict[str, Any]] = {}
    for (teacher, term), value in terms.items():
        losses.setdefault(teacher, {})[term] = _number(value)
    return losses


def _number(value: float) -> float | str:
    """Return a number, and as a word what JSON has none for: nan, inf, -inf."""
    return value if math.isfinite(value) else str(value)


def _targets_not_finite(ranks: Sequence[RankPart]) -> dict[str, int]:
    """Return how many values of each teacher's targets are not finite; {} when all are."""
    counts: dict[str, int] = {}
    for micro in (micro for part in ranks for micro in part.parts):
        for name, tokens in micro.targets.items():
            counts[name] = counts.get(name, 0) + sum(int((~torch.isfinite(tensor)).sum()) for tensor in _tensors(tuple(tokens)))
    return {name: count for name, count in counts.items() if count}


def _weights_not_finite(student: nn.Module) -> list[str]:
    return [
        checkpoint_name(student, name)
        for name, weight in student.state_dict().items()
        if weight.is_floating_point() and not torch.isfinite(weight).all()
    ]
