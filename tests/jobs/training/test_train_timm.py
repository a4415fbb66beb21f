"""timm's own ViTs and ConvNeXts as students: trained, stopped, gone on with bit-equal, and then teachers like any run."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from eupe_pipeline.storage.core.errors import Interrupted
from eupe_pipeline.student.model.recipe import RunConfig, StudentConfig, TeacherConfig
from eupe_pipeline.teachers.registry.resolve import load_teacher, resolve_teacher

from ..training_request import train
from .test_train import RECIPE, interrupt_after, losses

NAMES = ("timm:test_vit", "timm:test_convnext")
SHORT = replace(RECIPE, run=RunConfig(4, 4, checkpoint_every=2, log_every=1), student=StudentConfig(NAMES[0], {}, (32,)))


def run(tiny: Any, out: Path, recipe: Any = SHORT, **more: Any) -> dict[str, Any]:
    return train(recipe, tiny.store, ["tiny-teacher"], data="photos", out=out, students=NAMES, **more)


def test_they_train_in_one_pass_resume_bit_equal_go_through_stage_3_and_become_teachers(tiny_store: Any, tmp_path: Path) -> None:
    run(tiny_store, tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(tiny_store, tmp_path / "cut", on_event=interrupt_after(3))
    run(tiny_store, tmp_path / "cut")
    third = StudentConfig(NAMES[0], {}, (32, 64), init_from=str(tmp_path / "cut"))
    run(tiny_store, tmp_path / "third", replace(SHORT, stage=3, student=third, teacher=TeacherConfig("live", (16, 24))),
        proxy=tiny_store.teacher_run)  # fmt: skip
    for name in NAMES:
        assert losses(tmp_path / "cut" / name) == losses(tmp_path / "whole" / name)
        spec = resolve_teacher(str(tmp_path / "third" / name), size_px=64)
        tokens = load_teacher(spec)(torch.zeros(1, 64, 64, 3, dtype=torch.uint8))
        assert tokens.patch_BHWD.shape == (1, *spec.grid, spec.patch_dim)
