"""Stage 3 of `distill` from a cache: planned, extracted at each size, trained to the live run's losses, gone on with after a stop."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from eupe_pipeline.jobs.extraction.options import TeacherRequest
from eupe_pipeline.pipeline.commands.main import main
from eupe_pipeline.pipeline.distillation import scaling
from eupe_pipeline.pipeline.distillation.distill import distill
from eupe_pipeline.pipeline.distillation.options import DistillOptions
from eupe_pipeline.storage.core.errors import Interrupted
from eupe_pipeline.storage.core.events import Event
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.student.training.run_folder import read_metrics

from tests.conftest import make_teacher

from .conftest import RECIPE, Command

STAGE3 = (
    RECIPE.replace("[extract]", '[extract]\ncodec = "fp32"').replace("views_per_image", "batch_size = 1\nviews_per_image")
    + """
[stage3]
precision = "fp32"
[stage3.student]
architecture = "vit-mini"
sizes_px = [16, 24]
[stage3.teacher]
source = "live"
sizes_px = [24, 16, 32]
[stage3.adapter]
width = 16
[stage3.run]
steps = 12
batch_size = 8
checkpoint_every = 6
log_every = 1
"""
)


@pytest.fixture
def recipe3(tmp_path: Path, teacher_run: Path) -> Path:
    path = tmp_path / "stage3.toml"
    path.write_text(STAGE3.replace('"teacher"', json.dumps(str(teacher_run))))
    return path


def losses(run: Path) -> list[float]:
    return [float(line["loss"]) for line in read_metrics(run)]


def rows(plan: dict[str, Any]) -> dict[str, int]:
    return {name: row["missing"] for name, row in plan["extraction"].items()}


def asked(photos: Path, teacher_run: Path, recipe3: Path, tmp_path: Path) -> list[object]:
    call = ["distill", photos, "--teacher", teacher_run, "--student", "vit-mini", "--recipe", recipe3, "--stages", "2,3"]
    return [*call, "--workers", 0, "--store", tmp_path / "store", "--export", "none"]


def test_a_stage_3_from_a_cache_is_planned_with_its_sets_and_beside_the_live_one(
    photos: Path, teacher_run: Path, recipe3: Path, tmp_path: Path, command: Command
) -> None:
    call = asked(photos, teacher_run, recipe3, tmp_path)
    cached = [*call, "--out", tmp_path / "cached", "--targets", "cached"]
    planned = command(*cached, "--dry-run")
    assert rows(planned) == {"teacher": 80, "teacher at 24 px": 80, "teacher at 32 px": 80}, "16 px are the set of stage 2"
    told = planned["stage 3's targets"]["vit-mini, stage 3"]
    assert told["chosen"] == "cached"
    assert told["cached"]["bytes"] == sum(planned["extraction"][f"teacher at {size} px"]["bytes"] for size in (24, 32))
    assert planned["bytes"] == planned["extraction"]["teacher"]["bytes"] + told["cached"]["bytes"]
    assert planned["training"]["vit-mini, stage 3"]["hours"] == pytest.approx(told["cached"]["training_hours"])
    plan = command(*call, "--out", tmp_path / "live", "--dry-run")
    assert rows(plan) == {"teacher": 80}
    assert plan["training"]["vit-mini, stage 3"]["hours"] == pytest.approx(
        plan["stage 3's targets"]["vit-mini, stage 3"]["live"]["training_hours"]
    )


@pytest.mark.long
def test_a_stage_3_from_a_cache_trains_as_the_live_one_and_goes_on_where_it_was_stopped(
    photos: Path, teacher_run: Path, recipe3: Path, tmp_path: Path, command: Command
) -> None:
    call = asked(photos, teacher_run, recipe3, tmp_path)
    cached = [*call, "--out", tmp_path / "cached", "--targets", "cached"]
    command(*call, "--out", tmp_path / "live")
    trained = False

    def stop(event: Event) -> None:
        nonlocal trained
        trained |= event["event"] == "step"
        if trained and event["event"] == "progress" and event["stage"].startswith("extract"):
            raise KeyboardInterrupt

    options = DistillOptions(
        str(photos), tmp_path / "cached", (TeacherRequest(str(teacher_run)),), ("vit-mini",), stages="2,3", store=str(tmp_path / "store"),
        recipe=str(recipe3), workers=0, exports=(), targets="cached",
    )  # fmt: skip
    with pytest.raises(Interrupted):
        distill(options, stop)
    half = command(*cached, "--dry-run")
    assert 0 < rows(half)["teacher at 24 px"] < 80 == rows(half)["teacher at 32 px"]
    result = command(*cached)
    assert not [event for event in result["events"] if event["event"] == "step" and event["stage"] == "vit-mini, stage 2"]
    runs = [tmp_path / name / "vit-mini" / "stage3" for name in ("cached", "live")]
    assert losses(runs[0]) == pytest.approx(losses(runs[1]), rel=1e-4)
    assert {line["sizes_px"]["teacher"] for line in read_metrics(runs[0])} == {16, 24, 32}
    assert len(result["feature_sets"]) == 3
    done = command(*cached, "--dry-run")
    assert (done["hours"], done["bytes"]) == (0, 0)
    assert "--targets cached" in result["commands"][-1]
    assert main([*shlex.split(result["commands"][-1])[1:], "--json"]) == 0, "the command that it is can be given by itself"


def test_a_grid_that_a_size_lacks_is_refused_before_the_first_forward(
    photos: Path, teacher_run: Path, recipe3: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["distill", photos, "--teacher", teacher_run, "--teacher-size", f"{teacher_run}=32", "--student", "vit-mini", "--stages", "2,3"]
    call += ["--recipe", recipe3, "--out", tmp_path / "run", "--workers", 0]
    recipe3.write_text(recipe3.read_text().replace("[extract]", "[extract]\ngrid = [3, 3]"))
    assert main([*map(str, call), "--targets", "cached"]) == 2
    assert "can be stored resampled to a smaller one, not to 3×3" in capsys.readouterr().err
    assert not list(tmp_path.rglob("shards"))


@pytest.mark.long
def test_by_rule_a_proxy_is_read_at_three_sizes_and_a_budget_counts_them(
    photos: Path, teacher_run: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scaling, "LEAST_STEPS", 8)
    monkeypatch.setattr(scaling, "_MOST_EPOCHS", 3.0)
    second = tmp_path / "second"
    make_teacher(second, seed=2)
    call = ["distill", photos, "--teacher", teacher_run, "--teacher", second, "--proxy", "vit-mini", "--student", "vit-mini"]
    call += ["--workers", 0, "--export", "none", "--targets", "cached"]
    plan = command(*call, "--out", tmp_path / "free", "--dry-run")
    of_proxy = [name for name in plan["extraction"] if name.startswith("proxy")]
    assert len(of_proxy) == 3
    limit = plan["bytes"] - 1000
    result = command(*call, "--out", tmp_path / "run", "--budget", f"{limit}B")
    limited = next(event for event in result["events"] if event["event"] == "plan")
    assert limited["bytes"] <= limit
    store = FeatureStore.open(str(tmp_path / "store"))
    assert sum(key.startswith("proxy@") for key in store.list_features()) == 3
    recipe = (tmp_path / "run" / "recipes" / "vit-mini.toml").read_text()
    assert 'source = "cached"' in recipe[recipe.index("[stage3.teacher]") :]
    done = command(*call, "--out", tmp_path / "run", "--budget", f"{limit}B", "--dry-run")
    assert (done["hours"], done["bytes"]) == (0, 0)
