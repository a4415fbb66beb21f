"""Other backbones of timm trained: resumed bit-equal with their running statistics, through stage 3, as a teacher, in a moving average."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from eupe_pipeline.storage.core.errors import BadInput, CacheMismatch, Interrupted
from eupe_pipeline.student.export.export import ExportOptions, export
from eupe_pipeline.student.model.recipe import RunConfig, StudentConfig, TeacherConfig
from eupe_pipeline.student.training.checkpoint import list_checkpoints
from eupe_pipeline.student.training.learner import TrainingDiverged
from eupe_pipeline.teachers.registry.resolve import load_teacher, resolve_teacher
from safetensors.torch import load_file

from ..training_request import train
from .test_train import RECIPE, interrupt_after, losses

QUICK = "timm:mobilenetv4_conv_small_035"
FAMILIES = ("timm:repvit_m0_9", "timm:mobilenetv4_conv_small", "timm:fastvit_t8", "timm:resnet18", "timm:swin_tiny_patch4_window7_224")


def recipe(name: str, steps: int, **run: Any) -> Any:
    values = {"checkpoint_every": steps, "log_every": 1, **run}
    return replace(RECIPE, run=RunConfig(steps, 4, **values), student=StudentConfig(name, {}, (64,), ema=0.5))


def run(tiny: Any, out: Path, with_recipe: Any, **more: Any) -> dict[str, Any]:
    return train(with_recipe, tiny.store, ["tiny-teacher"], data="photos", out=out, **more)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def need_a_bit_equal_resume(tiny: Any, folder: Path, name: str, steps: int) -> None:
    """Stopped in the middle and gone on with: the same weights, statistics and averages, byte for byte."""
    run(tiny, folder / "whole", recipe(name, steps))
    with pytest.raises(Interrupted):
        run(tiny, folder / "cut", recipe(name, steps), on_event=interrupt_after(steps // 2))
    run(tiny, folder / "cut", recipe(name, steps))
    assert losses(folder / "cut") == losses(folder / "whole")
    for part in ("model", "average/model"):
        for file in ("backbone", "adapters"):
            assert sha256(folder / "cut" / part / f"{file}.safetensors") == sha256(folder / "whole" / part / f"{file}.safetensors")
    checkpoint = list_checkpoints(folder / "cut" / "checkpoints")[-1].name
    for file in ("model", "optimizer", "average"):
        assert sha256(folder / "cut/checkpoints" / checkpoint / f"{file}.safetensors") == sha256(
            folder / "whole/checkpoints" / checkpoint / f"{file}.safetensors"
        )


def need_stage_3_and_a_teacher(tiny: Any, folder: Path, name: str) -> None:
    third = replace(
        recipe(name, 2),
        stage=3,
        teacher=TeacherConfig("live", (16, 24)),
        student=StudentConfig(name, {}, (64, 96), init_from=str(folder / "cut")),
    )
    run(tiny, folder / "third", third, proxy=tiny.teacher_run)
    spec = resolve_teacher(str(folder / "third"), size_px=96)
    teacher = load_teacher(spec)
    pixels = torch.zeros(1, 96, 96, 3, dtype=torch.uint8)
    tokens = teacher(pixels)
    assert tokens.patch_BHWD.shape == (1, *spec.grid, spec.patch_dim)
    assert tokens.cls_BD is not None
    assert tokens.cls_BD.shape == (1, spec.cls_dim)
    beside_another = teacher(torch.cat([pixels, pixels + 200])).patch_BHWD[:1]  # in eval mode one picture has no part in another's tokens
    torch.testing.assert_close(beside_another, tokens.patch_BHWD, atol=1e-4, rtol=1e-4)


def test_a_student_with_batch_norm_resumes_bit_equal_goes_through_stage_3_and_teaches(tiny_store: Any, tmp_path: Path) -> None:
    need_a_bit_equal_resume(tiny_store, tmp_path, QUICK, 4)
    weights = load_file(tmp_path / "cut" / "model" / "backbone.safetensors")
    counted = {key: int(value) for key, value in weights.items() if key.endswith("num_batches_tracked")}
    assert set(counted.values()) == {4}
    means = {key: value for key, value in weights.items() if key.endswith("running_mean")}
    averages = load_file(tmp_path / "cut" / "average" / "model" / "backbone.safetensors")
    initial = load_file(tmp_path / "cut" / "initial" / "model" / "backbone.safetensors")
    assert means
    assert sum(not torch.equal(value, averages[key]) for key, value in means.items()) > len(means) / 2
    assert sum(not torch.equal(initial[key], averages[key]) for key in means) > len(means) / 2
    need_stage_3_and_a_teacher(tiny_store, tmp_path, QUICK)
    (tmp_path / "cut" / "summary.json").unlink()  # as if it had not finished
    with pytest.raises(CacheMismatch, match=r"batch_norm\.accumulate"):
        run(tiny_store, tmp_path / "cut", recipe(QUICK, 4, accumulate=2))


def test_a_step_that_diverges_leaves_the_running_statistics_of_the_step_before(
    tiny_store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from eupe_pipeline.student.training import learner

    whole, calls = vars(learner)["distillation_loss"], list[int]()

    def broken(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        loss, terms = whole(*arguments, **options)
        return (loss * float("nan") if len(calls) == 3 else loss), terms

    monkeypatch.setattr(learner, "distillation_loss", broken)
    with pytest.raises(TrainingDiverged):
        run(tiny_store, tmp_path / "run", recipe("timm:resnet10t", 4))
    monkeypatch.undo()
    run(tiny_store, tmp_path / "run", recipe("timm:resnet10t", 4))
    run(tiny_store, tmp_path / "whole", recipe("timm:resnet10t", 4))
    for part in ("model", "average/model"):
        assert sha256(tmp_path / "run" / part / "backbone.safetensors") == sha256(tmp_path / "whole" / part / "backbone.safetensors")


def test_parts_of_one_image_leave_no_folder(tiny_store: Any, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="parts of 1"):
        run(tiny_store, tmp_path / "run", recipe("timm:resnet10t", 4, accumulate=4))
    assert not (tmp_path / "run").exists()


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", FAMILIES)
def test_five_families_train_20_steps_resume_go_through_stage_3_and_are_exported(tiny_store: Any, tmp_path: Path, name: str) -> None:
    need_a_bit_equal_resume(tiny_store, tmp_path, name, 20)
    assert losses(tmp_path / "cut")[-1] < losses(tmp_path / "cut")[0]
    need_stage_3_and_a_teacher(tiny_store, tmp_path, name)
    written = export(ExportOptions(tmp_path / "third", tmp_path / "out", ("timm", "onnx")))["written"]
    assert all(value <= 1e-4 for value in written["onnx"]["max_abs_difference"].values()), written["onnx"]
