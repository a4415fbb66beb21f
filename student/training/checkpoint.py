"""Checkpoints of a training run: everything that a bit-equal resume needs, without pickle.

    checkpoints/step-0001000/
        model.safetensors       the student: backbone and adapters, each adapter under its teacher's name
        optimizer.safetensors   `<parameter>/<state name>`, parameters named as in the model
        average.safetensors     the moving average of the weights, where there is one
        int8-ranges.safetensors the ranges of the last phase, where it knows of int8
        checkpoint.json         step, recipe, teachers, feature identities, versions, score (what makes one the best)

Tensors are full, whatever the number of ranks and however they share a student. A checkpoint is written to a temporary folder and renamed,
so it is complete or absent; a full disk leaves the one before it in place. The schedule, the order and all draws are functions of the step
and need no state. `step` counts finished optimiser steps. Format 1 numbered adapters and parameters; it is read into a student whose
teachers are in the order of that run (`RunFolder.teacher_order`).
"""

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ...storage.core.errors import BadInput, CacheDamaged
from ...storage.objects.atomic_files import TEMPORARY_PREFIX, remove_folder, replace_folder, translate_os_errors
from ..model.ranks import ALONE, Ranks
from ..model.sharding import distribute_like, full_cpu_tensors
from ..model.student import checkpoint_name
from ..model.versions import code_digest, versions
from .metrics import read_metrics

_PREFIX = "step-"
INT8_RANGES = "int8-ranges"
FORMAT = 2
_MAX_NAMES = 5
_NUMBERED = 1  # the format in which adapters and parameters had numbers
_DAMAGED = "; the file is damaged. To go on from the checkpoint before, move that folder out of the run's checkpoints"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk: its folder, finished steps and checkpoint.json."""

    folder: Path
    step: int
    metadata: dict[str, Any]


def step_in_name(name: str) -> int | None:
    """Return the step in a checkpoint's name or path; None for any other name."""
    digits = name.rpartition("/")[2].removeprefix(_PREFIX)
    return int(digits) if name.endswith(f"{_PREFIX}{digits}") and digits.isascii() and digits.isdecimal() else None


def list_checkpoints(folder: Path) -> list[Path]:
    """Return checkpoint folders by step, oldest first, without temporary ones. From step 10,000,000 a name has one digit more."""
    steps = {path: step for path in folder.glob(f"{_PREFIX}*") if (step := step_in_name(path.name)) is not None}
    return sorted(steps, key=lambda path: steps[path])


def remove_leftovers(folder: Path) -> None:
    """Remove checkpoints that a killed writer left half written or half removed. Only one writer may run at a time."""
    for leftover in folder.glob(f"{TEMPORARY_PREFIX}*"):
        shutil.rmtree(leftover, ignore_errors=True)


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """Return the newest checkpoint, or None; raises `CacheDamaged` when its metadata is unreadable, `BadInput` for a later format."""
    checkpoints = list_checkpoints(folder)
    if not checkpoints:
        return None
    metadata = _read_metadata(checkpoints[-1])
    step, layout = metadata["step"], metadata["format"]
    if layout not in (_NUMBERED, FORMAT):
        raise BadInput(f"checkpoint {checkpoints[-1]} has format {layout}, this version reads formats {_NUMBERED} and {FORMAT}")
    return Checkpoint(checkpoints[-1], step, metadata)


