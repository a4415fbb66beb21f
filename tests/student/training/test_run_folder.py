"""A run's folder: metrics without repeats, models that load back strictly, mismatches named."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from eupe_pipeline.storage.core.errors import BadInput, CacheDamaged, CacheMismatch
from eupe_pipeline.student.model.recipe import StudentConfig, TrainRecipe
from eupe_pipeline.student.model.student import Student, TargetSpec
from eupe_pipeline.student.training.run_folder import Metrics, RunFolder, load_model, read_metrics, save_model
from eupe_pipeline.teachers.encoders.build import build_encoder
from eupe_pipeline.teachers.registry.resolve import load_teacher, resolve_teacher

SPECS = {"dots.in.name": TargetSpec(6, 10, (2, 2))}


def student(seed: int = 0, **options: object) -> Student:
    torch.manual_seed(seed)
    return Student(build_encoder({"name": "vit-mini", **options}), 16, SPECS)


def test_lines_after_the_resumed_step_are_dropped(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, 0)
    for step in (1, 2, 3, 4):
        metrics.write({"step": step, "loss": 1.0 / step, "losses": {"t": {"cls": 0.5}}})
    metrics.close()
    resumed = Metrics(tmp_path, 2)
    resumed.write({"step": 3, "loss": 9.0})
    resumed.close()
    assert [(line["step"], line["loss"]) for line in read_metrics(tmp_path)] == [(1, 1.0), (2, 0.5), (3, 9.0)]


def test_a_last_line_cut_by_a_crash_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 2.0}]


def test_a_saved_model_is_a_teacher_with_the_same_outputs(tmp_path: Path) -> None:
    one = student().eval()
    save_model(one, tmp_path / "run" / "model", size_px=24, targets={"dots.in.name": "abc"})
    teacher = load_teacher(resolve_teacher(str(tmp_path / "run")))
    pixels = torch.randint(0, 256, (2, 24, 24, 3), dtype=torch.uint8)
    with torch.no_grad():
        expected = one.encoder(one.encoder.preprocessing.apply(pixels))
    found = teacher(pixels)
    assert teacher.spec.preprocessing.size_px == 24
    torch.testing.assert_close(found.cls_BD, expected.cls_BD)
    torch.testing.assert_close(found.patch_BHWD, expected.patch_BHWD)


def test_a_model_loads_back_with_its_adapters(tmp_path: Path) -> None:
    one, other = student(0), student(1)
    save_model(one, tmp_path / "run" / "model", size_px=24, targets={"dots.in.name": "abc"})
    load_model(other, tmp_path / "run", {"dots.in.name": "abc"})
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_adapters_for_other_statistics_are_refused(tmp_path: Path) -> None:
    save_model(student(), tmp_path / "run" / "model", size_px=24, targets={"dots.in.name": "abc"})
    with pytest.raises(CacheMismatch, match=r"statistics: got 'xyz', wanted 'abc'"):
        load_model(student(), tmp_path / "run", {"dots.in.name": "xyz"})


def test_another_architecture_is_refused_by_field(tmp_path: Path) -> None:
    save_model(student(), tmp_path / "run" / "model", size_px=24, targets={})
    with pytest.raises(CacheMismatch, match=r"architecture\.depth: got 1, wanted 2"):
        load_model(student(depth=1), tmp_path / "run", {})


def test_a_run_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="finish that run first"):
        load_model(student(), tmp_path, {})


def test_a_damaged_model_is_refused(tmp_path: Path) -> None:
    save_model(student(), tmp_path / "run" / "model", size_px=24, targets={})
    file = tmp_path / "run" / "model" / "adapters.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(CacheDamaged, match="cannot be loaded"):
        load_model(student(), tmp_path / "run", {})


def test_recipe_and_identities_are_recorded_with_origins(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.begin(TrainRecipe(), {"seed": "default"}, {"targets": {"t": "a@1"}})
    folder.begin(TrainRecipe(), {"seed": "default"}, {"targets": {"t": "a@1"}})
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["origins"] == {"seed": "default"}
    (folder.checkpoints / "step-0000001").mkdir(parents=True)
    with pytest.raises(CacheMismatch, match=r"targets\.t: got 'a@2', wanted 'a@1'"):
        folder.begin(TrainRecipe(), {}, {"targets": {"t": "a@2"}})


def test_a_run_that_was_refused_before_its_first_step_is_begun_anew(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.begin(TrainRecipe(seed=1), {}, {"targets": {"t": "a@1"}})
    save_model(student(), folder.initial, size_px=16, targets={})
    folder.begin(TrainRecipe(seed=2), {}, {"targets": {"t": "a@2"}})
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["recipe"]["seed"] == 2
    assert not folder.initial.exists()


def test_a_run_is_finished_when_its_summary_stands(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.finished() is None
    folder.finish({"steps": 3})
    assert folder.finished() == {"steps": 3}


def test_a_run_that_never_took_a_step_gives_way_to_the_corrected_one(tmp_path: Path) -> None:
    folder, mistyped = RunFolder(tmp_path / "run"), replace(TrainRecipe(), student=StudentConfig("eupe_vitt1"))
    folder.begin(mistyped, {}, {"targets": 1})
    (folder.initial).mkdir(parents=True)
    folder.begin(TrainRecipe(), {}, {"targets": 2})
    assert not folder.initial.exists()
    assert json.loads((folder.out / "recipe.json").read_text())["recipe"]["student"]["architecture"] == "eupe_vitt16"
    metrics = Metrics(folder.out, 0)
    metrics.write({"step": 1, "loss": 1.0})
    metrics.close()
    with pytest.raises(CacheMismatch, match=r"student\.architecture: got 'eupe_vitt1', wanted 'eupe_vitt16'"):
        folder.begin(mistyped, {}, {"targets": 2})
    with pytest.raises(CacheMismatch, match="learns from something else: targets: got 1, wanted 2"):
        folder.begin(TrainRecipe(), {}, {"targets": 1})
