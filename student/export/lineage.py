"""Where a trained student comes from: its run's recipe, its targets, and through the proxy's run the proxy's teachers.

A run names its teachers and the sha256 of their weights. When a teacher is itself a run (the proxy), the chain continues in that run's
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

from torch import Tensor

from ...storage.core.errors import BadInput, CacheDamaged, CacheMismatch
from ...storage.core.identity import file_sha256
from ...storage.objects.content_addressed import MARKER
from ...storage.views.input_size import SizePx
from ...teachers.checkpoints.published import load_encoder
from ...teachers.checkpoints.weights import read_weights
from ...teachers.encoders.architectures import ARCHITECTURES, Options
from ...teachers.encoders.build import canonical
from ...teachers.encoders.encoder import Encoder
from ...teachers.encoders.preprocessing import Preprocessing
from ...teachers.registry.licences import merged, terms_from_record, terms_of_recorded, through
from ...teachers.registry.resolve import BACKBONE_FILE, MODEL_FILE, resolve_teacher
from ...teachers.registry.table import OFFICIAL_EUPE, UNKNOWN, Terms
from ..heads.chosen import NamedHead
from ..probes.evaluation_records import list_records
from ..quantised.sample import Sample

RECORDS = ("recipe.json", "identities.json", "imported.json", "summary.json")  # what a run knows of its models
PARTS = {
    "average": "the moving average of the run's weights",
    "best": "the run's best checkpoint",
    "initial": "the run's random start: no teacher has shaped it",
}
_LEVELS, _NAMED = 3, 3  # of folders below one that holds runs, such as NAME/stage2 of `distill`; of runs that an error names
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
    heads: tuple[NamedHead, ...] = ()
    """What an export takes along."""
    int8_ranges: Mapping[str, Tensor] | None = None
    """What the last phase of its training saw, where that knew of int8."""
    sample: Sample | None = None
    """Pictures that an int8 graph is made and compared with; only where one is asked for."""

    @property
    def name(self) -> str:
        """Return what an export calls the student: the official hub's name, timm's, or its architecture's."""
        return self.hub_name or str(self.architecture.get("model", self.architecture["name"]))


def hub_name(architecture: Options) -> str | None:
    """Return the official student of this shape, None for any other shape; values that only matter in training do not count."""
    shape = {**architecture, **dict.fromkeys(_ONLY_INITIAL)}
    for name in ARCHITECTURES:
        official = name.startswith("eupe_") and architecture.get("layer_scale") is not None
        if official and {**canonical(name), **dict.fromkeys(_ONLY_INITIAL)} == shape:
            return name
    return None


def open_trained(run: Path, size_px: SizePx | None = None) -> Trained:
    """Return the student of a finished run at `size_px`, its own by default; raises BadInput without one, or off the stride."""
    from ..training.checkpoint import read_int8_ranges  # it brings torch's sharding, which an extraction's terms do without

    if not (run / MODEL_FILE).is_file():
        lack = f"holds no trained model (no {MODEL_FILE})" if run.exists() else "does not exist"
        raise BadInput(f"{run} {lack}{_what_instead(run)}")
    spec = resolve_teacher(str(run), size_px=size_px)
    encoder = load_encoder(spec.architecture, read_weights(spec.weights_path))
    encoder.preprocessing = spec.preprocessing
    return Trained(run, spec.architecture, encoder, spec.preprocessing, spec.weights_sha256, hub_name(spec.architecture), part_of(run),
                   int8_ranges=read_int8_ranges(run / MODEL_FILE.parent))  # fmt: skip


def _what_instead(run: Path) -> str:
    """Return why a folder holds no trained model, where that is known, and what to give instead."""
    if (run / MODEL_FILE.name).is_file():
        return f"; it is the model's own folder: give the one around it, {run.parent}"
    if (run / "checkpoint.json").is_file():
        around = run.absolute().parent.parent
        return f"; a checkpoint is what training goes on from; give {around}, or {around / 'best'} where the recipe keeps the best"
    if why := _why_not_kept(run):
        return f": {why}; give {records_folder(run)}"
    if not run.exists():
        return "; give the folder of a finished run, or take a model in: import-weights"
    is_run = any((run / name).is_file() for name in RECORDS)
    if below := [] if is_run else _runs_below(run):
        named = ", ".join(map(str, below[:_NAMED])) + (", …" if len(below) > _NAMED else "")
        runs = f"{len(below)} runs, give one" if len(below) > 1 else "1 run, give that"
        return f"; it is the folder of {runs}: {named}"
    return "; finish that run first, or take a model in: import-weights"


def _why_not_kept(run: Path) -> str | None:
    """Return why a run has no such part, None where its recipe does not say so."""
    part, recipe = part_of(run), read_record(run, "recipe.json").get("recipe", {})
    if part == "best" and recipe.get("run", {}).get("keep_best") is False:
        return "its run did not keep the best checkpoint (run.keep_best was off)"
    if part == "average" and recipe.get("student", {}).get("ema") == 0:
        return "its run kept no moving average (student.ema was 0)"
    return None


