"""Checkpoints of a training run: everything that a bit-equal resume needs, without pickle.

    checkpoints/step-0001000/
        model.safetensors       the student: backbone and adapters
        optimizer.safetensors   `<parameter number>/<state name>`
        checkpoint.json         step, recipe, feature identities, versions

A checkpoint is written to a temporary folder and renamed, so it is whole or absent; a full disk leaves the one before it in place. The
schedule, the order and all draws are functions of the step and need no state. `step` counts finished optimiser steps.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..storage.atomic import refusals, replace_folder
from ..storage.errors import BadInput, CacheDamaged

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


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint, or None; raises `CacheDamaged` when its description is unreadable."""
    found = list_checkpoints(folder)
    if not found:
        return None
    try:
        described = json.loads((found[-1] / "checkpoint.json").read_text())
        step, layout = int(described["step"]), int(described["format"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CacheDamaged(f"checkpoint {found[-1]} is damaged ({error}); remove that folder to go on from the one before") from error
    if layout != FORMAT:
        raise BadInput(f"checkpoint {found[-1]} has format {layout}, this version reads format {FORMAT}")
    return Checkpoint(found[-1], step, described)


def save_checkpoint(
    folder: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, described: Mapping[str, Any], keep: int
) -> Path:
    """Write `step-NNNNNNN`, then drop all but the newest `keep`; raises `StoreUnavailable` with the bytes that were needed."""
    final = folder / f"{_PREFIX}{step:07d}"
    model_tensors, optimizer_tensors = _contiguous(model.state_dict()), _optimizer_tensors(optimizer)
    needed_bytes = sum(tensor.nbytes for tensor in (*model_tensors.values(), *optimizer_tensors.values()))
    with refusals(final, needed_bytes), replace_folder(final) as temporary:
        _save(model_tensors, temporary / "model.safetensors")
        _save(optimizer_tensors, temporary / "optimizer.safetensors")
        description = {**described, "step": step, "format": FORMAT, "torch": torch.__version__}
        (temporary / "checkpoint.json").write_text(json.dumps(description, indent=1, sort_keys=True))
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def restore(checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Load weights and optimiser state strictly; raises `CacheDamaged` when a file is unreadable or does not fit."""
    try:
        model.load_state_dict(load_file(checkpoint.folder / "model.safetensors"), strict=True)
        _load_optimizer(optimizer, load_file(checkpoint.folder / "optimizer.safetensors"))
    except (OSError, ValueError, RuntimeError, KeyError, safetensors.SafetensorError) as error:
        raise CacheDamaged(
            f"checkpoint {checkpoint.folder} cannot be loaded ({error}); remove that folder to go on from the one before"
        ) from error


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
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    states = optimizer.state_dict()["state"]
    return _contiguous({f"{number}/{name}": value for number, state in states.items() for name, value in state.items()})


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        number, name = key.split("/")
        state.setdefault(int(number), {})[name] = tensor
    groups = optimizer.state_dict()["param_groups"]
    expected = {number for group in groups for number in group["params"]}
    if state and set(state) != expected:
        raise ValueError(f"optimiser state of {len(state)} parameters, expected {len(expected)}")
    optimizer.load_state_dict({"state": state, "param_groups": groups})
