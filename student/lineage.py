"""Where a trained student comes from: its run's recipe, its targets, and through the proxy's run the teachers above.

A run names its teachers and the sha256 of their weights. When a teacher is itself a run (the proxy), the chain goes on in that run's
folder, which the caller gives; it must hold exactly the weights that the student was taught by. What was given but does not fit is an
error, what was not given is said to be unknown. An imported model has its source instead of a recipe.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..storage.errors import BadInput, CacheDamaged, CacheMismatch
from ..storage.identity import file_sha256
from ..teachers.architectures import ARCHITECTURES, Options, canonical
from ..teachers.encoders import Encoder
from ..teachers.licences import OFFICIAL_EUPE, UNKNOWN, Terms, terms_of
from ..teachers.preprocessing import Preprocessing
from ..teachers.published import load_encoder
from ..teachers.registry import MODEL_FILE, resolve_teacher
from ..teachers.weights import read_weights

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
        raise BadInput(f"{run} holds no trained model (no {MODEL_FILE}); finish that run first, or take a model in: import-weights")
    spec = resolve_teacher(str(run), size_px=size_px)
    encoder = load_encoder(spec.architecture, read_weights(spec.weights_path))
    encoder.preprocessing = spec.preprocessing
    return Trained(run, spec.architecture, encoder, spec.preprocessing, spec.weights_sha256, hub_name(spec.architecture))


def read_record(run: Path, name: str) -> dict[str, Any]:
    """A JSON file of a run's folder, {} when the run has none (an imported model); raises CacheDamaged when it is unreadable."""
    path = run / name
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
    if origin := read_record(run, "imported.json"):
        return {f"imported: {origin['source']}": OFFICIAL_EUPE if origin["layout"] == "eupe" else UNKNOWN}
    found: dict[str, Terms] = {}
    for name, target in targets_of(run).items():
        if proxy is not None and is_proxy_of(target, proxy):
            found |= {f"{above} (through {name})": terms for above, terms in teachers_of(proxy, None).items()}
        else:
            found[name] = terms_of(name)
    if proxy is not None and not any(is_proxy_of(target, proxy) for target in targets_of(run).values()):
        raise CacheMismatch(f"{proxy} is not the proxy that taught {run}: none of its targets has the sha256 of its weights")
    return found


def is_proxy_of(target: Mapping[str, Any], proxy: Path) -> bool:
    """Whether a target's tokens were made by the model of a run."""
    weights = proxy / "model" / "backbone.safetensors"
    if not weights.is_file():
        raise BadInput(f"{proxy} holds no trained model (no {weights}); --proxy names the run of stage 1")
    return bool(target["identity"]["teacher"]["weights_sha256"] == file_sha256(weights))
