"""The formats that a student is exported in: one row for each, with how it is written, read back, run, timed and used.

To add a format is to add its name to `storage.core.choices.EXPORT_FORMATS` and its row here, or an entry point. A writer runs
what it wrote, or loads it with the library that it is for, before it returns.
The usage examples are ten-line programs, which tests run. Each takes the path of a picture, turns it upright as `index` does, resizes the
whole of it to the student's size and prints the shapes of its tokens; that of the official hub takes the path of a clone.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from string import Template
from typing import Any, Literal

import torch

from ...storage.core.choices import GRAPH_EXPORTS, GRAPH_PRECISIONS, GRAPH_TARGETS, GraphPrecision
from ...storage.core.errors import BadInput, unknown_name
from ...storage.core.identity import file_sha256
from ...storage.core.plugins import Table
from ...storage.views.input_size import as_size, size_hw
from ...teachers.checkpoints.official import from_official, to_official
from ...teachers.checkpoints.published import TOLERANCE, load_encoder, read_published
from ...teachers.encoders.architectures import TIMM_STUDENT
from ..edge.choice import GraphChoice
from ..heads.modules import KINDS
from .lineage import Trained
from .runtimes import Runner, coreml_runner, eager_runner, executorch_runner, litert_runner, onnx_runner, openvino_runner

_HASH_DIGITS = 8  # torch.hub's convention: the digits in a file's name are checked, and keep its cache from serving an older file
Written = tuple[list[str], dict[str, Any]]
"""The files of the model, the one that a usage example names first, and facts for export.json and the model card."""


@dataclass(frozen=True)
class ExportFormat:
    """A row of the table."""

    title: str
    """What the folder holds, for the model card's first line: "a folder that timm loads"."""
    write: Callable[[Trained, Path], Written]
    """Write a student into a folder and check it; raises `BadInput` for one that the format cannot hold, and without its library."""
    read: Callable[[Path], Runner]
    """Folder → its tokens of normalised float pixels (B, 3, h, w)."""
    usage: str
    """A `string.Template` of the usage example; see `usage_example` for what it may name."""
    families: tuple[str, ...] | None = None
    """Student families that it can hold; None: any that can be traced."""
    official_only: bool = False
    """Whether it holds the official hub's six shapes alone."""
    tolerance: float = 0.0
    """Largest absolute difference of what `read` gives to the student's tokens."""
    extra: str | None = None
    """What `pip install 'eupe-pipeline[EXTRA]'` brings for it; None: nothing more is needed."""
    evaluated_from: Literal["file", "folder"] | None = None
    """What `evaluate` reads of an export: its first file, or its folder; None: it is not evaluated."""
    runtimes: Mapping[str, tuple[str, Callable[[Path, int], Runner]]] = field(default_factory=dict)
    """What `benchmark latency` times: runtime → (file in the folder, how it is opened with a number of threads)."""
    takes: tuple[str, ...] = ()
    """Fields of `GraphChoice` that it can be asked for."""
    heads: bool = False
    """Whether it takes heads along (`heads.documents` has a usage example for it)."""
    chosen: Callable[[GraphChoice], "ExportFormat"] | None = None
    """Its row for a choice that is not the default; raises `BadInput` for one that it has not. None where it takes none."""


def _eupe(trained: Trained, folder: Path) -> Written:
    name = trained.hub_name
    assert name is not None  # `official_only`
    tensors = trained.encoder.state_dict()
    official = to_official(tensors, trained.architecture)
    back = from_official(official).tensors
    assert all(torch.equal(back[key], tensors[key]) for key in tensors)
    torch.save(official, folder / "weights.pth")
    file = f"{name}-{file_sha256(folder / 'weights.pth')[:_HASH_DIGITS]}.pth"
    (folder / "weights.pth").rename(folder / file)
    return [file], {"tensors": len(official), "read back": "bitwise equal"}


