"""`train --student timm:NAME` from the command line: a family of its own way trains; what cannot leaves a reason and no folder."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from eupe_pipeline.pipeline.commands.main import main
from eupe_pipeline.teachers.registry.resolve import load_teacher, resolve_teacher

Capture = pytest.CaptureFixture[str]


def command(tiny: Any, out: Path, sizes: str, *students: str) -> list[str]:
    settings = [f"student.sizes_px={sizes}", "adapter.width=8", "run.steps=2", "run.batch_size=4", "device=cpu", 'views.photometric="none"']
    words = [word for one in settings for word in ("--set", one)]
    named = [word for one in students for word in ("--student", one)]
    common = ["--store", tiny.store.url, "--data", "photos", "--features", "tiny-teacher", "--recipe", "1-2-3", "--stage", "2"]
    return ["train", *common, *words, *named, "--out", str(out), "--json"]


def test_a_distilled_deit_trains_and_becomes_a_teacher(tiny_store: Any, tmp_path: Path, capsys: Capture) -> None:
    assert main(command(tiny_store, tmp_path / "run", "[32]", "timm:deit_tiny_distilled_patch16_224")) == 0, capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["loss"] < 10
    tokens = load_teacher(resolve_teacher(str(tmp_path / "run"), size_px=48))(torch.zeros(1, 48, 48, 3, dtype=torch.uint8))
    assert tokens.patch_BHWD.shape == (1, 3, 3, 192)


@pytest.mark.parametrize(("sizes", "students", "why"), [
    ("[64, 80]", ["timm:vit_tiny_r_s16_p8_224"], "80×80 px is not a multiple of this encoder's 32 px stride"),
    ("[32]", ["vit-mini", "timm:inception_v4"], "has a grid of 8×8 at 320×320 px"),
    ("[30]", ["vit-mini"], "30×30 px is not a multiple"),
    ("[32]", ["timm:deit_tiny_patch16_224", "timm:deit_tiny"], "timm has no model 'deit_tiny'; near: deit_tiny_distilled"),
])  # fmt: skip
@pytest.mark.parametrize("dry", [False, True])
def test_a_student_that_cannot_be_trained_leaves_no_folder(
    tiny_store: Any, sizes: str, students: list[str], why: str, dry: bool, tmp_path: Path, capsys: Capture
) -> None:
    arguments = command(tiny_store, tmp_path / "run", sizes, *students)
    assert main([*arguments, "--dry-run"] if dry else arguments) == 2
    assert why in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
