"""Where a trained student comes from: its run's recipe, its targets, and through the proxy's run the teachers above.

A run names its teachers and the sha256 of their weights. When a teacher is itself a run (the proxy), the chain goes on in that run's
folder, which the caller gives; it must hold exactly the weights that the student was taught by. What was given but does not fit is an
error, what was not given is said to be unknown. An imported model has its source instead of a recipe. RUN/average, RUN/best and
RUN/initial hold a model of the run without its records: these are the run's, one folder up.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...storage.core.errors import BadInput, CacheDamaged, CacheMismatch
from ...storage.core.identity import file_sha256
from ...teachers.checkpoints.published import load_encoder
from ...teachers.checkpoints.weights import read_weights
from ...teachers.encoders.architectures import ARCHITECTURES, Options
from ...teachers.encoders.build import canonical
from ...teachers.encoders.encoder import Encoder
from ...teachers.encoders.preprocessing import Preprocessing
from ...teachers.registry.resolve import BACKBONE_FILE, MODEL_FILE, resolve_teacher
from ...teachers.registry.table import OFFICIAL_EUPE, UNKNOWN, Terms, terms_of
from ..probes.evaluation_records import evaluations_of

RECORDS = ("recipe.json", "identities.json", "imported.json", "summary.json")  # what a run knows of its models
PARTS = {
    "average": "the moving average of the run's weights",
    "best": "the run's best checkpoint",
    "initial": "the run's random start: no teacher has shaped it",
}
_ONLY_INITIAL = ("layer_scale", "rope_rescale")  # decide how training starts or goes, not what a trained student computes


@dataclass(frozen=True)
class Trained:
    """A finished run's student."""

    run: Path
    architecture: Options
    encoder: Encoder
    """In eval mode, fp32, on the CPU."""
    preprocessing: Preprocessing
    weights_sha256: str
    hub_name: str | None
    """Its name in the official hub, None for a shape that the hub has not."""
    part: str | None = None
    """Which of PARTS of its run it is; None for the run's own model."""

    @property
    def name(self) -> str:
        """What an export calls it."""
        return self.hub_name or str(self.architecture["name"])


def hub_name(architecture: Options) -> str | None:
    """The official student of this shape; values that only matter in training do not count."""
    shape = {**architecture, **dict.fromkeys(_ONLY_INITIAL)}
    for name in ARCHITECTURES:
        official = name.startswith("eupe_") and architecture.get("layer_scale") is not None
        if official and {**canonical(name), **dict.fromkeys(_ONLY_INITIAL)} == shape:
            return name
    return None


def open_trained(run: Path, size_px: int | None = None) -> Trained:
    """The student of a finished run at its own input size or another; raises BadInput when there is none or the size does not fit."""
    if not (run / MODEL_FILE).is_file():
        raise BadInput(f"{run} holds no trained model (no {MODEL_FILE}); {_what_instead(run)}")
    spec = resolve_teacher(str(run), size_px=size_px)
    encoder = load_encoder(spec.architecture, read_weights(spec.weights_path))
    encoder.preprocessing = spec.preprocessing
    return Trained(run, spec.architecture, encoder, spec.preprocessing, spec.weights_sha256, hub_name(spec.architecture), part_of(run))


def _what_instead(run: Path) -> str:
    if (run / MODEL_FILE.name).is_file():
        return f"it is the model's own folder: give the one around it, {run.parent}"
    if (run / "checkpoint.json").is_file():
        around = run.absolute().parent.parent
        return f"a checkpoint is what training goes on from; give {around}, or {around / 'best'} where the recipe keeps the best"
    return "finish that run first, or take a model in: import-weights"


def part_of(run: Path) -> str | None:
    """Which of PARTS a folder is of the run around it; None for a folder with records of its own, or around none."""
    place = Path(os.path.abspath(run))
    own, around = (any((folder / name).is_file() for name in RECORDS) for folder in (place, place.parent))
    return place.name if place.name in PARTS and around and not own else None


