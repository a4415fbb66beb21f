"""A picture of a view is what the teacher saw: distorted when it was to see a distortion, and plain otherwise."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from eupe_pipeline.pipeline.pictures.seen_views import as_teacher_saw
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.views.pixels import fill_pixels
from eupe_pipeline.storage.views.view_set import ViewSet
from eupe_pipeline.storage.views.view_spec import ViewSpec, render
from eupe_pipeline.teachers.encoders.photometric import apply_photometric


@pytest.mark.parametrize("mode", ["none", "student_only", "teacher_same"])
def test_only_a_teacher_that_is_to_see_a_distortion_sees_one(tiny_store: Any, tmp_path: Path, mode: str) -> None:
    dataset = tiny_store.store.dataset("photos")
    objects = FeatureStore.create(str(tmp_path / "store")).objects
    views = ViewSet.create(objects, dataset, ViewSpec(views_per_image=1, seed=9, photometric=mode), images_per_shard=24)
    drawn = views.draw_shard(0)
    fill_pixels(views, np.arange(24), drawn, [], drawn_now=True)
    views.commit_shard(0, drawn, {})
    different = 0
    for row in range(6):
        plain = render(dataset.read_image(row), drawn.crop[row], bool(drawn.flip[row]), 32)
        found = as_teacher_saw(views, row, 32)
        parameters = torch.from_numpy(drawn.photometric[row : row + 1])
        distorted = apply_photometric(torch.from_numpy(plain.copy())[None], parameters)[0].numpy()
        assert (found == (distorted if mode == "teacher_same" else plain)).all()
        different += int(np.any(found != plain))
    assert (different > 0) == (mode == "teacher_same")
