"""A store, a teacher and two runs that were written before the folders had wings: they open, verify, resume and export as they did.

Written on 2026-11-28 by the code of then (class tokens and int8 patch tokens, views with stored pixels, a run stopped after 3 of 6 steps,
the same run trained to its end). They are never written anew: what they hold is what users' stores and runs of that day hold.
"""

import json
import shutil
from pathlib import Path

import pytest
from eupe_pipeline.jobs.extraction.options import TeacherRequest
from eupe_pipeline.jobs.repair.repair import FidelityOptions, fidelity
from eupe_pipeline.pipeline.reports.catalog import verify_features
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.core.events import ignore_event
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.student.export.export import ExportOptions, export
from eupe_pipeline.student.model.recipe import AdapterConfig, OptimizerConfig, RunConfig, StudentConfig, TrainRecipe
from eupe_pipeline.student.training.run_folder import read_metrics

from .jobs.training_request import train

KEPT = Path(__file__).parent / "data" / "kept"
RECIPE = TrainRecipe(
    stage=2,
    precision="fp32",
    device="cpu",
    student=StudentConfig("vit-mini", {"depth": 1, "width": 32, "heads": 2, "layer_scale": 0.5}, (16,)),
    adapter=AdapterConfig(16),
    optimizer=OptimizerConfig(learning_rate=1e-2, warmup_share=0.1),
    run=RunConfig(6, 6, checkpoint_every=3, keep_checkpoints=1, log_every=1),
)
LOSSES = json.loads((KEPT / "losses.json").read_text())


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    shutil.copytree(KEPT, tmp_path / "kept")
    return tmp_path / "kept"


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(run)]


def test_the_kept_store_is_whole_and_every_file_is_what_it_was(kept: Path) -> None:
    store = FeatureStore.open(str(kept / "store"))
    assert [key.partition("@")[0] for key in store.list_features()] == ["teacher"]
    assert verify_features(key=None, store=store.url, subset="1/1", on_event=ignore_event)["findings"] == []


def test_the_kept_features_are_those_of_their_teacher(kept: Path) -> None:
    """Its images are gone: the stored pixels serve."""
    found = fidelity(FidelityOptions(str(kept / "store"), "teacher", TeacherRequest(str(kept / "teacher")), sample=24))
    assert found["cls"]["min"] > 0.999
    assert found["patch"]["min"] > 0.99


def test_the_kept_run_goes_on_to_the_losses_that_the_code_of_then_had(kept: Path) -> None:
    assert losses(kept / "run") == LOSSES[:3]
    summary = train(RECIPE, FeatureStore.open(str(kept / "store")), ["teacher"], data="photos", out=kept / "run")
    assert summary["steps"] == 6
    assert losses(kept / "run")[:3] == LOSSES[:3]
    assert losses(kept / "run") == pytest.approx(LOSSES, rel=1e-4)


def test_the_kept_run_is_still_another_one_for_another_recipe(kept: Path) -> None:
    store = FeatureStore.open(str(kept / "store"))
    with pytest.raises(BadInput, match="with another recipe"):
        train(TrainRecipe(stage=2, student=RECIPE.student, run=RECIPE.run), store, ["teacher"], data="photos", out=kept / "run")


def test_the_kept_finished_run_is_known_as_finished_and_exports(kept: Path) -> None:
    store = FeatureStore.open(str(kept / "store"))
    assert train(RECIPE, store, ["teacher"], data="photos", out=kept / "finished")["already"]
    written = export(ExportOptions(kept / "finished", kept / "out", ("timm",)))
    assert written["written"]["timm"]["read back"] == "bitwise equal"
