"""A run's folder: everything that training writes.

    OUT/
      recipe.json          the resolved recipe, the origin of each value, what "auto" was decided to be and why, each dataset's version, the
                           terms of the teachers
      identities.json      what the targets are, and what the run started from
      metrics.jsonl        one line a logged step          tensorboard/   the same as events
      checkpoints/step-NNNNNNN/
      initial/model/       the untrained student, when it started from random weights
      model/               model.json  backbone.safetensors  adapters.json  adapters.safetensors
      average/model/       the same of the weights' moving average, where the recipe asks for one
      best/model/          the same of the best checkpoint, where the recipe keeps it
      nonfinite/           the first step whose loss was not finite, to be computed again      tracking/   runs' ids in trackers
      summary.json         written last: the run is finished

`model/` is what evaluation, extraction and later stages read.
"""

import json
import math
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from ...storage.core.errors import BadInput, CacheDamaged, CacheMismatch
from ...storage.core.identity import differing_fields, json_bytes
from ...storage.features.layers import split_target
from ...storage.objects.atomic_files import make_folder, replace_folder, translate_os_errors, write_atomically
from ...storage.views.input_size import SizePx, size_json
from ...teachers.encoders.build import build_encoder
from ...teachers.encoders.preprocessing import Preprocessing
from ...teachers.runtime.devices import Choice
from ..model.ranks import ALONE, Ranks
from ..model.recipe import TrainRecipe, decisive
from ..model.sharding import full_cpu_tensors
from ..model.student import Student, TargetSpec, target_order
from ..model.view_config import ViewsConfig
from .checkpoint import latest_checkpoint, list_checkpoints
from .metrics import Metrics, read_metrics

__all__ = ["Metrics", "RunFolder", "adapter_record", "load_model", "read_adapters", "read_metrics", "save_model"]

_BY_TEACHER = 2  # `format` of adapters whose tensors have their teacher's name; without one they have numbers
_LONG = 200  # characters of one difference that help a reader; an identity has thousands


def _write_json(path: Path, value: Any) -> None:
    write_atomically(path, json_bytes(value, indent=1, sort_keys=True))


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CacheDamaged(f"{path} cannot be read ({error}); start this run in a new folder") from error