def records_folder(run: Path) -> Path:
    """Where the records lie that tell of a model: its own folder, or that of the run which it is a part of."""
    return run if part_of(run) is None else Path(os.path.abspath(run)).parent


def title_of(run: Path) -> str:
    """A run's name for people: its folder's, and of a part both."""
    part = part_of(run)
    return run.resolve().name if part is None else f"{records_folder(run).resolve().name}/{part}"


def read_record(run: Path, name: str) -> dict[str, Any]:
    """A JSON file of a run's folder, {} when the run has none (an imported model); raises CacheDamaged when it is unreadable.

    Of a part of a run RECORDS are the run's, anything else its own.
    """
    path = (records_folder(run) if name in RECORDS else run) / name
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise CacheDamaged(f"{path} cannot be read: {error}") from error


def targets_of(run: Path) -> dict[str, Any]:
    """What a run was taught by: {teacher's name: {identity, …}}."""
    return dict(read_record(run, "identities.json").get("targets", {}))


def teachers_of(run: Path, proxy: Path | None) -> dict[str, Terms]:
    """The terms of every teacher above a run, through the proxy's run where one is given; raises CacheMismatch when it is another proxy."""
    imported = bool(read_record(run, "imported.json"))
    if proxy is not None and not imported and not any(is_proxy_of(target, proxy) for target in targets_of(run).values()):
        raise CacheMismatch(f"{proxy} is not the proxy that taught {run}: none of its targets has the sha256 of its weights")
    return _terms_above(run, proxy)


def _terms_above(run: Path, proxy: Path | None) -> dict[str, Terms]:
    if part_of(run) == "initial":
        return {}
    if origin := read_record(run, "imported.json"):
        return {f"imported: {origin['source']}": OFFICIAL_EUPE if origin["layout"] == "eupe" else UNKNOWN}
    found = _terms_of_start(run, proxy)
    for name, target in targets_of(run).items():
        if proxy is not None and is_proxy_of(target, proxy):
            found |= {f"{above} (through {name})": terms for above, terms in _terms_above(proxy, None).items()}
        else:
            found[name] = terms_of(name)
    return found


def _terms_of_start(run: Path, proxy: Path | None) -> dict[str, Terms]:
    """Of the weights that a run began with, which its own teachers say nothing about; {} for random ones."""
    wanted = read_record(run, "identities.json").get("init_from")
    if not wanted:
        return {}
    start = Path(str(read_record(run, "recipe.json").get("recipe", {}).get("student", {}).get("init_from")))
    weights = start / BACKBONE_FILE
    if weights.is_file() and file_sha256(weights) == wanted[BACKBONE_FILE.name]:
        return _terms_above(start, proxy)
    return {f"the weights it began with ({start}, not found here)": UNKNOWN}


def evaluations_about(trained: Trained) -> list[dict[str, Any]]:
    """What was measured of exactly these weights: the records beside them, and those beside other models of their run."""
    around = records_folder(trained.run)
    beside_it = [one for one in evaluations_of(trained.run) if _measured(one) in (None, trained.weights_sha256)]
    folders = [folder for folder in (around, *(around / part for part in PARTS)) if folder != trained.run]
    elsewhere = [one for folder in folders for one in evaluations_of(folder) if _measured(one) == trained.weights_sha256]
    return list({json.dumps([one["evaluation"], one["protocol"]], sort_keys=True): one for one in [*beside_it, *elsewhere]}.values())


def _measured(evaluation: Mapping[str, Any]) -> str | None:
    """The sha256 of the weights that a record is about, None where it does not say."""
    model = evaluation["protocol"].get("model")
    return model.get("weights_sha256") if isinstance(model, Mapping) else None


def is_proxy_of(target: Mapping[str, Any], proxy: Path) -> bool:
    """Whether a target's tokens were made by the model of a run."""
    weights = proxy / BACKBONE_FILE
    if not weights.is_file():
        raise BadInput(f"{proxy} holds no trained model (no {weights}); --proxy names the run of stage 1")
    return bool(target["identity"]["teacher"]["weights_sha256"] == file_sha256(weights))