def _timm(trained: Trained, folder: Path) -> Written:
    from ...teachers.checkpoints.timm_folder import write_timm
    from ...teachers.checkpoints.timm_student_folder import write_timm_student

    write = write_timm_student if trained.architecture["name"] == TIMM_STUDENT else write_timm
    write(trained.encoder.state_dict(), trained.architecture, trained.preprocessing, folder)
    return ["model.safetensors", "config.json"], _read_back(trained, folder)


def _transformers(trained: Trained, folder: Path) -> Written:
    if trained.heads:
        return _headed_transformers(trained, folder)
    from ...teachers.checkpoints.transformers_folder import write_transformers

    write_transformers(trained.encoder.state_dict(), trained.architecture, trained.preprocessing, folder)
    return ["model.safetensors", "config.json", "preprocessor_config.json"], _read_back(trained, folder)


def _headed_transformers(trained: Trained, folder: Path) -> Written:
    """Write student and heads as one folder with code of its own, and compare what `AutoModel` computes from it."""
    from ..heads.automodel import run_folder, write_headed
    from .graphs import compare_folder, refuse_other_sizes

    refuse_other_sizes([one for one in trained.heads if KINDS[one.kept.kind].one_size], size_px := trained.preprocessing.size_px)
    files = write_headed(trained.encoder.state_dict(), trained.architecture, trained.preprocessing, trained.heads, folder)
    return files, compare_folder(trained.encoder, size_px, trained.heads, partial(run_folder, folder))


def _read_back(trained: Trained, folder: Path) -> dict[str, Any]:
    """Load the folder with its own library, which also compares its tokens with ours, and compare the tensors."""
    read, ours = read_published(folder).tensors, trained.encoder.state_dict()
    assert all(torch.equal(read[name], ours[name]) for name in ours)
    return {"read back": "bitwise equal", "tokens": f"the library's differ by at most {TOLERANCE:g}"}


def _onnx(trained: Trained, folder: Path) -> Written:
    from .graphs import write_onnx

    return ["student.onnx"], write_onnx(trained.encoder, trained.preprocessing.size_px, folder / "student.onnx", trained.heads)


def _onnx_edge(choice: GraphChoice, trained: Trained, folder: Path) -> Written:
    from .graphs import write_edge_onnx

    size_px = trained.preprocessing.size_px
    return ["student.onnx"], write_edge_onnx(trained.encoder, size_px, folder / "student.onnx", choice, trained.heads)


def _onnx_int8(choice: GraphChoice, trained: Trained, folder: Path) -> Written:
    from .graphs import write_int8_onnx

    return ["student.onnx"], write_int8_onnx(trained, folder / "student.onnx", choice)


def _chosen_onnx(choice: GraphChoice) -> ExportFormat:
    """Return the row of an ONNX graph of one shape."""
    if choice.target != "edge":
        raise BadInput(f"an open ONNX graph takes any batch and is fp32; with --target edge it is written for {_words(choice)}")
    other = choice.precision if choice.precision != "fp32" else None
    runtime = f"edge{f' {other}' if other else ''}"
    return replace(
        ROWS["onnx"],
        title=f"an ONNX graph of one shape for edge devices{f', in {other}' if other else ''}",
        write=partial(_onnx_int8 if other == "int8" else _onnx_edge, choice),
        tolerance=TOLERANCES[choice.precision],
        runtimes={
            f"onnxruntime {runtime}": ("student.onnx", onnx_runner),
            f"openvino {runtime}": ("student.onnx", openvino_runner),
        },
    )


TOLERANCES: dict[GraphPrecision, float] = {"fp32": 1e-3, "fp16": 0.1, "int8": 1.0}
"""Of tokens of a graph of one shape; int8 is held to a cosine instead (`quantised.agreement`)."""


def _words(choice: GraphChoice) -> str:
    return ", ".join(f"{name} {value}" for name, value in choice.asked().items())