def _read_metadata(folder: Path) -> dict[str, Any]:
    """Return checkpoint.json; raises `CacheDamaged`."""
    try:
        metadata: dict[str, Any] = json.loads((folder / "checkpoint.json").read_text())
        return {**metadata, "step": int(metadata["step"]), "format": int(metadata["format"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CacheDamaged(f"checkpoint {folder} cannot be read ({error}){_DAMAGED}") from error


def best_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint with the highest evaluation of its own step, else with the lowest smoothed loss; the older of equals.

    Where a run went on with another evaluation, only figures of the newest one compare.
    """
    scores = {path: checkpoint_score(path) for path in list_checkpoints(folder)}
    with_figure = {path: score for path, score in scores.items() if score.get("evaluation") is not None}
    newest = next((_evaluated_by(score) for score in reversed(with_figure.values())), None)
    evaluated = {path: -float(score["evaluation"]) for path, score in with_figure.items() if _evaluated_by(score) == newest}
    ranked = evaluated or {path: float(score["loss"]) for path, score in scores.items() if "loss" in score}
    return min(ranked, key=lambda path: ranked[path], default=None)


def _evaluated_by(score: Mapping[str, Any]) -> str:
    """Return which evaluation a score is of; those of before they had names are kNN's."""
    return str(score.get("evaluated_by", "knn"))


def checkpoint_score(folder: Path) -> dict[str, Any]:
    """Return what a checkpoint is ranked by.

    Format 1 repeated an earlier step's evaluation; it counts only where the metrics have one of this step.
    """
    metadata = _read_metadata(folder)
    score = dict(metadata.get("score", {}))
    if metadata["format"] == _NUMBERED and score.get("evaluation") is not None:
        evaluated = {line["step"] for line in read_metrics(folder.parent.parent) if "knn" in line}
        score["evaluation"] = score["evaluation"] if metadata["step"] in evaluated else None
    return score


def load_best(folder: Path, model: nn.Module) -> dict[str, Tensor] | None:
    """Load the best checkpoint's weights strictly, when there is one, and return its int8 ranges; raises `CacheDamaged`."""
    best = best_checkpoint(folder)
    if best is None:
        return None
    layout = _read_metadata(best)["format"]
    with _load_errors(best):
        _load_model(model, load_file(best / "model.safetensors"), layout)
    return read_int8_ranges(best)


def read_int8_ranges(folder: Path) -> dict[str, Tensor] | None:
    """Return the ranges in a checkpoint's or a model's folder, None without any; raises `CacheDamaged`."""
    path = folder / f"{INT8_RANGES}.safetensors"
    if not path.is_file():
        return None
    with _load_errors(folder):
        return load_file(path)


def save_checkpoint(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    metadata: Mapping[str, Any],
    keep: int,
    *,
    keep_best: bool = False,
    average: nn.Module | None = None,
    int8_ranges: dict[str, Tensor] | None = None,
    ranks: Ranks = ALONE,
) -> Path:
    """Write `step-NNNNNNN`, then remove all but the newest `keep` and, if asked, the best; return its folder.

    Collective: every rank calls this, the first writes. Raises `StoreUnavailable` with the bytes needed.
    """
    final = folder / f"{_PREFIX}{step:07d}"
    files = state_tensors(model, optimizer)
    if average is not None:
        files["average"] = _model_tensors(average)
    if int8_ranges is not None:
        files[INT8_RANGES] = int8_ranges
    if ranks.first:
        needed_bytes = sum(tensor.nbytes for tensors in files.values() for tensor in tensors.values())
        with translate_os_errors(final, needed_bytes), replace_folder(final) as temporary:
            for name, tensors in files.items():
                save_tensors(tensors, temporary / f"{name}.safetensors")
            description = {**metadata, "step": step, "format": FORMAT, "versions": {**versions(), "code": code_digest()}}
            (temporary / "checkpoint.json").write_text(json.dumps(description, indent=1, sort_keys=True))
        best = best_checkpoint(folder) if keep_best else None
        for old in list_checkpoints(folder)[:-keep]:
            if old != best:
                remove_folder(old)
    ranks.barrier()
    return final


def restore(checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer, average: nn.Module | None = None) -> None:
    """Load weights, optimiser state and average strictly; raises `CacheDamaged` when a file is unreadable or does not fit."""
    layout = checkpoint.metadata["format"]
    with _load_errors(checkpoint.folder):
        _load_model(model, load_file(checkpoint.folder / "model.safetensors"), layout)
        _load_optimizer(optimizer, model, load_file(checkpoint.folder / "optimizer.safetensors"), layout)
        if average is not None:
            _load_model(average, load_file(checkpoint.folder / "average.safetensors"), layout)


@contextlib.contextmanager
def _load_errors(folder: Path) -> Iterator[None]:
    """Turn errors into `CacheDamaged`; a checkpoint that is intact but of another student is said to be, and stays where it is."""
    try:
        yield
    except (OSError, safetensors.SafetensorError) as error:
        raise CacheDamaged(f"checkpoint {folder} cannot be loaded ({error}){_DAMAGED}") from error
    except (ValueError, RuntimeError, KeyError) as error:
        raise CacheDamaged(
            f"checkpoint {folder} is whole, and cannot be loaded into this student: {error}. Use the student and the teachers that the run "
            "was begun with, or give a new folder"
        ) from error


def state_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    """Return the full tensors of a checkpoint's files `model` and `optimizer`; collective when they are sharded."""
    return {"model": _model_tensors(model), "optimizer": _optimizer_tensors(optimizer, model)}


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file; raises OSError for what the operating system refused."""
    try:
        save_file(tensors, path, **({} if metadata is None else {"metadata": metadata}))
    except safetensors.SafetensorError as error:  # its text carries the operating system's, its type does not
        raise _as_os_error(error) from error


def _as_os_error(error: Exception) -> OSError:
    """Return the OSError that safetensors wraps as text: `... (os error 28)`."""
    _, _, number = str(error).rpartition("os error ")
    digits = number.split(")")[0]
    return OSError(int(digits) if digits.isdigit() else None, str(error))


def _model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's full tensors on the CPU under their names in files; collective when they are sharded."""
    return {checkpoint_name(model, name): tensor for name, tensor in full_cpu_tensors(model.state_dict()).items()}


def _load_model(model: nn.Module, tensors: dict[str, Tensor], layout: int) -> None:
    """Load tensors of a checkpoint in format `layout`; raises ValueError that names missing, unknown and misshapen ones."""
    expected = model.state_dict()
    names = {name if layout == _NUMBERED else checkpoint_name(model, name): name for name in expected}
    shapes = {name: (list(tensor.shape), list(expected[names[name]].shape)) for name, tensor in tensors.items() if name in names}
    wrong = [
        *(f"{name} is not in the checkpoint" for name in names if name not in tensors),
        *(f"{name} is not in the student" for name in tensors if name not in names),
        *(f"{name}: got {got}, wanted {shape}" for name, (got, shape) in shapes.items() if got != shape),
    ]
    if wrong:
        raise ValueError("; ".join(wrong[:_MAX_NAMES]) + "; …" * (len(wrong) > _MAX_NAMES))
    model.load_state_dict({names[name]: distribute_like(tensor, expected[names[name]]) for name, tensor in tensors.items()}, strict=True)


def _named_parameters(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[int, tuple[str, nn.Parameter]]:
    """Return {number in the optimiser: (name in files, parameter)}; the numbers depend on the order of teachers."""
    names = {parameter: checkpoint_name(model, name) for name, parameter in model.named_parameters()}
    numbers = [number for group in optimizer.state_dict()["param_groups"] for number in group["params"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {number: (names[parameter], parameter) for number, parameter in zip(numbers, parameters, strict=True)}


def _optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """Return the optimiser's full state as `<parameter>/<state name>`; collective when it is sharded."""
    known, states = _named_parameters(optimizer, model), optimizer.state_dict()["state"]
    return full_cpu_tensors({f"{known[number][0]}/{name}": value for number, state in states.items() for name, value in state.items()})


def _load_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, tensors: Mapping[str, Tensor], layout: int) -> None:
    """Load the optimiser's state strictly; raises ValueError for state of other parameters."""
    known, state = _named_parameters(optimizer, model), dict[int, dict[str, Tensor]]()
    numbers = {str(number) if layout == _NUMBERED else name: number for number, (name, _) in known.items()}
    for key, tensor in tensors.items():
        parameter, _, name = key.rpartition("/")
        if parameter not in numbers:
            raise ValueError(f"optimiser state of {parameter}, which this student does not have")
        number = numbers[parameter]
        state.setdefault(number, {})[name] = distribute_like(tensor, known[number][1])
    if state and set(state) != set(known):
        raise ValueError(f"optimiser state of {len(state)} parameters, expected {len(known)}")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
