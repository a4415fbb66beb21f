"""Every usage example runs as its reader would run it, and computes the student's own tokens: no random weights, no other pixels."""

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from eupe_pipeline.storage.views.input_size import size_hw
from eupe_pipeline.student.export.export import ExportOptions, export
from eupe_pipeline.student.export.formats import usage_example
from eupe_pipeline.student.export.lineage import open_trained
from eupe_pipeline.teachers.checkpoints.timm_folder import NAMES
from eupe_pipeline.teachers.encoders.build import canonical
from eupe_pipeline.teachers.encoders.preprocessing import HALF, Preprocessing
from eupe_pipeline.teachers.encoders.tokens import Tokens
from PIL import Image, ImageOps

from .test_export import make_run, needs_executorch

# The example as it stands, then its tokens: `tokens` is the official hub's dictionary, else they are called cls and patch.
RUN_AND_KEEP = """
import runpy, sys
from eupe_pipeline.teachers.runtime import torchvision_guard
from eupe_pipeline.storage.views.input_size import size_hw
torchvision_guard.install()
import numpy as np
found = runpy.run_path("usage.py")
tokens = found.get("tokens")
official = isinstance(tokens, dict)
cls, patch = (tokens["x_norm_clstoken"], tokens["x_norm_patchtokens"]) if official else (found["cls"], found["patch"])
np.savez(sys.argv[-1], cls=np.asarray(cls), patch=np.asarray(patch))
"""


def wide_picture(folder: Path) -> Path:
    """A smooth picture, wider than high and stored on its side, as phones do: whatever an example does to it is seen in the tokens."""
    down, across = np.meshgrid(np.linspace(0, 1, 90), np.linspace(0, 1, 160), indexing="ij")
    channels = [255 * across, 255 * down, 127 + 127 * np.sin(7 * across + 3 * down)]
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))
    upright.transpose(Image.Transpose.ROTATE_90).save(folder / "picture.png", exif=exif)
    return folder / "picture.png"


def run_example(folder: Path, *arguments: str) -> tuple[Tokens, str]:
    """The tokens that it computes, and what it prints."""
    picture, kept = wide_picture(folder.parent), folder.parent / "tokens.npz"
    command = [sys.executable, "-W", "ignore", "-c", RUN_AND_KEEP, str(picture), *arguments, str(kept)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    arrays = np.load(kept)
    return Tokens(torch.from_numpy(arrays["cls"]), torch.from_numpy(arrays["patch"])), done.stdout.splitlines()[-1]


def tokens_of_student(run: Path, picture: Path) -> Tokens:
    """By the preprocessing that the run recorded: the whole picture at the student's size."""
    trained = open_trained(run)
    prep = trained.preprocessing
    resized = ImageOps.exif_transpose(Image.open(picture)).resize(size_hw(prep.size_px)[::-1], Image.Resampling[prep.interpolation.upper()])
    with torch.no_grad():
        tokens: Tokens = trained.encoder(prep.apply(torch.from_numpy(np.array(resized))[None]))
    return tokens


def need_the_students_tokens(run: Path, folder: Path, *arguments: str, atol: float = 1e-4) -> None:
    (found, printed), wanted = run_example(folder, *arguments), tokens_of_student(run, folder.parent / "picture.png")
    assert wanted.cls_BD is not None
    assert found.cls_BD is not None
    assert printed == f"{tuple(found.cls_BD.shape)} {tuple(found.patch_BHWD.shape)}"
    wanted_patch = wanted.patch_BHWD
    patch = found.patch_BHWD.permute(0, 2, 3, 1) if found.patch_BHWD.shape[1] == wanted.cls_BD.shape[1] else found.patch_BHWD
    torch.testing.assert_close(found.cls_BD, wanted.cls_BD, atol=atol, rtol=0)
    torch.testing.assert_close(patch.reshape(wanted_patch.shape), wanted_patch, atol=atol, rtol=0)


def with_other_constants(run: Path) -> Path:
    """The run, whose student was trained at other constants than ImageNet's and by another interpolation."""
    record = json.loads((run / "model" / "model.json").read_text())
    record["preprocessing"] = Preprocessing(record["size_px"], "bilinear", HALF, (0.25, 0.5, 0.25)).identity()
    (run / "model" / "model.json").write_text(json.dumps(record))
    return run


@pytest.mark.parametrize(("form", "family"), [
    ("timm", "vit-mini"), pytest.param("timm", "convnext-mini", marks=pytest.mark.long), ("transformers", "vit-mini"), ("onnx", "vit-mini"),
    pytest.param("transformers", "convnext-mini", marks=pytest.mark.long), pytest.param("onnx", "convnext-mini", marks=pytest.mark.long),
    pytest.param("executorch", "vit-mini", marks=needs_executorch),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_an_example_computes_the_students_tokens_from_the_recorded_preprocessing(form: str, family: str, tmp_path: Path) -> None:
    run = with_other_constants(make_run(tmp_path / "run", {"name": family, "layer_scale": 1.0}, 64))
    export(ExportOptions(run, tmp_path / "out", (form,)))
    atol = 0.05 if form == "transformers" else 1e-4  # its processor rescales before it resizes: no rounding to bytes
    need_the_students_tokens(run, tmp_path / "out" / form, atol=atol)


@pytest.mark.long
@pytest.mark.parametrize("form", ["timm", *(pytest.param(form, marks=pytest.mark.long) for form in ("transformers", "onnx"))])
@pytest.mark.filterwarnings("ignore")
def test_an_example_of_a_student_without_registers_and_scales_is_right_as_well(form: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {"name": "vit-mini", "registers": 0, "layer_scale": None, "qkv_bias": False, "patch_px": 14}, 56)
    export(ExportOptions(run, tmp_path / "out", (form,)))
    need_the_students_tokens(run, tmp_path / "out" / form, atol=0.1 if form == "transformers" else 1e-4)


def official_clone(folder: Path) -> str:
    folder.mkdir()
    (folder / "hubconf.py").write_text((Path(__file__).parents[2] / "official_hub.py").read_text())
    return str(folder)


@pytest.mark.parametrize("name", ["eupe_vitt16", *(pytest.param(name, marks=pytest.mark.long) for name in NAMES if name != "eupe_vitt16")])
def test_the_official_hub_runs_the_trained_weights_and_not_random_ones(name: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {"name": name, "layer_scale": 1.0}, 64)
    export(ExportOptions(run, tmp_path / "out", ("eupe",)))
    need_the_students_tokens(run, tmp_path / "out" / "eupe", official_clone(tmp_path / "clone"))


@pytest.mark.parametrize("name", list(NAMES))
def test_every_official_example_names_the_file_and_asks_for_it(name: str) -> None:
    text = usage_example("eupe", name=name, file="w.pth", architecture=canonical(name), preprocessing=Preprocessing(64).identity())
    calls: list[Any] = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    (load,) = [call for call in calls if ast.unparse(call.func) == "torch.hub.load"]
    given = {keyword.arg: keyword.value.value for keyword in load.keywords}
    assert given == {"source": "local", "pretrained": True, "weights": "w.pth"}
