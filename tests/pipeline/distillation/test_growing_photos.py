"""A folder that grew: the teacher sees the new photos alone, a new student learns from all, the first one stays as it is."""

from pathlib import Path
from typing import Any

import pytest
from eupe_pipeline.jobs.extraction.batch_size import SizedTeacher
from eupe_pipeline.pipeline.distillation.figures import LIVE_BATCHES, LIVE_VIEWS
from eupe_pipeline.storage.core.identity import file_sha256
from eupe_pipeline.storage.store import FeatureStore

from .conftest import Command, write_photos

BACKBONE = Path("model") / "backbone.safetensors"


@pytest.fixture
def views_of_forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many views each forward of an extraction in this process had, statistics included, canaries not."""
    seen: list[int] = []
    forward = SizedTeacher._forward

    def counted(teacher: SizedTeacher, pixels: Any, *more: Any) -> Any:
        seen.append(len(pixels))
        return forward(teacher, pixels, *more)

    monkeypatch.setattr(SizedTeacher, "_forward", counted)
    return seen


def test_a_folder_that_grew_costs_the_teacher_the_new_photos_alone(
    cifar: list[tuple[str, bytes]], photos: Path, teacher_run: Path, recipe: Path, tmp_path: Path, command: Command,
    views_of_forwards: list[int],
) -> None:  # fmt: skip
    call = ["distill", photos, "--teacher", teacher_run, "--student", "vit-mini", "--recipe", recipe, "--out", tmp_path / "run"]
    call += ["--workers", 0, "--export", "none"]
    first = command(*call)
    trained = Path(first["students"]["vit-mini"]["stage2"]) / BACKBONE
    sha256 = file_sha256(trained)
    write_photos(photos, cifar[60:64], first=60)
    plan: dict[str, Any] = command(*call, "--dry-run")
    assert (plan["photos"], plan["extraction"]["teacher"]["views"], plan["extraction"]["teacher"]["missing"]) == (44, 88, 8)
    views_of_forwards.clear()
    grown = command(*call)
    assert views_of_forwards.count(LIVE_VIEWS) == 1 + LIVE_BATCHES, "what a live teacher would cost is measured on views of no photo"
    assert sum(views for views in views_of_forwards if views != LIVE_VIEWS) == 8, "4 new photos, two views each"
    assert grown["students"]["vit-mini"]["stage2"] == str(tmp_path / "run" / "vit-mini-v2" / "stage2")
    assert grown["dataset"] != first["dataset"]
    (key,) = grown["feature_sets"]
    assert FeatureStore.open(tmp_path / "store").features(key).rows == 88
    assert file_sha256(trained) == sha256
    assert set(grown["steps"]) >= {"train vit-mini, stage 2", "train vit-mini-v2, stage 2"}
    assert grown["steps"]["extract teachers"]["rows"] == 80 + 8
    assert set(grown["live"]) == {"vit-mini-v2, stage 2"}
    again = command(*call)
    assert not [event for event in again["events"] if event["event"] == "step"]
