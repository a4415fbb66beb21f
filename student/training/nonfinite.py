"""The first step whose loss or gradient was not finite, kept so that it can be computed again anywhere.

    OUT/nonfinite/step-0000006/
        bundle.json             recipe, teachers, device, precision, what was seen; written last
        spaces.safetensors      the teachers' own spaces of class tokens, where the recipe compares these by angles
        model.safetensors       the student before the step         optimizer.safetensors   its optimiser
        rank-0.safetensors      a rank's micro-batches: the student's pixels, the targets (and where letterboxed images lie); ids
                                of its images, rows of its views

Nothing else is needed: neither store nor images. Only the first such step of a run is kept, and only where it takes at most a third of the
free disk, so that the checkpoint of the step before has its room. What cannot be written is said and never hides why the run stopped.
Floats are recorded as `float.hex` gives them, because JSON has neither NaN nor infinity.
"""

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from ...storage.core.errors import CacheDamaged, StoreUnavailable
from ...storage.core.identity import json_bytes
from ...storage.objects.atomic_files import TEMPORARY_PREFIX, make_folder, translate_os_errors
from ...teachers.encoders.tokens import SampledTokens, Tokens
from ..data.stream import NOWHERE, PLACE
from ..data.targets import Targets
from ..model.losses import ClassSpace
from ..model.student import TargetSpec
from ..model.versions import code_digest, versions
from .checkpoint import save_tensors, state_tensors
from .learner import Learner, Sums

BUNDLE, SPACES = "bundle.json", "spaces"
_FORMAT = 1
_SHARE_OF_FREE_DISK = 3


class MicroBatch(NamedTuple):
    """What one forward and backward pass takes: uint8 pixels as the student sees them, targets, the share of the step's batch."""

    pixels_BHWC: Tensor
    targets: Targets
    share: float
    last: bool
    places: Mapping[str, Tensor] = NOWHERE
    """Where letterboxed images lie, by model (`data.stream.places_of`)."""


class Origin(NamedTuple):
    """Where a rank's batch comes from: ids of its images and rows of their views, in the batch's order."""

    images: list[str]
    rows: list[int]


def kept_step(out: Path) -> Path | None:
    """Return the folder of the step that a run has kept, None without one."""
    return next((path.parent for path in sorted((out / "nonfinite").glob(f"step-*/{BUNDLE}"))), None)


def keep_step(
    learner: Learner, parts: Iterable[MicroBatch], origin: Origin, specs: Mapping[str, TargetSpec], identities: Mapping[str, Any]
) -> str:
    """Keep the step that the learner has refused, and return what to tell the user; collective, and raises nothing but interrupts."""
    out, step = learner.folder.out, learner.steps_done
    try:
        if learner.ranks.any((earlier := kept_step(out)) is not None, learner.device.value):
            return f"The first step of this run that was not finite is kept in {earlier or out / 'nonfinite'}" + _advice(earlier)
        final = out / "nonfinite" / f"step-{step + 1:07d}"
        total = _write(final, learner, _rank_tensors(learner, list(parts)), origin, _description(learner, specs, identities))
    except Exception as error:  # noqa: BLE001 - whatever it is, the step that was not finite is what the user must hear of
        return f"What this step was computed from could not be kept: {error}"
    return f"What it was computed from is kept in {final} ({total:,} bytes)" + _advice(final)


def _advice(folder: Path | None) -> str:
    return f": `eupe-pipeline runs replay {folder}` computes it again and names the first module that is not finite" if folder else ""


def _description(learner: Learner, specs: Mapping[str, TargetSpec], identities: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "step": learner.steps_done,
        "student": learner.name,
        "teachers": [{"name": name, **asdict(specs[name])} for name in learner.student.teacher_names],
        "device": learner.device.value,
        "precision": learner.precision.value,
        "ranks": learner.ranks.count,
        "seen": {name: value.hex() for name, value in learner.refused.items()},
        "recipe": learner.recipe.to_dict(),
        "identities": dict(identities),
        "versions": {**versions(), "code": code_digest()},
    }


def _rank_tensors(learner: Learner, parts: Sequence[MicroBatch]) -> dict[str, Tensor]:
    """Return the tensors of a rank's file: `<micro-batch>/pixels`, `/place/<model>` and `/<number of the teacher>/<field>`."""
    tensors: dict[str, Tensor] = {}
    for number, part in enumerate(parts):
        tensors[f"{number}/pixels"] = part.pixels_BHWC
        tensors |= {f"{number}/{PLACE}/{model}": place_B4 for model, place_B4 in part.places.items()}
        tensors[f"{number}/share"] = torch.tensor(part.share, dtype=torch.float64)
        for teacher, name in enumerate(learner.student.teacher_names):
            fields = part.targets[name]._asdict().items()
            tensors |= {f"{number}/{teacher}/{field}": value for field, value in fields if isinstance(value, Tensor)}
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def _space_tensors(learner: Learner) -> dict[str, dict[str, Tensor]]:
    """Return {SPACES: …} with the spaces by the number of their teacher; {} without any."""
    tensors: dict[str, Tensor] = {}
    for number, name in enumerate(learner.student.teacher_names):
        if (space := learner.spaces.get(name)) is not None:
            dispersion = torch.tensor(space.dispersion, dtype=torch.float64)
            named = {"mean_D": space.mean_D, "scale": space.scale, "dispersion": dispersion}
            tensors |= {f"{number}/{field}": tensor.cpu().contiguous() for field, tensor in named.items()}
    return {SPACES: tensors} if tensors else {}


