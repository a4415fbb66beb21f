"""From a teacher's name, a run's folder or a file of one's own to a loaded, frozen teacher.

`resolve_teacher` decides everything and builds nothing large: it finds the weight file and hashes it. `load_teacher` builds, loads strictly
and freezes. Absent weights are an error that says where to put which file; only a caller who asks for random ones, for a trial of speed
and size, gets them, and then the identity says so. A finished run (`RUN/model/model.json` + `backbone.safetensors`) is a teacher as well:
so the proxy of stage 1 teaches stage 2. FILE.py:FUNCTION is one of the user's own (`python_file`), and so is FILE.onnx (`onnx_file`).
"""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ...storage.core.cache_home import weights_folder
from ...storage.core.errors import BadInput, unknown_name
from ...storage.core.identity import digest
from ...storage.views.input_size import SizePx, as_size, size_hw, size_text
from ..checkpoints.hub import HUB_PREFIX, fetch_model, is_repository, local_weights
from ..checkpoints.sharded import INDEX_SUFFIX, weights_in, weights_sha256
from ..checkpoints.transformers_models import HF_PREFIX, HF_RECORDS, inspect_hf, load_hf
from ..checkpoints.weights import check_format, load_strictly
from ..encoders.architectures import ARCHITECTURES, Options
from ..encoders.build import FAMILIES, build_encoder, canonical, cls_width, facts
from ..encoders.encoder import Encoder
from ..encoders.frozen import FrozenEncoder, build_timm, inspect_timm, try_timm_size
from ..encoders.preprocessing import Preprocessing
from ..encoders.transformers_towers import tower_depth
from ..runtime.empty_build import build_empty
from ..runtime.host_memory import keep_freed_memory
from .onnx_file import ONNX_FILE, load_onnx_file, names_onnx_file, resolve_onnx_file
from .python_file import load_python_file, names_python_file, python_file_at, resolve_python_file
from .spec import RANDOM_WEIGHTS, TeacherSpec
from .table import TEACHERS, TeacherDefinition, timm_definition
from .teacher import Teacher

TIMM_PREFIX = "timm:"
_OTHER_NAMES = (f"{TIMM_PREFIX}NAME", f"{HF_PREFIX}FOLDER", "FILE.py:FUNCTION", "FILE.onnx", "the folder of a finished run")
MODEL_FILE = Path("model") / "model.json"
BACKBONE_FILE = Path("model") / "backbone.safetensors"
_DEPTHS: dict[
    str, int
] = {}  # blocks by digest of an architecture: building one takes seconds, and is asked for at each plan of an extraction


def resolve_teacher(
    name_or_run: str,
    *,
    weights: Path | None = None,
    size_px: SizePx | None = None,
    precision: str = "fp32",
    constants: str = "own",
    allow_random_weights: bool = False,
) -> TeacherSpec:
    """Decide a teacher: `weights` overrides where the file is (`hub:OWNER/NAME@COMMIT` fetches it), `size_px` the input size; hashes it.

    A FILE.py:FUNCTION is run here, and its tokens of two pictures are checked, as are those of a FILE.onnx, whose precision is its own.

    `constants="imagenet"` takes ImageNet's mean and std in the place of its own, as the paper does for all. Raises BadInput on an unknown
    name (listing the known), on missing weights (saying where to put which file), on a run without a finished model, and on a size that
    the stride does not divide.
    """
    name_or_run = absolute_name(name_or_run)
    run, weights = Path(name_or_run), local_weights(weights)
    if not (run / MODEL_FILE).is_file() and names_python_file(name_or_run):
        return resolve_python_file(name_or_run, weights, size_px=size_px, precision=precision, constants=constants)
    if not (run / MODEL_FILE).is_file() and names_onnx_file(name_or_run):
        return resolve_onnx_file(name_or_run, weights, size_px=size_px, constants=constants)
    prefixed = name_or_run.startswith((TIMM_PREFIX, HF_PREFIX))
    if name_or_run.startswith(HF_PREFIX):
        spec = _resolve_hf(name_or_run.removeprefix(HF_PREFIX), weights, precision)
    elif (run / MODEL_FILE).is_file():
        spec = _resolve_run(run, weights, precision)
    elif run.is_dir() or (len(run.parts) > 1 and not prefixed):
        raise BadInput(f"{name_or_run} holds no {MODEL_FILE}: give a finished run, or a teacher's name: {_known()}")
    else:
        spec = _resolve_named(name_or_run, weights, precision, allow_random_weights)
    spec = replace(spec, preprocessing=spec.preprocessing.with_constants(constants))
    return spec if size_px is None else _at_size(spec, size_px)