def _executorch(trained: Trained, folder: Path) -> Written:
    from .graphs import write_executorch

    files = {False: "student-fp32.pte", True: "student-int8.pte"}
    size_px = trained.preprocessing.size_px
    write = partial(write_executorch, trained.encoder, size_px, heads=trained.heads)
    facts = {file: write(folder / file, int8=int8) for int8, file in files.items()}
    return list(files.values()), {"input": "1x3x{}x{}".format(*size_hw(size_px)), **facts}


def _executorch_int8(trained: Trained, folder: Path) -> Written:
    from .graphs import write_int8_executorch

    return ["student-int8-static.pte"], write_int8_executorch(trained, folder / "student-int8-static.pte")


def _chosen_executorch(choice: GraphChoice) -> ExportFormat:
    """Return the row of a program in int8 by fixed ranges."""
    if choice.precision != "int8":
        raise BadInput(f"ExecuTorch programs for XNNPACK are fp32 and int8, got --precision {choice.precision}")
    file = "student-int8-static.pte"
    return replace(
        ROWS["executorch"], title="an ExecuTorch program for XNNPACK, in int8 by fixed ranges", write=_executorch_int8,
        read=lambda folder: executorch_runner(folder / file), tolerance=TOLERANCES["int8"],
        runtimes={"executorch int8 static": (file, executorch_runner)},
    )  # fmt: skip


def _coreml(choice: GraphChoice, trained: Trained, folder: Path) -> Written:
    from .graphs import write_coreml_package

    package = folder / "student.mlpackage"
    facts = write_coreml_package(trained.encoder, trained.preprocessing.size_px, package, choice)
    return sorted(path.relative_to(folder).as_posix() for path in package.rglob("*") if path.is_file()), facts


def _chosen_coreml(choice: GraphChoice) -> ExportFormat:
    """Return the row of a Core ML package of some pictures at once, or in fp16."""
    if choice.precision == "int8":
        raise BadInput("a Core ML package is fp32 or fp16 here; --precision int8 is of onnx (with --target edge) and executorch")
    half = choice.precision == "fp16"
    return replace(
        ROWS["coreml"], title=f"a Core ML package{', in fp16' if half else ''}", write=partial(_coreml, choice),
        tolerance=0.1 if half else 1e-3, runtimes={f"Core ML{' fp16' if half else ''}": ("student.mlpackage", coreml_runner)},
    )  # fmt: skip


def _litert(choice: GraphChoice, trained: Trained, folder: Path) -> Written:
    from .graphs import write_litert_program

    return ["student.tflite"], write_litert_program(trained.encoder, trained.preprocessing.size_px, folder / "student.tflite", choice)


def _from_file(folder: Path) -> Runner:
    return _of_published(next(folder.glob("*.pth")))


def _of_published(source: Path) -> Runner:
    published = read_published(source)
    return eager_runner(load_encoder(published.architecture, published.tensors))


_PIXELS = """\
picture = ImageOps.exif_transpose(Image.open(sys.argv[1])).convert("RGB").resize(($width, $height), Image.Resampling.$resample)
pixels = (np.asarray(picture, np.float32) / 255 - np.float32($mean)) / np.float32($std)
"""

_EUPE = """\
import sys
import numpy as np
import torch
from PIL import Image, ImageOps
""" + _PIXELS + """\
# argv[2]: a clone of facebookresearch/EUPE, whose entry for ViT-T leaves the weights random unless `pretrained` is said
model = torch.hub.load(sys.argv[2], "$name", source="local", pretrained=True, weights="$file").eval()
with torch.no_grad():
    tokens = model.forward_features(torch.from_numpy(pixels).permute(2, 0, 1)[None])
print(tuple(tokens["x_norm_clstoken"].shape), tuple(tokens["x_norm_patchtokens"].shape))
"""  # fmt: skip