def read_spaces(folder: Path, teachers: Sequence[str]) -> dict[str, ClassSpace]:
    """Return the spaces of class tokens that a bundle holds, by teacher; {} without any. Raises `CacheDamaged`."""
    path = folder / f"{SPACES}.safetensors"
    if not path.is_file():
        return {}
    try:
        tensors = load_file(path)
        numbers = [number for number in range(len(teachers)) if f"{number}/mean_D" in tensors]
        return {teachers[n]: ClassSpace(tensors[f"{n}/mean_D"], tensors[f"{n}/scale"], float(tensors[f"{n}/dispersion"])) for n in numbers}
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise CacheDamaged(f"{path} cannot be read ({error}); a step can be computed again with all of its files alone") from error


def _write(final: Path, learner: Learner, own: dict[str, Tensor], origin: Origin, description: dict[str, Any]) -> int:
    """Write a bundle and return its bytes over all ranks; raises on every rank when one could not write. Collective."""
    ranks, device = learner.ranks, learner.device.value
    files = state_tensors(learner.student, learner.optimizer) | _space_tensors(learner)
    total = int(ranks.sum(torch.tensor(_bytes(own), device=device))) + sum(map(_bytes, files.values()))
    work = final.with_name(f"{TEMPORARY_PREFIX}{final.name}")
    if ranks.first:
        shutil.rmtree(work, ignore_errors=True)
        make_folder(work)
    ranks.barrier()
    problem: Exception | None = None
    try:
        with translate_os_errors(work, total):
            _refuse_too_large(total, work)
            metadata = {
                "origin": json.dumps(origin._asdict()),
                "sums": json.dumps(as_hex(learner.own_sums)),
                "threads": str(torch.get_num_threads()),
            }
            save_tensors(own, work / f"rank-{ranks.number}.safetensors", metadata)
            for name, tensors in files.items() if ranks.first else ():
                save_tensors(tensors, work / f"{name}.safetensors")
    except Exception as error:  # noqa: BLE001 - the other ranks wait
        problem = error
    failed = ranks.any(problem is not None, device)
    if ranks.first and failed:
        shutil.rmtree(work, ignore_errors=True)
    if failed:
        raise problem or StoreUnavailable("another rank could not write its part")
    if ranks.first:
        with translate_os_errors(final, total):
            (work / BUNDLE).write_bytes(json_bytes({**description, "bytes": total}, indent=1, sort_keys=True))
            for file in work.iterdir():
                file.chmod(work.stat().st_mode & 0o666)
            work.rename(final)
    ranks.barrier()
    return total


def _bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def _refuse_too_large(needed_bytes: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if needed_bytes * _SHARE_OF_FREE_DISK > free:
        raise StoreUnavailable(f"it takes {needed_bytes:,} bytes, and of the {free:,} that are free a third at most")


def as_hex(sums: Sums) -> list[tuple[str, str, str]]:
    """Return (teacher, term, value) of each sum, ("", "") is the loss; exact, as `float.hex`."""
    return [(teacher, term, float(value).hex()) for (teacher, term), value in sums.items()]


class RankPart(NamedTuple):
    """What a bundle holds of one rank."""

    parts: list[MicroBatch]
    origin: Origin
    sums: list[tuple[str, str, str]]
    threads: int


def read_rank(folder: Path, rank: int, teachers: Mapping[str, TargetSpec]) -> RankPart:
    """Read one rank's micro-batches; raises `CacheDamaged`."""
    path = folder / f"rank-{rank}.safetensors"
    try:
        with safe_open(path, "pt") as file:
            tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118 - no mapping
        count = sum(name.endswith("/pixels") for name in tensors)
        parts = [_read_part(tensors, number, teachers, number == count - 1) for number in range(count)]
        sums = [(teacher, term, value) for teacher, term, value in json.loads(metadata["sums"])]
        return RankPart(parts, Origin(**json.loads(metadata["origin"])), sums, int(metadata["threads"]))
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        raise CacheDamaged(
            f"{path} cannot be read ({error}); a step can be computed again with the files of all its ranks alone"
        ) from error


def _read_part(tensors: Mapping[str, Tensor], number: int, teachers: Mapping[str, TargetSpec], last: bool) -> MicroBatch:
    targets: dict[str, Tokens | SampledTokens] = {}
    for teacher, (name, spec) in enumerate(teachers.items()):
        cls_BD = tensors.get(f"{number}/{teacher}/cls_BD")
        if spec.tokens is None:
            targets[name] = Tokens(cls_BD, tensors[f"{number}/{teacher}/patch_BHWD"])
        else:
            patch_BTD, position_BT = (tensors[f"{number}/{teacher}/{field}"] for field in ("patch_BTD", "position_BT"))
            targets[name] = SampledTokens(cls_BD, patch_BTD, position_BT, spec.grid)
    prefix = f"{number}/{PLACE}/"
    places = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return MicroBatch(tensors[f"{number}/pixels"], targets, float(tensors[f"{number}/share"]), last, places)
