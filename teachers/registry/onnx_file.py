"""A teacher in an ONNX file: `FILE.onnx`, with `FILE.toml` beside it, which says what the graph's outputs are and what pixels it takes.

    name = "my-net"                  # of its feature sets; not a known teacher's
    size_px = 224
    stride_px = 16
    patch_output = "last_hidden_state"
    layout = "sequence"              # grid (B, H, W, D), the default; map (B, D, H, W); sequence (B, prefix + H·W, D)
    prefix_tokens = 1                # of a sequence
    cls = "class token"              # a kind of class token, or "none"
    cls_output = "pooler_output"     # left out: the first prefix token, or the mean for "mean of patch tokens"
    mean = [0.5, 0.5, 0.5]           # and std, interpolation, pixel_scale, channel_order: ImageNet's and bicubic unless said

What `export --format onnx` wrote needs no such file: its `export.json` says the same. The identity is the sha256 of the graph and of the
files with its weights, what is declared, and the widths that its tokens turn out to have; names of files are in no identity. Like other
weights, the file lies under the same path on every machine.
"""

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...storage.core.errors import BadInput, unknown_name
from ...storage.views.input_size import SizePx, size_json
from ..encoders.architectures import Options
from ..encoders.build import facts
from ..encoders.own_encoder import OwnEncoder, OwnTeacher
from ..encoders.preprocessing import Preprocessing
from ..runtime.onnx_graph import LAYOUTS, OnnxGraph, OnnxOutputs, onnx_sha256
from .own_tokens import measure
from .spec import TeacherSpec

ONNX_FILE = "onnx-file"  # `name` in the architecture's record
_NEEDED = ("name", "size_px", "stride_px", "cls", "patch_output")
_OUTPUTS = ("input", "patch_output", "cls_output", "layout", "prefix_tokens")
_PIXELS = ("mean", "std", "interpolation", "pixel_scale", "channel_order")
_EXAMPLE = 'name = "my-net", size_px = 224, stride_px = 16, patch_output = "patch", cls = "class token", cls_output = "cls"'


def names_onnx_file(name: str) -> bool:
    """Return whether a teacher's name is FILE.onnx."""
    return name.endswith(".onnx")


def resolve_onnx_file(name: str, weights: Path | None, *, size_px: SizePx | None, constants: str) -> TeacherSpec:
    """Load the graph, give it two pictures at the wanted size, and return the teacher that the tokens describe.

    Raise `BadInput` for a file or a declaration that is missing or does not fit, and for tokens of another shape, or that are no numbers.
    A graph computes in its own types, so that no precision is asked for.
    """
    path = Path(name).expanduser().absolute()
    if weights is not None:
        raise BadInput(f"the weights of {name} are in it and in the files beside it that it names; leave --weights out")
    sha256 = onnx_sha256(path)
    declared = _declared(path)
    architecture: Options = {
        "name": ONNX_FILE, "cls": declared["cls"], "width": 0, "stride_px": declared["stride_px"],
        **{key: declared.get(key) for key in _OUTPUTS}, "layout": declared.get("layout", "grid"),
        "prefix_tokens": declared.get("prefix_tokens", 0),
    }  # fmt: skip
    own, graph = _own(path, architecture, declared)
    measured = measure(name, own, size_px, constants, lambda error: f"{type(error).__name__}: {' '.join(str(error).split())[:400]}")
    architecture["width"] = measured.width
    if graph.has_fixed_sides:
        architecture["one_size_px"] = size_json(measured.preprocessing.size_px)
    return TeacherSpec(
        own.name, architecture, path, sha256, measured.preprocessing, own.cls, measured.cls_dim, measured.width,
        measured.grid,
    )  # fmt: skip


def load_onnx_file(spec: TeacherSpec) -> OwnEncoder:
    """Return the encoder of a resolved teacher; raise `BadInput` when the graph or its weights changed since."""
    if (sha256 := onnx_sha256(spec.weights_path)) != spec.weights_sha256:
        raise BadInput(
            f"{spec.weights_path} or its weights changed since the teacher {spec.name} was resolved: sha256 {sha256[:12]}…, expected "
            f"{spec.weights_sha256[:12]}…; resolve the teacher again, or put the former files back"
        )
    own, _ = _own(spec.weights_path, spec.architecture, {"name": spec.name, "size_px": spec.preprocessing.size_px})
    return OwnEncoder(own, spec.architecture, spec.patch_dim)