class RunFolder:
    """One run's folder on disk, read and written."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.checkpoints, self.model = out / "checkpoints", out / "model"
        self.initial, self.average, self.best = (out / kind / "model" for kind in ("initial", "average", "best"))
        self.taken_over: list[str] = []
        """Keys of the recipe that are as the run was begun and not as they were asked for."""

    def finished(self) -> dict[str, Any] | None:
        """Return the summary of a finished run, None otherwise."""
        path = self.out / "summary.json"
        return dict(_read_json(path)) if path.is_file() else None

    def as_begun(self, recipe: TrainRecipe, origins: Mapping[str, str]) -> TrainRecipe:
        """Return the recipe with the values that the run in this folder began with, where its record is older; raises `CacheDamaged`."""
        if (self.out / "recipe.json").is_file() and self.has_steps():
            recorded = _read_json(self.out / "recipe.json")
            recipe, self.taken_over = recipe.as_recorded(recorded["decisive"], origins)
            if not recorded.get("recipe", {}).get("views"):
                recipe = replace(recipe, views=ViewsConfig())
        return recipe

    def begin(
        self, recipe: TrainRecipe, origins: Mapping[str, str], identities: Mapping[str, Any], choices: Mapping[str, Choice] | None = None,
        datasets: Mapping[str, Any] | None = None, terms: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """Record recipe, identities and choices; raises `CacheMismatch` naming each field in which the run in this folder differs.

        Choices that were recorded when the run began stay. A run without a finished step has nothing to protect: it is begun anew in
        the same folder, so that a corrected mistake needs no other one.
        """
        given_identities = json.loads(json.dumps(identities))
        resolved = {name: choice._asdict() for name, choice in (choices or {}).items()}
        if (self.out / "recipe.json").is_file() and not self.has_steps():
            for made in ("initial", "nonfinite", "tracking"):  # by the run that never was
                shutil.rmtree(self.out / made, ignore_errors=True)
        elif (self.out / "recipe.json").is_file():
            recorded = _read_json(self.out / "recipe.json")
            self._refuse_differences("with another recipe", recipe.decisive(), decisive(recorded["decisive"]))
            self._refuse_differences("that learns from something else", given_identities, _read_json(self.out / "identities.json"))
            resolved |= recorded.get("choices", {})
        elif any(self.out.glob("*")):
            raise BadInput(f"{self.out} is not empty and holds no run; give an empty or a new folder for the run")
        make_folder(self.out)
        _write_json(self.out / "identities.json", given_identities)
        all_origins = {**origins, **dict.fromkeys(self.taken_over, "as this run was begun")}
        record = {"recipe": recipe.to_dict(), "decisive": recipe.decisive(), "origins": all_origins, "choices": resolved}
        record |= {} if datasets is None else {"datasets": dict(datasets)}
        record |= {} if terms is None else {"terms": dict(terms)}
        _write_json(self.out / "recipe.json", record)

    def has_steps(self) -> bool:
        """Return whether anything was trained here: a checkpoint, a logged step, or a summary."""
        return (self.out / "summary.json").is_file() or bool(read_metrics(self.out)) or bool(list_checkpoints(self.checkpoints))

    def recorded(self, name: str) -> dict[str, Any]:
        """Return `recipe.json` or `identities.json` of a run that has taken a step here, {} where none has."""
        return dict(_read_json(self.out / name)) if (self.out / name).is_file() and self.has_steps() else {}

    def choices(self) -> dict[str, Choice]:
        """Return what `auto` was resolved to when the run began, {} where that was not recorded."""
        path = self.out / "recipe.json"
        recorded = _read_json(path).get("choices", {}) if path.is_file() else {}
        return {name: Choice(**choice) for name, choice in recorded.items()}

    def teacher_order(self, names: Iterable[str]) -> list[str]:
        """Return the teachers in the order in which this run's student holds them: by name, or as the run in this folder began.

        A sum's last bits depend on it, so a resumed run keeps it. Raises `CacheMismatch` for other teachers, and for a checkpoint whose
        adapters have numbers when nothing says what the numbers mean.
        """
        asked, recorded = target_order(names), self._recorded_order()
        if recorded is None and len(asked) > 1 and (newest := latest_checkpoint(self.checkpoints)) is not None:
            raise CacheMismatch(
                f"{newest.folder} numbers its adapters, and the run does not say which number is which teacher ({', '.join(asked)}); "
                "train in a new folder. This one is left as it is"
            )
        if recorded is not None and target_order(recorded) != asked:
            raise CacheMismatch(f"{self.out} holds a run that learns from other teachers: got {asked}, wanted {target_order(recorded)}")
        return recorded or asked

    def _recorded_order(self) -> list[str] | None:
        """Return the order in the newest checkpoint; where that is older, in the metrics, else in the initial model; None without any."""
        newest = latest_checkpoint(self.checkpoints)
        if newest is not None and "teachers" in newest.metadata:
            return list(newest.metadata["teachers"])
        last = math.inf if newest is None else newest.step
        logged = [list(line["losses"]) for line in read_metrics(self.out) if line["step"] <= last and line.get("losses")]
        if logged:
            return logged[-1]
        initial = self.initial / "adapters.json"
        return list(_read_json(initial)["order"]) if initial.is_file() else None

    def _refuse_differences(self, what: str, got: dict[str, Any], wanted: dict[str, Any]) -> None:
        """Raise `CacheMismatch` that names each field in which the run in this folder differs."""
        if lines := [line if len(line) < _LONG else f"{line[:_LONG]}…" for line in differing_fields(got, wanted)]:
            raise CacheMismatch(f"{self.out} holds a run {what}: {'; '.join(lines)}. Use the values it was begun with, or a new folder")

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write the summary: from now on the run is finished."""
        _write_json(self.out / "summary.json", dict(summary))


def save_model(student: Student, folder: Path, *, size_px: SizePx, targets: Mapping[str, Any], ranks: Ranks = ALONE) -> None:
    """Write a `model/` folder: the encoder, its adapters, and what the adapters were trained for; replaces an older one.

    Collective: every rank calls this and the first writes. Raises `StoreUnavailable` with the bytes needed.
    """
    encoder = student.encoder
    preprocessing = {**encoder.preprocessing.identity(), "size_px": size_json(size_px)}
    record = {"architecture": encoder.architecture, "size_px": size_json(size_px), "preprocessing": preprocessing}
    backbone = full_cpu_tensors(encoder.state_dict())
    named = zip(student.teacher_names, student.adapters, strict=True)
    adapters = {f"{name}.{key}": tensor for name, heads in named for key, tensor in full_cpu_tensors(heads.state_dict()).items()}
    if not ranks.first:
        return
    needed_bytes = sum(tensor.nbytes for tensor in (*backbone.values(), *adapters.values()))
    with translate_os_errors(folder, needed_bytes), replace_folder(folder) as temporary:
        safetensors.torch.save_file(backbone, temporary / "backbone.safetensors")
        safetensors.torch.save_file(adapters, temporary / "adapters.safetensors")
        (temporary / "model.json").write_text(json.dumps(record, indent=1, sort_keys=True))
        (temporary / "adapters.json").write_text(json.dumps(adapter_record(student, targets), indent=1, sort_keys=True))


