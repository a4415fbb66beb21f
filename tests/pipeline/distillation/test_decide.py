"""Without a recipe every value is decided by rule, said with its reason, saved, and not decided again."""

import json
from pathlib import Path
from typing import Any

import pytest
from eupe_pipeline.pipeline.commands.main import main
from eupe_pipeline.pipeline.distillation import scaling
from eupe_pipeline.pipeline.recipes.load import load_recipe
from eupe_pipeline.storage.store import FeatureStore

from tests.conftest import make_teacher

from .conftest import Command


@pytest.fixture(autouse=True)
def runs_of_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rules as they are, but for how long a run at least is."""
    monkeypatch.setattr(scaling, "LEAST_STEPS", 8)
    monkeypatch.setattr(scaling, "_MOST_EPOCHS", 3.0)


def call(photos: Path, out: Path, *more: object) -> list[object]:
    return ["distill", photos, "--student", "vit-mini", "--out", out, "--workers", 0, "--export", "none", *more]


def test_one_teacher_teaches_the_student_directly_by_recipes_that_train_takes(
    photos: Path, teacher_run: Path, tmp_path: Path, command: Command
) -> None:
    out = tmp_path / "run"
    result = command(*call(photos, out, "--teacher", teacher_run))
    plan: dict[str, Any] = next(event for event in result["events"] if event["event"] == "plan")
    assert plan["stages"]["value"] == [2]
    file = out / "recipes" / "vit-mini.toml"
    assert result["recipes"] == {"vit-mini": str(file)}
    saved = load_recipe(str(file), stage=2)
    assert saved.recipe.run.steps == 8
    assert saved.recipe.student.sizes_px == (16,), "the teacher's grid of 2×2 in patches of 8 px"
    assert all(origin.startswith(("ours: ", "default", "file ")) for origin in saved.origins.values())
    shown = plan["decisions"]["vit-mini, stage 2"]
    assert shown["optimizer.learning_rate"]["value"] == saved.recipe.optimizer.learning_rate
    assert "√" in shown["optimizer.learning_rate"]["origin"]
    (key,) = result["feature_sets"]
    train = ["train", "--stage", "2", "--recipe", file, "--store", tmp_path / "store", "--data", "photos", "--features", key]
    planned = command(*train, "--out", tmp_path / "apart", "--dry-run")
    assert planned["recipe"]["optimizer.learning_rate"]["value"] == saved.recipe.optimizer.learning_rate

    assert result["agreement"]["vit-mini"]["stage2"]["model"] == str(out / "vit-mini" / "stage2" / "best")

    before = file.read_bytes()
    again = command(*call(photos, out, "--teacher", teacher_run))
    assert file.read_bytes() == before
    assert not [event for event in again["events"] if event["event"] == "step"]
    other = command(*call(photos, tmp_path / "other", "--teacher", teacher_run))
    assert other["feature_sets"].keys() == result["feature_sets"].keys(), "tokens that the store holds are taken as they are"
    assert "as the store holds them already" in str(next(event for event in other["events"] if event["event"] == "plan"))


def test_a_teacher_s_oblong_input_shapes_the_whole_distillation(
    photos: Path, test_photos: Path, teacher_run: Path, tmp_path: Path, command: Command
) -> None:
    asked = call(photos, tmp_path / "run", "--teacher", teacher_run, "--teacher-size", f"{teacher_run}=16x32", "--test", test_photos)
    result = command(*asked)
    (key,) = result["feature_sets"]
    reader = FeatureStore.open(str(tmp_path / "store")).features(key)
    assert (reader.input_px, reader.grid, reader.views.spec.ratio) == ((16, 32), (2, 4), (1.5, 2.66667))
    saved = load_recipe(str(tmp_path / "run" / "recipes" / "vit-mini.toml"), stage=2).recipe
    assert saved.student.sizes_px == ((16, 32),)
    assert json.loads((tmp_path / "run" / "vit-mini" / "stage2" / "model" / "model.json").read_text())["size_px"] == [16, 32]
    centre = {FeatureStore.open(str(tmp_path / "store")).view_set(one).spec for one in _view_sets(tmp_path)}
    assert {spec.crop_ratio for spec in centre if spec.kind == "center"} == {2.0}  # of teachers' kNN, cut as the student's is
    again = command(*asked)
    assert not [event for event in again["events"] if event["event"] == "step"]
    other = command(*call(photos, tmp_path / "other", "--teacher", teacher_run, "--teacher-size", f"{teacher_run}=16x32", "--dry-run"))
    assert "as the store holds them already" in str(next(event for event in other["events"] if event["event"] == "plan"))


def _view_sets(root: Path) -> list[str]:
    return FeatureStore.open(str(root / "store")).list_view_sets()


@pytest.mark.long
def test_several_teachers_teach_a_proxy_first_and_every_stage_has_its_recipe(
    photos: Path, teacher_run: Path, tmp_path: Path, command: Command
) -> None:
    second = tmp_path / "second"
    make_teacher(second, seed=2)
    result = command(*call(photos, tmp_path / "run", "--teacher", teacher_run, "--teacher", second, "--proxy", "convnext-mini"))
    plan: dict[str, Any] = next(event for event in result["events"] if event["event"] == "plan")
    assert plan["stages"]["value"] == [1, 2, 3]
    assert set(plan["training"]) == {"proxy, stage 1", "vit-mini, stage 2", "vit-mini, stage 3"}
    assert {key.split("@")[0] for key in result["feature_sets"]} == {"teacher", "second", "proxy"}
    proxy, student = (load_recipe(result["recipes"][name], stage=stage).recipe for name, stage in (("proxy", 1), ("vit-mini", 3)))
    assert proxy.student.architecture == "convnext-mini"
    assert student.teacher.source == "live"
    assert len(student.student.sizes_px) >= 2


def test_a_budget_is_kept_and_one_that_nothing_fits_says_the_least(
    photos: Path, teacher_run: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    result = command(*call(photos, tmp_path / "run", "--teacher", teacher_run, "--budget", "20kB"))
    notes = [event["text"] for event in result["events"] if event["event"] == "note"]
    assert [text.partition(":")[0] for text in notes if text.startswith(("chosen", "given up", "kept"))] == ["chosen", "given up", "kept"]
    plan: dict[str, Any] = next(event for event in result["events"] if event["event"] == "plan")
    assert 0 < plan["bytes"] <= 20_000
    words = [str(word) for word in call(photos, tmp_path / "small", "--teacher", teacher_run, "--store", tmp_path / "b", "--budget", "1kB")]
    assert main(words) == 2
    assert "the least that holds 40 photos is" in capsys.readouterr().err
    assert not list((tmp_path / "small").rglob("*.toml"))


def test_a_limit_that_was_refused_is_corrected_in_the_same_folder(
    photos: Path, teacher_run: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = [str(word) for word in call(photos, tmp_path / "run", "--teacher", teacher_run)]
    assert main([*base, "--budget", "1kB"]) == 2
    monkeypatch.setattr("eupe_pipeline.pipeline.distillation.plan.ASK_ABOVE_BYTES", 10)
    assert main([*base, "--budget", "1MB"]) == 2, "nobody answers"
    assert (tmp_path / "run" / "recipes" / "vit-mini.toml").is_file()
    result = command(*base, "--budget", "20kB", "--yes")
    assert next(event for event in result["events"] if event["event"] == "plan")["bytes"] <= 20_000
    assert main([*base, "--budget", "1MB", "--yes"]) == 2, "now there is something to protect"


def test_what_was_decided_is_recorded_with_its_reasons(photos: Path, teacher_run: Path, tmp_path: Path, command: Command) -> None:
    command(*call(photos, tmp_path / "run", "--teacher", teacher_run))
    record = json.loads((tmp_path / "run" / "distill.json").read_text())
    assert record["kept"]["caching"]["extract"]["teachers"] == [str(teacher_run)]
    assert record["kept"]["caching"]["view_reasons"]["views.views_per_image"].startswith("ours: ")
    assert len(record["versions"]) == 1
