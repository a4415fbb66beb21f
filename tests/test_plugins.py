"""A package with a teacher, a student family and an export format, installed beside ours and used from the command line."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from eupe_pipeline.pipeline.commands.main import main
from eupe_pipeline.pipeline.console.doctor import plug_ins
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.student.export.contract import ExportContract, make_student
from eupe_pipeline.teachers.checkpoints.weights import save_weights
from eupe_pipeline.teachers.encoders.build import build_encoder, canonical, facts, try_sizes
from eupe_pipeline.teachers.registry.canary import canary_images
from eupe_pipeline.teachers.registry.contract import TeacherContract
from eupe_pipeline.teachers.registry.resolve import load_teacher, resolve_teacher
from eupe_pipeline.teachers.registry.table import terms_of
from eupe_pipeline.teachers.registry.teacher import Teacher

from .storage.core.test_plugins import install

ROWS = """
from functools import partial

import torch
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.student.export.formats import ExportFormat
from eupe_pipeline.student.export.runtimes import eager_runner
from eupe_pipeline.teachers.checkpoints.published import load_encoder
from eupe_pipeline.teachers.encoders.architectures import Facts
from eupe_pipeline.teachers.encoders.build import StudentFamily, options_over
from eupe_pipeline.teachers.encoders.encoder import Encoder
from eupe_pipeline.teachers.encoders.preprocessing import Preprocessing
from eupe_pipeline.teachers.encoders.tokens import Tokens
from eupe_pipeline.teachers.registry.table import TeacherDefinition, Terms

DEFAULTS = {"name": "grid", "width": 24, "patch_px": 8}


class GridEncoder(Encoder):
    def tokens(self, pixels_BCHW, grid):
        patch = self.backbone(pixels_BCHW).permute(0, 2, 3, 1)
        return Tokens(patch.amax(dim=(1, 2)), patch)


def check(full):
    if not isinstance(full["width"], int) or full["width"] < 1:
        raise BadInput(f"width is a count of channels, got {full['width']!r}")
    return full


def known(full):
    return Facts(full["width"], full["patch_px"], "attention pool")


def build(full):
    conv = torch.nn.Conv2d(3, full["width"], full["patch_px"], stride=full["patch_px"])
    return GridEncoder(conv, full, width=full["width"], stride_px=full["patch_px"], cls="attention pool", prep=Preprocessing(32))


def build_teacher(architecture):
    encoder = build({"width": 40, "patch_px": 16})
    encoder.architecture = architecture
    return encoder


def write(trained, folder):
    torch.save(trained.encoder.state_dict(), folder / "weights.pt")
    torch.save({"architecture": str(trained.architecture)}, folder / "more.pt")
    return ["weights.pt", "more.pt"], {"read back": "bitwise equal"}


def read(folder):
    import json

    architecture = json.loads((folder / "export.json").read_text())["architecture"]
    return eager_runner(load_encoder(architecture, torch.load(folder / "weights.pt", weights_only=True)))