_TIMM = """\
import sys
import timm
import torch
from PIL import Image, ImageOps
model = timm.create_model("local-dir:.", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
pixels = transform(ImageOps.exif_transpose(Image.open(sys.argv[1])).convert("RGB"))[None]
with torch.no_grad():
    $tokens
print(tuple(cls.shape), tuple(patch.shape))
"""

_TRANSFORMERS = """\
import sys
import torch
from PIL import Image, ImageOps
from transformers import AutoImageProcessor, AutoModel
processor, model = AutoImageProcessor.from_pretrained("."), AutoModel.from_pretrained(".").eval()
with torch.no_grad():
    tokens = model(**processor(ImageOps.exif_transpose(Image.open(sys.argv[1])).convert("RGB"), return_tensors="pt")).last_hidden_state
cls, patch = tokens[:, 0], tokens[:, $prefix:]
print(tuple(cls.shape), tuple(patch.shape))
"""

_ONNX = """\
import sys
import numpy as np
import onnxruntime
from PIL import Image, ImageOps
""" + _PIXELS + """\
session = onnxruntime.InferenceSession("$file", providers=["CPUExecutionProvider"])
cls, patch = session.run(["cls", "patch"], {"pixels": pixels.transpose(2, 0, 1)[None]$batch})
print(cls.shape, patch.shape)
"""  # fmt: skip

_EXECUTORCH = """\
import sys
import numpy as np
import torch
from executorch.runtime import Runtime
from PIL import Image, ImageOps
""" + _PIXELS + """\
program = Runtime.get().load_program("$file")
cls, patch = program.load_method("forward").execute([torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous()])
print(tuple(cls.shape), tuple(patch.shape))
"""  # fmt: skip
_COREML = """\
import sys
import coremltools
import numpy as np
from PIL import Image, ImageOps
""" + _PIXELS + """\
found = coremltools.models.MLModel("student.mlpackage").predict({"pixels": pixels.transpose(2, 0, 1)[None]$batch})
cls, patch = found["cls"], found["patch"]
print(cls.shape, patch.shape)
"""  # fmt: skip

_LITERT = """\
import sys
import numpy as np
from ai_edge_litert.interpreter import Interpreter
from PIL import Image, ImageOps
""" + _PIXELS + """\
found = Interpreter("$file").get_signature_runner()(pixels=pixels.transpose(2, 0, 1)[None]$batch)
cls, patch = found["cls"], found["patch"]
print(cls.shape, patch.shape)
"""  # fmt: skip
_TIMM_TOKENS = {
    "vit": "cls, patch = model(pixels), model.forward_features(pixels)[:, model.num_prefix_tokens :]",
    "convnext": "cls, patch = model(pixels), model.head.norm(model.forward_features(pixels))",
}

_OURS = ("vit", "convnext")

