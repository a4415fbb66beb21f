"""A step that was not finite is kept with the targets of intermediate layers, and computed again to the bit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from eupe_pipeline.jobs.extraction.extract import extract_features
from eupe_pipeline.jobs.extraction.options import ExtractOptions, TeacherRequest
from eupe_pipeline.pipeline.reports.replay import replay_step
from eupe_pipeline.storage.images.indexing import build_index
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.views.view_spec import ViewSpec
from eupe_pipeline.student.model.recipe import TeacherConfig
from eupe_pipeline.student.training.learner import TrainingDiverged

from .test_replay import RECIPE, half_done, poison, run


def test_targets_of_layers_are_kept_by_their_names_and_places(tiny_store: Any, tmp_path: Path) -> None:
    store = FeatureStore.create(str(tmp_path / "store"))
    build_index(store.objects, str(tiny_store.teacher_run.parent / "images"), "photos")
    request = (TeacherRequest(str(tiny_store.teacher_run), size_px=32),)
    extract_features(
        ExtractOptions(
            store.url, "photos", request, ViewSpec(seed=3), 8, "int8", statistics_batches=1, workers=0, tokens_per_view=6, layers=(1,)
        )
    )
    recipe = replace(RECIPE, student=replace(RECIPE.student, sizes_px=(32,)), teacher=TeacherConfig(layers={"1": 0.5}))
    half_done(store, tmp_path / "run", recipe, features="teacher")
    poison(tmp_path / "run" / "checkpoints" / "step-0000002")
    with pytest.raises(TrainingDiverged):
        run(store, tmp_path / "run", recipe, features="teacher")
    found = replay_step(folder=tmp_path / "run")
    assert found["equal"] is True
    assert set(found["losses"]) == {"teacher", "teacher/1"}
    assert found["targets_not_finite"] == {}