def _at_size(spec: TeacherSpec, size_px: SizePx) -> TeacherSpec:
    """Return the teacher at an input size; raise `BadInput` where timm's model cannot compute it: by a forward that computes nothing."""
    sized = spec.at_size(size_px)
    if spec.architecture["name"] == "timm" and sized.preprocessing.size_px != spec.preprocessing.size_px:
        try_timm_size(sized.architecture, size_hw(sized.preprocessing.size_px), sized.grid)
    return sized


def absolute_name(name_or_run: str) -> str:
    """Return the folder of a run, of hf:FOLDER, of FILE.py:FUNCTION or of FILE.onnx as an absolute path; any other name as it is.

    Workers run in other folders than the command.
    """
    prefix = HF_PREFIX if name_or_run.startswith(HF_PREFIX) else ""
    path = Path(name_or_run.removeprefix(prefix)).expanduser()
    if names_python_file(name_or_run) and not (path / MODEL_FILE).is_file():
        return python_file_at(name_or_run)
    if names_onnx_file(name_or_run) and not (path / MODEL_FILE).is_file():
        return str(path.absolute())
    return f"{prefix}{path.absolute()}" if (path.is_dir() if prefix else (path / MODEL_FILE).is_file()) else name_or_run


def load_teacher(spec: TeacherSpec, device: torch.device | str = "cpu") -> Teacher:
    """Build, load strictly, freeze and move; raise BadInput when the file is not the one that was resolved."""
    if spec.weights_sha256 == RANDOM_WEIGHTS:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return _frozen(spec, _built(spec).eval(), device)
    if spec.source is not None:
        return _frozen(spec, load_python_file(spec), device)
    if spec.architecture["name"] == ONNX_FILE:
        return _frozen(spec, load_onnx_file(spec), device)
    path = _existing(spec.weights_path, spec.name, "the file that was resolved")
    with ThreadPoolExecutor(1, thread_name_prefix="sha256") as hashing:  # it leaves the interpreter to the build
        sha256 = hashing.submit(weights_sha256, path)
        try:
            encoder = _loaded(spec)
        finally:  # a file that changed is the reason for whatever else was wrong with it
            _refuse_changed(spec, sha256.result())
    return _frozen(spec, encoder, device)


def _loaded(spec: TeacherSpec) -> Encoder:
    """Return the encoder, built without random weights and with every weight loaded."""
    if spec.architecture["name"] == "hf":
        return load_hf(spec.architecture, spec.weights_path)
    encoder = build_empty(lambda: _built(spec).eval())
    if isinstance(encoder, FrozenEncoder):  # published files name the backbone's tensors, a run's name the encoder's
        load_strictly(encoder.backbone, spec.weights_path, encoder.from_published)
        encoder.fuse()
    else:
        load_strictly(encoder, spec.weights_path)
    return encoder


def _built(spec: TeacherSpec) -> Encoder:
    """Return the encoder with random weights, by its architecture's kind: a student's family, or the builder of a row of the table."""
    kind = spec.architecture["name"]
    if kind in FAMILIES:
        return build_encoder(spec.architecture)
    if kind == "timm":  # also of `timm:NAME`, which is in no row
        return build_timm(spec.architecture)
    for name in sorted(TEACHERS, key=lambda name: name != spec.name):  # its own row first: another plug-in may be broken
        row = TEACHERS[name]
        if row.architecture["name"] == kind:
            return row.build(spec.architecture)
    raise BadInput(f"teacher {spec.name}: nothing here builds an architecture {kind!r}; install the plug-in that brings it on this machine")


def block_count(spec: TeacherSpec) -> int:
    """Return how many blocks a teacher has whose tokens it can give (`Encoder.depth`), nothing allocated; 0: its final tokens alone."""
    if spec.source is not None or spec.architecture["name"] == ONNX_FILE:
        return 0
    if spec.architecture["name"] == "hf":
        return tower_depth(spec.architecture)
    key = digest(spec.architecture)
    if key not in _DEPTHS:
        with torch.device("meta"):
            _DEPTHS[key] = _built(spec).depth
    return _DEPTHS[key]


def _refuse_changed(spec: TeacherSpec, sha256: str) -> None:
    if sha256 != spec.weights_sha256:
        raise BadInput(
            f"the weights of {spec.name} changed since they were resolved: {spec.weights_path} has sha256 {sha256[:12]}…, "
            f"expected {spec.weights_sha256[:12]}…; resolve the teacher again, or put the former file back"
        )


def _frozen(spec: TeacherSpec, encoder: Encoder, device: torch.device | str) -> Teacher:
    keep_freed_memory(device)
    encoder.preprocessing = spec.preprocessing
    # Channels-last weights belong to the channels-last pixels that Preprocessing makes; a no-op for linear layers.
    return Teacher(spec, encoder.to(device).to(memory_format=torch.channels_last))  # type: ignore[call-overload]