ROWS: dict[str, ExportFormat] = {
    "eupe": ExportFormat(
        "a state dict with the official EUPE hub's names", _eupe, _from_file, _EUPE, _OURS, evaluated_from="file", official_only=True
    ),
    "timm": ExportFormat("a folder that timm loads", _timm, _of_published, _TIMM, (*_OURS, TIMM_STUDENT), evaluated_from="folder"),
    "transformers": ExportFormat(
        "a folder that transformers loads", _transformers, _of_published, _TRANSFORMERS, _OURS, evaluated_from="folder", heads=True
    ),
    "onnx": ExportFormat(
        "an ONNX graph", _onnx, lambda folder: onnx_runner(folder / "student.onnx"), _ONNX, tolerance=1e-3, extra="export",
        runtimes={"onnxruntime": ("student.onnx", onnx_runner)}, takes=("target", "precision", "batch"), chosen=_chosen_onnx, heads=True,
    ),
    "executorch": ExportFormat(
        "ExecuTorch programs for XNNPACK", _executorch, lambda folder: executorch_runner(folder / "student-fp32.pte"), _EXECUTORCH,
        tolerance=1e-3, extra="executorch", heads=True,
        runtimes={
            "executorch fp32": ("student-fp32.pte", executorch_runner),
            "executorch int8": ("student-int8.pte", executorch_runner),
        },
        takes=("precision",), chosen=_chosen_executorch,
    ),
    "coreml": ExportFormat(
        "a Core ML package", partial(_coreml, GraphChoice()), lambda folder: coreml_runner(folder / "student.mlpackage"), _COREML,
        tolerance=1e-3, extra="coreml", runtimes={"Core ML": ("student.mlpackage", coreml_runner)}, takes=("precision", "batch"),
        chosen=_chosen_coreml,
    ),
    "litert": ExportFormat(
        "a LiteRT program", partial(_litert, GraphChoice()), lambda folder: litert_runner(folder / "student.tflite"), _LITERT,
        tolerance=1e-3, extra="litert", runtimes={"LiteRT": ("student.tflite", litert_runner)}, takes=("batch",),
        chosen=lambda choice: replace(ROWS["litert"], write=partial(_litert, choice)),
    ),
}  # fmt: skip
FORMATS = Table("export format", "eupe_pipeline.exports", ExportFormat, ROWS, "ours (student/export/formats.py)")
"""Ours and the plug-ins', by name."""


def row_of(form: str, choice: GraphChoice = GraphChoice()) -> ExportFormat:  # noqa: B008 - frozen
    """Return the row that writes a format as far as it takes a choice; raises `BadInput` for a choice that it has not."""
    row = FORMATS[form]
    taken = choice.of(row.takes)
    return row if row.chosen is None or not taken.asked() else row.chosen(taken)


def named(name: str) -> tuple[str, GraphChoice]:
    """Return format and choice of an export by its folder's name, such as "timm" or "onnx-edge-fp16"; raises `BadInput` for no such."""
    if name in FORMATS:
        return name, GraphChoice()
    forms = [form for form in FORMATS if name.startswith(f"{form}-")]
    graphs = {choice.folder(form): (form, choice) for form in forms for choice in choices_of(form)}
    if name not in graphs:
        raise unknown_name("export format", name, [*FORMATS, *GRAPH_EXPORTS])
    return graphs[name]


def choices_of(form: str) -> list[GraphChoice]:
    """Return the choices whose graphs lie in folders of their own, the default first."""
    row, choices = FORMATS[form], list[GraphChoice]()
    for choice in (GraphChoice(target, precision) for target in GRAPH_TARGETS for precision in GRAPH_PRECISIONS):
        with suppress(BadInput):
            row_of(form, choice)
            choices += [choice] if choice == choice.of(row.takes) else []
    return choices


def usage_example(
    form: str, *, name: str, file: str, architecture: dict[str, Any], preprocessing: dict[str, Any],
    choice: GraphChoice = GraphChoice(),  # noqa: B008 - frozen
) -> str:  # fmt: skip
    """Return the program for a format's folder; `name` is the official hub's, `file` the weights beside it."""
    height, width = size_hw(as_size(preprocessing["size_px"]))
    return Template(row_of(form, choice).usage).substitute(
        name=name, file=file, width=width, height=height, resample=preprocessing["interpolation"].upper(),
        mean=preprocessing["mean"], std=preprocessing["std"], tokens=_timm_tokens(architecture),
        batch=f".repeat({choice.batch}, 0)" if choice.batch > 1 else "", prefix=1 + architecture.get("registers", 0),
    )  # fmt: skip


def _timm_tokens(architecture: dict[str, Any]) -> str:
    """Return the lines of timm's example that make the tokens; "" for a family that timm has not."""
    if architecture["name"] != TIMM_STUDENT:
        return _TIMM_TOKENS.get(architecture["name"], "")
    from ...teachers.checkpoints.timm_student_folder import timm_usage

    return timm_usage(architecture)