def adapter_record(student: Student, targets: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the adapters map to, by teacher: shapes, and the digest of the statistics (`targets`: name → digest)."""
    record: dict[str, Any] = {}
    for name, heads in zip(student.teacher_names, student.adapters, strict=True):
        widths = {key: list(tensor.shape) for key, tensor in heads.state_dict().items()}
        record[name] = {"shapes": widths, "statistics": targets.get(name)}
    return {"teachers": record, "order": student.teacher_names, "format": _BY_TEACHER}


def read_adapters(model: Path) -> dict[str, dict[str, Tensor]]:
    """Return a `model/` folder's adapters by teacher, tensors named as in `TeacherHeads`.

    In folders of before format 2 they are numbered by `order`.
    """
    record = _read_json(model / "adapters.json")
    adapters: dict[str, dict[str, Tensor]] = {name: {} for name in record["order"]}
    for key, tensor in safetensors.torch.load_file(model / "adapters.safetensors").items():
        owner, *rest = key.rsplit(".", 3)  # a teacher's name may hold dots; cls.0.weight has two
        name = owner if record.get("format") == _BY_TEACHER else record["order"][int(owner)]
        adapters[name][".".join(rest)] = tensor
    return adapters


def load_student(run: Path) -> Student:
    """Return the student of a finished run (or of a part of one) with its adapters, in eval mode, on the CPU; raises as `load_model`."""
    record, teachers = _read_json(run / "model" / "model.json"), _read_json(run / "model" / "adapters.json")["teachers"]
    shapes = {name: described["shapes"] for name, described in teachers.items()}
    specs = {name: TargetSpec(_rows(of, "cls.3.weight"), of["patch.3.weight"][0], (1, 1)) for name, of in shapes.items()}  # of any grid
    student = Student(build_encoder(record["architecture"]), next(iter(shapes.values()))["patch.0.weight"][0], specs)
    load_model(student, run, {name: described["statistics"] for name, described in teachers.items()})
    student.encoder.preprocessing = Preprocessing.from_dict(record["preprocessing"])
    return student.eval()


def _rows(shapes: Mapping[str, list[int]], name: str) -> int | None:
    return shapes[name][0] if name in shapes else None


def load_model(student: Student, run: Path, targets: Mapping[str, Any]) -> None:
    """Load a run's backbone and adapters into a student, strictly.

    An imported model has no adapters: then the backbone alone is loaded and the student's stay. Adapters of intermediate layers that the
    student does not learn from are left out. Raises `BadInput` without a model,
    `CacheMismatch` for another architecture or other adapters, `CacheDamaged` for files that cannot be read.
    """
    folder = run / "model"
    if not (folder / "model.json").is_file():
        raise BadInput(f"{run} holds no trained model (no {folder / 'model.json'}); finish that run first: `eupe-pipeline train …`")
    recorded = _read_json(folder / "adapters.json")
    imported = not recorded["order"] and (run / "imported.json").is_file()
    teachers = adapter_record(student, targets)["teachers"]
    started = {name: shapes for name, shapes in recorded["teachers"].items() if name in teachers or split_target(name)[1] is None}
    differences = [
        *differing_fields(student.encoder.architecture, _read_json(folder / "model.json")["architecture"], "architecture."),
        *([] if imported else differing_fields(teachers, started, "adapters.teachers.")),
    ]
    if differences:
        raise CacheMismatch(f"{run} does not fit this student: {'; '.join(differences[:5])}")
    try:
        student.encoder.load_state_dict(safetensors.torch.load_file(folder / "backbone.safetensors"), strict=True)
        if not imported:
            adapters = read_adapters(folder)
            for name, heads in zip(student.teacher_names, student.adapters, strict=True):
                heads.load_state_dict(adapters[name], strict=True)
    except (OSError, RuntimeError, KeyError, ValueError, IndexError, safetensors.SafetensorError) as error:
        raise CacheDamaged(f"the model in {folder} cannot be loaded ({error}); train it again") from error