def _known() -> str:
    return (
        ", ".join(sorted(TEACHERS))
        + f", {TIMM_PREFIX}NAME, {HF_PREFIX}FOLDER, {HF_PREFIX}OWNER/NAME@COMMIT, FILE.py:FUNCTION, FILE.onnx, or the folder of a "
        "finished run"
    )


def _resolve_named(name: str, weights: Path | None, precision: str, allow_random: bool) -> TeacherSpec:
    if name.startswith(TIMM_PREFIX):
        definition = _timm_definition(name.removeprefix(TIMM_PREFIX))
    elif name in TEACHERS:
        definition = TEACHERS[name]
    elif name in ARCHITECTURES:
        raise BadInput(
            f"{name} is an architecture and not yet a teacher: take a published checkpoint of it in with "
            "`eupe-pipeline import-weights FILE --out RUN` (or train one), and give RUN as the teacher"
        )
    else:
        raise unknown_name("teacher", name, [*TEACHERS, *_OTHER_NAMES])
    path = weights or weights_in(weights_folder(), definition.weights_name)
    path = weights_in(path) if path.is_dir() else path
    architecture, stride_px, width = definition.architecture, definition.stride_px, definition.width
    at_random = allow_random and weights is None and not path.is_file()
    return _spec(
        name, architecture, path if at_random else _existing(path, name, definition.source), definition.preprocessing,
        cls=architecture["cls"], cls_dim=definition.cls_dim, width=width, stride_px=stride_px, precision=precision, at_random=at_random,
    )  # fmt: skip


def _resolve_hf(folder_or_repository: str, weights: Path | None, precision: str) -> TeacherSpec:
    if weights is not None:
        raise BadInput(f"the weights of a transformers model lie in its folder: give {HF_PREFIX}{weights.parent} instead of its --weights")
    from_hub = not Path(folder_or_repository).is_dir() and is_repository(folder_or_repository)
    folder = fetch_model(folder_or_repository, HF_RECORDS) if from_hub else Path(folder_or_repository)
    architecture, prep, path = inspect_hf(folder)
    width, cls = architecture["width"], architecture["cls"]
    name = folder_or_repository.partition("@")[0].rpartition("/")[2] if from_hub else folder.resolve().name
    return _spec(
        name, architecture, path, prep,
        cls=cls, cls_dim=None if cls == "none" else architecture.get("cls_width", width), width=width,
        stride_px=architecture["stride_px"], precision=precision,
    )  # fmt: skip


def _timm_definition(model: str) -> TeacherDefinition:
    inspected = inspect_timm(model)
    return timm_definition(inspected.architecture, inspected.preprocessing, inspected.cls_dim)


def _resolve_run(run: Path, weights: Path | None, precision: str) -> TeacherSpec:
    try:
        record: dict[str, Any] = json.loads((run / MODEL_FILE).read_text())
        architecture, size_px = canonical(record["architecture"]), as_size(record["size_px"])
        prep = Preprocessing.from_dict(record["preprocessing"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{run / MODEL_FILE} is not the record of a model: {error}") from error
    width, stride_px, cls = facts(architecture)
    path = _existing(weights or run / BACKBONE_FILE, str(run), "the run writes it when it finishes")
    name = run.resolve().name
    return _spec(
        name, architecture, path, replace(prep, size_px=size_px),
        cls=cls, cls_dim=cls_width(architecture), width=width, stride_px=stride_px, precision=precision,
    )  # fmt: skip


def _spec(
    name: str, architecture: Options, path: Path, prep: Preprocessing,
    *, cls: str, cls_dim: int | None, width: int, stride_px: int, precision: str, at_random: bool = False,
) -> TeacherSpec:  # fmt: skip
    height, width_px = size_hw(prep.size_px)
    if height % stride_px or width_px % stride_px:
        raise BadInput(f"teacher {name}: {size_text(prep.size_px)} px is not a multiple of its stride of {stride_px} px")
    if not at_random:
        check_format(path)
    grid = (height // stride_px, width_px // stride_px)
    return TeacherSpec(
        name, architecture, path, RANDOM_WEIGHTS if at_random else weights_sha256(path), prep, cls, cls_dim, width, grid, precision
    )  # fmt: skip


def _existing(path: Path, name: str, source: str) -> Path:
    if not path.is_file():
        raise BadInput(
            f"the weights of teacher {name} are missing: {path} is not a file. They are never replaced by random ones. "
            f"Put a safetensors file there, or one in parts with its NAME{INDEX_SUFFIX}, or name one with --weights {name}=PATH "
            f"(or ={HUB_PREFIX}OWNER/NAME@COMMIT). Source: {source}."
        )
    return path
