"""Checkpoints of a training run: everything that a bit-equal resume needs, without pickle.

    checkpoints/step-0001000/
        model.safetensors       the student: backbone and adapters
        optimizer.safetensors   `<parameter number>/<state name>`
        average.safetensors     the moving average of the weights, where there is one
        checkpoint.json         step, recipe, feature identities, versions, score (what makes one the best)

Tensors are whole, whatever the ranks and their way to share a student. A checkpoint is written to a temporary folder and renamed, so it is
whole or absent; a full disk leaves the one before it in place. The schedule, the order and all draws are functions of the step and need no
state. `step` counts finished optimiser steps.
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

from ..storage.atomic import TEMPORARY_PREFIX, refusals, remove_folder, replace_folder
from ..storage.errors import BadInput, CacheDamaged
from .ranks import ALONE, Ranks
from .sharding import like, whole
from .versions import code_digest, versions

_PREFIX = "step-"
FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk: its folder, finished steps and what was written beside the tensors."""

    folder: Path
    step: int
    described: dict[str, Any]


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders, oldest first; temporary ones are not among them."""
    return sorted(folder.glob(f"{_PREFIX}[0-9]*")) if folder.is_dir() else []


def sweep(folder: Path) -> None:
    """Remove what a killed writer left: a checkpoint half written or half removed, as large as a whole one. One writer at a time."""
    for leftover in folder.glob(f"{TEMPORARY_PREFIX}*"):
        shutil.rmtree(leftover, ignore_errors=True)


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint, or None; raises `CacheDamaged` when its description is unreadable."""
    found = list_checkpoints(folder)
    if not found:
        return None
    described = _read_description(found[-1])
    step, layout = described["step"], described["format"]
    if layout != FORMAT:
        raise BadInput(f"checkpoint {found[-1]} has format {layout}, this version reads format {FORMAT}")
    return Checkpoint(found[-1], step, described)


def _read_description(folder: Path) -> dict[str, Any]:
    try:
        described: dict[str, Any] = json.loads((folder / "checkpoint.json").read_text())
        return {**described, "step": int(described["step"]), "format": int(described["format"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CacheDamaged(f"checkpoint {folder} is damaged ({error}); remove that folder to go on from the one before") from error


def best_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with the highest evaluation, or where none has one, with the lowest smoothed loss; the older of equals."""
    scores = {one: _read_description(one).get("score", {}) for one in list_checkpoints(folder)}
    evaluated = {one: -float(score["evaluation"]) for one, score in scores.items() if score.get("evaluation") is not None}
    ranked = evaluated or {one: float(score["loss"]) for one, score in scores.items() if "loss" in score}
    return min(ranked, key=lambda one: ranked[one], default=None)


def load_best(folder: Path, model: nn.Module) -> None:
    """Load the best checkpoint's weights strictly, when there is one; raises `CacheDamaged`."""
    best = best_checkpoint(folder)
    if best is not None:
        with _loading(best):
            _load_model(model, load_file(best / "model.safetensors"))


def save_checkpoint(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    described: Mapping[str, Any],
    keep: int,
    *,
    keep_best: bool = False,
    average: nn.Module | None = None,
    ranks: Ranks = ALONE,
) -> Path:
    """Write `step-NNNNNNN`, then drop all but the newest `keep` and, if asked, the best; raises `StoreUnavailable` with the bytes needed.

    Every rank calls this, the first writes.
    """
    final = folder / f"{_PREFIX}{step:07d}"
    files = {"model": _contiguous(model.state_dict()), "optimizer": _optimizer_tensors(optimizer)}
    if average is not None:
        files["average"] = _contiguous(average.state_dict())
    if ranks.first:
        needed_bytes = sum(tensor.nbytes for tensors in files.values() for tensor in tensors.values())
        with refusals(final, needed_bytes), replace_folder(final) as temporary:
            for name, tensors in files.items():
                _save(tensors, temporary / f"{name}.safetensors")
            description = {**described, "step": step, "format": FORMAT, "versions": {**versions(), "code": code_digest()}}
            (temporary / "checkpoint.json").write_text(json.dumps(description, indent=1, sort_keys=True))
        best = best_checkpoint(folder) if keep_best else None
        for old in list_checkpoints(folder)[:-keep]:
            if old != best:
                remove_folder(old)
    ranks.wait()
    return final


def restore(checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer, average: nn.Module | None = None) -> None:
    """Load weights and optimiser state strictly; raises `CacheDamaged` when a file is unreadable or does not fit."""
    with _loading(checkpoint.folder):
        _load_model(model, load_file(checkpoint.folder / "model.safetensors"))
        _load_optimizer(optimizer, load_file(checkpoint.folder / "optimizer.safetensors"))
        if average is not None:
            _load_model(average, load_file(checkpoint.folder / "average.safetensors"))


@contextlib.contextmanager
def _loading(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError, safetensors.SafetensorError) as error:
        raise CacheDamaged(f"checkpoint {folder} cannot be loaded ({error}); remove that folder to go on from the one before") from error


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        save_file(tensors, path)
    except safetensors.SafetensorError as error:  # its text carries the operating system's, its type does not
        raise _as_os_error(error) from error


def _as_os_error(error: Exception) -> OSError:
    """The OSError that safetensors wraps as text: `... (os error 28)`."""
    _, _, number = str(error).rpartition("os error ")
    digits = number.split(")")[0]
    return OSError(int(digits) if digits.isdigit() else None, str(error))


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: whole(tensor.detach()).cpu().contiguous() for name, tensor in tensors.items()}


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    states = optimizer.state_dict()["state"]
    return _contiguous({f"{number}/{name}": value for number, state in states.items() for name, value in state.items()})


def _load_model(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    own = model.state_dict()
    model.load_state_dict({name: like(tensor, own[name]) if name in own else tensor for name, tensor in tensors.items()}, strict=True)


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    groups = optimizer.state_dict()["param_groups"]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    templates = dict(zip((number for group in groups for number in group["params"]), parameters, strict=True))
    for key, tensor in tensors.items():
        number, name = key.split("/")
        state.setdefault(int(number), {})[name] = like(tensor, templates[int(number)])
    if state and set(state) != set(templates):
        raise ValueError(f"optimiser state of {len(state)} parameters, expected {len(templates)}")
    optimizer.load_state_dict({"state": state, "param_groups": groups})