def _runs_below(folder: Path, levels: int = _LEVELS) -> list[Path]:
    """Return the folders with a trained model at most so many levels below, by name; those inside of a store or of a run are none."""
    if not levels or not folder.is_dir() or (folder / MARKER).is_file():
        return []
    found = []
    for inner in sorted(Path(entry.path) for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")):
        found += [inner] if (inner / MODEL_FILE).is_file() else _runs_below(inner, levels - 1)
    return found


def part_of(run: Path) -> str | None:
    """Return which of PARTS a folder is of the run around it; None for a folder with records of its own, or with no run around it."""
    folder = Path(os.path.abspath(run))
    has_records, run_has_records = (any((where / name).is_file() for name in RECORDS) for where in (folder, folder.parent))
    return folder.name if folder.name in PARTS and run_has_records and not has_records else None


def records_folder(run: Path) -> Path:
    """Return the folder of the records about a model: its own, or that of the run which it is a part of."""
    return run if part_of(run) is None else Path(os.path.abspath(run)).parent


def run_title(run: Path) -> str:
    """Return a run's name for people: its folder's, and for a part of a run both."""
    part = part_of(run)
    return run.resolve().name if part is None else f"{records_folder(run).resolve().name}/{part}"


def folders_of_models(run: Path) -> list[Path]:
    """Return the folder of a model and those of its run's other models: where evaluations of the same weights may lie."""
    around = records_folder(run)
    return [run, *(folder for folder in (around, *(around / part for part in PARTS)) if folder.absolute() != run.absolute())]


def read_record(run: Path, name: str) -> dict[str, Any]:
    """Return a JSON file of a run's folder, {} when there is none (an imported model); raises CacheDamaged when it is unreadable.

    For a part of a run RECORDS are read from the run's folder, any other file from its own.
    """
    path = (records_folder(run) if name in RECORDS else run) / name
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise CacheDamaged(f"{path} cannot be read: {error}") from error


def recorded_share(run: Path) -> float:
    """Return the share of its images that a run held out, 0 where its record has none."""
    return float(read_record(run, "recipe.json").get("recipe", {}).get("data", {}).get("hold_out", 0.0))


def read_targets(run: Path) -> dict[str, Any]:
    """Return what a run was taught by: {teacher's name: {identity, …}}."""
    return dict(read_record(run, "identities.json").get("targets", {}))


def collect_terms(run: Path, proxy: Path | None) -> dict[str, Terms]:
    """Return the licence terms of every teacher above a run, through `proxy` where given; raises CacheMismatch for another proxy."""
    imported = bool(read_record(run, "imported.json"))
    if proxy is not None and not imported and not any(is_made_by(target, proxy) for target in read_targets(run).values()):
        raise CacheMismatch(f"{proxy} is not the proxy that taught {run}: none of its targets has the sha256 of its weights")
    return terms_above(run, proxy)


def terms_above(run: Path, proxy: Path | None = None) -> dict[str, Terms]:
    """Return the terms by teacher of a run, an imported model or a part of a run; {} for random weights, and where nothing is recorded.

    A run records the terms of its teachers as they were composed when it began. What was unknown then, and runs of before, are looked up:
    by the teachers' names, and through `proxy` where it taught them.
    """
    if part_of(run) == "initial":
        return {}
    if origin := read_record(run, "imported.json"):
        by_layout = OFFICIAL_EUPE if origin["layout"] == "eupe" else UNKNOWN  # DINOv3's own files have that layout, too
        terms = merged(*({"it": row} for row in terms_from_record(origin.get("terms", {})).values())).get("it", by_layout)
        return {f"imported: {origin['source']}": terms}
    recorded, targets = read_record(run, "recipe.json").get("terms"), read_targets(run)
    collected = _terms_of_start(run, proxy) if recorded is None else terms_from_record(recorded)
    for name, target in targets.items():
        if recorded is not None and not (name in collected and collected[name].non_commercial is None):
            continue
        if proxy is not None and is_made_by(target, proxy):
            collected.pop(name, None)
            collected |= {through(above, name): terms for above, terms in terms_above(proxy).items()}
        elif recorded is None:
            collected[name] = terms_of_recorded(name, target.get("identity", {}).get("teacher", {}))
    return collected


def _terms_of_start(run: Path, proxy: Path | None) -> dict[str, Terms]:
    """Return the terms of the weights that a run started from (`student.init_from`); {} for random ones."""
    recorded = read_record(run, "identities.json").get("init_from")
    if not recorded:
        return {}
    start = Path(str(read_record(run, "recipe.json").get("recipe", {}).get("student", {}).get("init_from")))
    weights = start / BACKBONE_FILE
    if weights.is_file() and file_sha256(weights) == recorded[BACKBONE_FILE.name]:
        return terms_above(start, proxy)
    return {f"the weights it began with ({start}, not found here)": UNKNOWN}


def evaluations_of_weights(trained: Trained) -> list[dict[str, Any]]:
    """Return the records that measured exactly these weights: those beside them, and those beside other parts of the run."""
    run = records_folder(trained.run)
    beside_it = [record for record in list_records(trained.run) if _measured_weights(record) in (None, trained.weights_sha256)]
    folders = [folder for folder in (run, *(run / part for part in PARTS)) if folder != trained.run]
    elsewhere = [record for folder in folders for record in list_records(folder) if _measured_weights(record) == trained.weights_sha256]
    by_protocol = {json.dumps([record["evaluation"], record["protocol"]], sort_keys=True): record for record in [*beside_it, *elsewhere]}
    return list(by_protocol.values())


def _measured_weights(evaluation: Mapping[str, Any]) -> str | None:
    """Return the sha256 of the weights that a record measured, None where it does not say."""
    model = evaluation["protocol"].get("model")
    return model.get("weights_sha256") if isinstance(model, Mapping) else None


def is_made_by(target: Mapping[str, Any], proxy: Path) -> bool:
    """Return whether a target's tokens were made by the model of a run; raises BadInput when the run has no model."""
    weights = proxy / BACKBONE_FILE
    if not weights.is_file():
        raise BadInput(f"{proxy} holds no trained model (no {weights}); --proxy names the run of stage 1")
    return bool(target["identity"]["teacher"]["weights_sha256"] == file_sha256(weights))
