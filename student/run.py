"""A run's folder: the one place where training leaves anything.

    OUT/
      recipe.json          the resolved recipe, with the origin of each value
      identities.json      what the targets are, and what the run started from
      metrics.jsonl        one line a logged step          tensorboard/   the same as events
      checkpoints/step-NNNNNNN/
      initial/model/       the untrained student, when it started from random weights
      model/               model.json  backbone.safetensors  adapters.json  adapters.safetensors
      average/model/       the same of the weights' moving average, where the recipe asks for one
      best/model/          the same of the best checkpoint, where the recipe keeps it
      summary.json         written last: the run is finished

`model/` is what evaluation, extraction and later stages read.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch.utils.tensorboard import SummaryWriter

from ..storage.atomic import make_folder, refusals, replace_folder, write_atomically
from ..storage.errors import BadInput, CacheDamaged, CacheMismatch
from ..storage.identity import differing_fields
from .config import TrainRecipe
from .models import Student
from .ranks import ALONE, Ranks
from .sharding import whole
from .view_config import ViewsConfig

_LONG = 200  # characters of one difference that help a reader; an identity has thousands


def _write_json(path: Path, value: Any) -> None:
    write_atomically(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False).encode())


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CacheDamaged(f"{path} cannot be read ({error}); start this run in a new folder") from error


class RunFolder:
    """Reads and writes one run's folder."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.checkpoints, self.model = out / "checkpoints", out / "model"
        self.initial, self.average, self.best = (out / kind / "model" for kind in ("initial", "average", "best"))
        self.taken_over: list[str] = []
        """Keys of the recipe that are as the run was begun and not as they were asked for."""

    def finished(self) -> dict[str, Any] | None:
        """The summary of a finished run, None otherwise."""
        path = self.out / "summary.json"
        return dict(_read_json(path)) if path.is_file() else None

    def as_begun(self, recipe: TrainRecipe, origins: Mapping[str, str]) -> TrainRecipe:
        """The recipe as the run that stands here was begun with it, in what its record is older than; raises `CacheDamaged`."""
        if (self.out / "recipe.json").is_file() and self.has_steps():
            recorded = _read_json(self.out / "recipe.json")
            recipe, self.taken_over = recipe.as_recorded(recorded["decisive"], origins)
            if not recorded.get("recipe", {}).get("views"):
                recipe = replace(recipe, views=ViewsConfig())
        return recipe

    def begin(self, recipe: TrainRecipe, origins: Mapping[str, str], identities: Mapping[str, Any]) -> None:
        """Record recipe and identities; raises `CacheMismatch` naming each field in which a run that stands there differs.

        A run that has not finished a step has nothing to protect: whoever mends what stopped it begins anew in the same folder.
        """
        plain = json.loads(json.dumps(identities))
        if (self.out / "recipe.json").is_file() and not self.has_steps():
            shutil.rmtree(self.initial.parent, ignore_errors=True)  # random weights of the run that never was
        elif (self.out / "recipe.json").is_file():
            recorded = _read_json(self.out / "recipe.json")
            self._refuse_other("with another recipe", recipe.decisive(), recorded["decisive"])
            self._refuse_other("that learns from something else", plain, _read_json(self.out / "identities.json"))
        elif any(self.out.glob("*")):
            raise BadInput(f"{self.out} is not empty and holds no run; give an empty or a new folder for the run")
        make_folder(self.out)
        _write_json(self.out / "identities.json", plain)
        told = {**origins, **dict.fromkeys(self.taken_over, "as this run was begun")}
        described = {"recipe": recipe.to_dict(), "decisive": recipe.decisive(), "origins": told}
        _write_json(self.out / "recipe.json", described)

    def has_steps(self) -> bool:
        """Whether anything was trained here: a checkpoint, a logged step, or a summary."""
        return (self.out / "summary.json").is_file() or bool(read_metrics(self.out)) or any(self.checkpoints.glob("step-*"))

    def _refuse_other(self, what: str, got: dict[str, Any], wanted: dict[str, Any]) -> None:
        if lines := [line if len(line) < _LONG else f"{line[:_LONG]}…" for line in differing_fields(got, wanted)]:
            raise CacheMismatch(f"{self.out} holds a run {what}: {'; '.join(lines)}. Use the values it was begun with, or a new folder")

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write the summary: from now on the run is finished."""
        _write_json(self.out / "summary.json", dict(summary))


class Metrics:
    """`metrics.jsonl` and TensorBoard events; lines after `resumed_from` are dropped first, so that no step stands twice."""

    def __init__(self, out: Path, resumed_from: int) -> None:
        path = out / "metrics.jsonl"
        kept = [line for line in read_metrics(out) if line["step"] <= resumed_from]
        write_atomically(path, "".join(f"{json.dumps(line)}\n" for line in kept).encode())
        self._file = path.open("a", buffering=1)
        self._board = SummaryWriter(str(out / "tensorboard"), purge_step=resumed_from + 1 if resumed_from else None)

    def write(self, line: Mapping[str, Any]) -> None:
        """Append one line and its numbers as events."""
        with refusals(Path(self._file.name), len(line) * 32):
            self._file.write(f"{json.dumps(line)}\n")
        for tag, value in _flatten(line):
            self._board.add_scalar(tag, value, line["step"])

    def close(self) -> None:
        """Flush both."""
        self._file.close()
        self._board.close()


def _flatten(line: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    for key, value in line.items():
        if isinstance(value, Mapping):
            found += _flatten(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and key != "step":
            found.append((f"{prefix}{key}", float(value)))
    return found


def read_metrics(out: Path) -> list[dict[str, Any]]:
    """The logged steps of a run, in order; a last line that a crash cut short is left out."""
    path = out / "metrics.jsonl"
    lines = []
    for text in path.read_text().splitlines() if path.is_file() else []:
        try:
            lines.append(dict(json.loads(text)))
        except ValueError:
            break
    return lines


def save_model(student: Student, folder: Path, *, size_px: int, targets: Mapping[str, Any], ranks: Ranks = ALONE) -> None:
    """Write a `model/` folder: the encoder, its adapters, and what the adapters were trained for; replaces an older one.

    With several ranks, every rank calls this and the first writes.
    """
    encoder = student.encoder
    preprocessing = {**encoder.preprocessing.identity(), "size_px": size_px}
    described = {"architecture": encoder.architecture, "size_px": size_px, "preprocessing": preprocessing}
    backbone = {name: whole(tensor.detach()).cpu().contiguous() for name, tensor in encoder.state_dict().items()}
    adapters = {name: whole(tensor.detach()).cpu().contiguous() for name, tensor in student.adapters.state_dict().items()}
    if not ranks.first:
        return
    needed_bytes = sum(tensor.nbytes for tensor in (*backbone.values(), *adapters.values()))
    with refusals(folder, needed_bytes), replace_folder(folder) as temporary:
        safetensors.torch.save_file(backbone, temporary / "backbone.safetensors")
        safetensors.torch.save_file(adapters, temporary / "adapters.safetensors")
        (temporary / "model.json").write_text(json.dumps(described, indent=1, sort_keys=True))
        (temporary / "adapters.json").write_text(json.dumps(adapter_record(student, targets), indent=1, sort_keys=True))


def adapter_record(student: Student, targets: Mapping[str, Any]) -> dict[str, Any]:
    """What the adapters map to, by teacher: widths, and the digest of the statistics that normalise (`targets`: name → digest)."""
    record: dict[str, Any] = {}
    for name, heads in zip(student.teacher_names, student.adapters, strict=True):
        widths = {key: list(tensor.shape) for key, tensor in heads.state_dict().items()}
        record[name] = {"shapes": widths, "statistics": targets.get(name)}
    return {"teachers": record, "order": student.teacher_names}


def load_model(student: Student, run: Path, targets: Mapping[str, Any]) -> None:
    """Start from a run's backbone and adapters, strictly; raises `BadInput` for no such model, `CacheMismatch` for other adapters.

    A model that was imported has no adapters at all: then the backbone alone is loaded and the adapters stay as they are.
    """
    folder = run / "model"
    if not (folder / "model.json").is_file():
        raise BadInput(f"{run} holds no trained model (no {folder / 'model.json'}); finish that run first: `eupe-pipeline train …`")
    recorded = _read_json(folder / "adapters.json")
    imported = not recorded["order"] and (run / "imported.json").is_file()
    differences = [
        *differing_fields(student.encoder.architecture, _read_json(folder / "model.json")["architecture"], "architecture."),
        *([] if imported else differing_fields(adapter_record(student, targets), recorded, "adapters.")),
    ]
    if differences:
        raise CacheMismatch(f"{run} does not fit this student: {'; '.join(differences[:5])}")
    try:
        student.encoder.load_state_dict(safetensors.torch.load_file(folder / "backbone.safetensors"), strict=True)
        if not imported:
            student.adapters.load_state_dict(safetensors.torch.load_file(folder / "adapters.safetensors"), strict=True)
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise CacheDamaged(f"the model in {folder} cannot be loaded ({error}); train it again") from error