STUDENT = StudentFamily(partial(options_over, DEFAULTS, check), known, build)
TEACHER = TeacherDefinition(
    {"name": "grid-teacher", "version": 1, "cls": "attention pool"}, build_teacher, Preprocessing(64), 40, 40, 16, "their-grid",
    "their page", Terms("Beer", False, "their page"),
)
FORMAT = ExportFormat("a state dict of theirs", write, read, "import torch")
"""


@pytest.fixture(scope="module", autouse=True)
def _theirs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    site = tmp_path_factory.mktemp("site")
    install(site / "t", "eupe_pipeline.teachers", {"their-grid": "grid_rows:TEACHER", "dinov2-g": "grid_rows:TEACHER"}, ROWS, "grid_rows")
    install(site / "s", "eupe_pipeline.students", {"grid": "grid_rows:STUDENT"}, name="grid_students")
    install(site / "e", "eupe_pipeline.exports", {"theirs": "grid_rows:FORMAT", "bad": "grid_rows:NOTHING"}, name="grid_exports")
    with pytest.MonkeyPatch.context() as patch:
        for part in "tse":
            patch.syspath_prepend(str(site / part))
        patch.setenv("EUPE_PIPELINE_HOME", str(site))
        yield
    sys.modules.pop("grid_rows", None)


class TestTheirTeacher(TeacherContract):
    def load(self) -> Teacher:
        return load_teacher(resolve_teacher("their-grid", allow_random_weights=True))


class TestTheirFormat(ExportContract):
    form = "theirs"


def test_their_teacher_is_resolved_by_name_with_weights_and_terms(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"weights of teacher their-grid are missing: .*their-grid\.safetensors .*Source: their page"):
        resolve_teacher("their-grid")
    state = load_teacher(resolve_teacher("their-grid", allow_random_weights=True)).encoder.state_dict()
    save_weights(state, tmp_path / "w.safetensors")
    spec = resolve_teacher("their-grid", weights=tmp_path / "w.safetensors", size_px=32)
    assert spec.identity()["architecture"] == {"name": "grid-teacher", "version": 1, "cls": "attention pool"}
    tokens = load_teacher(spec)(torch.from_numpy(canary_images(2, 32)))
    assert tokens.patch_BHWD.shape == (2, 2, 2, 40)
    assert terms_of("their-grid").licence == "Beer"


def test_their_name_in_place_of_ours_is_an_error_that_names_both(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["evaluate", "depth", "dinov2-g", "--data", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "ours (teachers/registry/table.py)" in said
    assert "the plug-in grid_rows 1.2 (grid_rows:TEACHER)" in said
    assert "Traceback" not in said


def test_their_student_is_checked_built_tried_and_trained_by_name(tiny_store: Any, tmp_path: Path, capsys: Any) -> None:
    assert canonical({"name": "grid", "width": 16}) == {"name": "grid", "width": 16, "patch_px": 8}
    assert facts("grid") == (24, 8, "attention pool")
    assert build_encoder("grid").width == 24
    try_sizes("grid", [32])
    with pytest.raises(BadInput, match="33"):
        try_sizes("grid", [33])
    with pytest.raises(BadInput, match="did you mean 'width'"):
        canonical({"name": "grid", "widht": 16})
    with pytest.raises(BadInput, match="width is a count of channels"):
        canonical({"name": "grid", "width": 0})
    with pytest.raises(BadInput, match=r"did you mean 'grid'\?"):
        canonical("gridd")
    small = [
        "student.architecture='grid'",
        "student.options={}",
        "student.sizes_px=[32]",
        "run.steps=2",
        "run.batch_size=4",
        "teacher.names=[]",
    ]
    settings = [word for one in small for word in ("--set", one)]
    command = [
        "train",
        "--store",
        tiny_store.store.url,
        "--data",
        "photos",
        "--features",
        "tiny-teacher",
        "--recipe",
        "demo",
        "--stage",
        "2",
    ]
    assert main([*command, *settings, "--out", str(tmp_path / "run"), "--json"]) == 0, capsys.readouterr().err
    assert load_teacher(resolve_teacher(str(tmp_path / "run"))).spec.patch_dim == 24
    assert main(["export", str(tmp_path / "run"), "--format", "theirs", "--out", str(tmp_path / "out"), "--json"]) == 0
    assert "a state dict of theirs" in (tmp_path / "out" / "theirs" / "README.md").read_text()
    assert json.loads((tmp_path / "out" / "theirs" / "export.json").read_text())["architecture"]["name"] == "grid"
    capsys.readouterr()
    assert main(["export", str(tmp_path / "run"), "--format", "timm", "--out", str(tmp_path / "out")]) == 2
    assert "timm holds students of the families vit, convnext, timm-student; this one is a grid" in capsys.readouterr().err
    assert not (tmp_path / "out" / "timm").exists()


def test_a_broken_format_is_named_and_hinders_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_student(tmp_path / "run", {"name": "vit-mini", "layer_scale": 1.0}, 32)
    assert main(["export", str(run), "--format", "bad", "--out", str(tmp_path / "out")]) == 2
    assert "the export format 'bad' cannot be loaded from the plug-in grid_exports 1.2 (grid_rows:NOTHING)" in capsys.readouterr().err
    assert main(["export", str(run), "--format", "theirs", "--out", str(tmp_path / "out")]) == 0
    assert main(["export", str(run), "--format", "nobodys", "--out", str(tmp_path / "out")]) == 2
    capsys.readouterr()
    assert main(["benchmark", "latency", str(tmp_path / "out"), "--runtime", "eager", "--calls", "1", "--warmup", "0"]) == 0


def test_the_doctor_says_what_is_installed_and_what_is_broken() -> None:
    found = plug_ins()
    assert found["eupe_pipeline.teachers"]["their-grid"] == "the plug-in grid_rows 1.2 (grid_rows:TEACHER)"
    assert "several rows" in found["eupe_pipeline.teachers"]["dinov2-g"]
    assert found["eupe_pipeline.students"]["grid"].startswith("the plug-in grid_students 1.2")
    assert found["eupe_pipeline.exports"]["bad"].startswith("unusable: ")