def recorded_onnx_file(path: Path, name: str, recorded: Mapping[str, Any]) -> TeacherSpec:
    """Return the teacher of a recorded identity from a file; raise `BadInput` unless it is the recorded one by its sha256.

    What was declared is in the identity, so the declaration beside the file is not asked again.
    """
    if (sha256 := onnx_sha256(path)) != recorded["weights_sha256"]:
        raise BadInput(
            f"{path} is not the teacher that was recorded: sha256 {sha256}, wanted {recorded['weights_sha256']}; put the former file back, "
            "or extract a new feature set with this one"
        )
    rows, columns = recorded["grid"]
    return TeacherSpec(
        name, recorded["architecture"], path, sha256, Preprocessing.from_dict(recorded["preprocessing"]), recorded["cls"],
        recorded["cls_dim"], recorded["patch_dim"], (rows, columns), recorded["precision"],
    )  # fmt: skip


def _own(path: Path, architecture: Mapping[str, Any], declared: Mapping[str, Any]) -> tuple[OwnTeacher, OnnxGraph]:
    outputs = OnnxOutputs(
        architecture["input"], architecture["patch_output"], architecture["cls_output"], architecture["layout"],
        architecture["prefix_tokens"],
    )  # fmt: skip
    stride_px, cls = architecture["stride_px"], architecture["cls"]
    graph = OnnxGraph(path, outputs, stride_px, cls)
    pixels = {key: declared[key] for key in _PIXELS if key in declared}
    return OwnTeacher(graph, name=declared["name"], size_px=declared["size_px"], stride_px=stride_px, cls=cls, **pixels), graph


def _declared(path: Path) -> dict[str, Any]:
    """Return what is declared of a graph, checked; raise `BadInput` where nothing is, or something that cannot be."""
    beside = path.with_suffix(".toml")
    declared = _read_toml(beside) if beside.is_file() else _of_export(path)
    if declared is None:
        raise BadInput(f"nothing says what the outputs of {path.name} are; write {beside} with {_EXAMPLE}")
    known = (*_NEEDED, *_OUTPUTS, *_PIXELS)
    for key in declared:
        if key not in known:
            raise unknown_name(f"key in {beside}", key, known)
    missing = [key for key in _NEEDED if key not in declared]
    if missing:
        raise BadInput(f"{beside} does not say {', '.join(missing)}; an example: {_EXAMPLE}")
    _check_types(beside, declared)
    return declared


def _check_types(beside: Path, declared: Mapping[str, Any]) -> None:
    texts = [key for key in ("name", "cls", "input", "patch_output", "cls_output") if not isinstance(declared.get(key, ""), str)]
    if texts:
        raise BadInput(f"{beside}: {texts[0]} is a text, got {declared[texts[0]]!r}")
    layout, prefix = declared.get("layout", "grid"), declared.get("prefix_tokens", 0)
    if layout not in LAYOUTS:
        raise unknown_name("layout", str(layout), LAYOUTS)
    if not isinstance(prefix, int) or isinstance(prefix, bool) or prefix < 0 or (prefix and layout != "sequence"):
        raise BadInput(f"{beside}: prefix_tokens counts tokens of a sequence, got {prefix!r} in a {layout}")
    made_here = declared["cls"] in ("none", "mean of patch tokens") or (declared["cls"] == "class token" and prefix)
    if "cls_output" not in declared and not made_here:
        raise BadInput(f'{beside}: cls is "{declared["cls"]}", so cls_output must name the output that gives it, or cls be "none"')
    if "cls_output" in declared and declared["cls"] == "none":
        raise BadInput(f'{beside}: cls is "none", and cls_output names one; leave one of them out')


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} is not a TOML file: {error}") from error


def _of_export(path: Path) -> dict[str, Any] | None:
    """Return what the record of an export says of its graph; None beside no such record."""
    try:
        record = json.loads((path.parent / "export.json").read_text())
        if record["format"] != "onnx" or path.name not in record["files"]:
            return None
        known, prep = facts(record["architecture"]), dict(record["preprocessing"])
        return {
            "name": str(record["student"]), "stride_px": known.stride_px, "cls": known.cls, "input": "pixels", "patch_output": "patch",
            "cls_output": "cls", "size_px": prep.pop("size_px"), **prep,
        }  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError):
        return None
