"""An extraction that goes on keeps its views' renderer; one that begins takes the fast one, or the one that is asked for."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eupe_pipeline.jobs.extraction.extract import extract_features
from eupe_pipeline.jobs.extraction.options import ExtractOptions, TeacherRequest
from eupe_pipeline.jobs.training.fill_missing import fill_missing
from eupe_pipeline.storage.core.errors import BadInput, CacheMismatch
from eupe_pipeline.storage.views import torch_resize
from eupe_pipeline.storage.views.renderers import PILLOW, fast
from eupe_pipeline.storage.views.view_set import ViewSet

from ...conftest import make_teacher


def test_a_store_of_before_goes_on_by_pillow_and_a_new_one_is_fast(photos: Any) -> None:
    store, options, _ = photos
    options = replace(options, workers=0)
    before = extract_features(replace(options, renderer="pillow"))
    assert store.view_set(before["views"]).renderer == PILLOW
    said: list[dict[str, Any]] = []
    again = extract_features(replace(options, codec="fp16"), said.append)
    assert again["views"] == before["views"]
    assert [event["text"] for event in said if "--renderer fast begins a set of its own" in event.get("text", "")]
    other = extract_features(replace(options, renderer="fast"))
    assert other["views"] != before["views"]
    views = store.view_set(other["views"])
    assert views.renderer == fast()
    rows = np.arange(views.rows)
    ours, theirs = views.read(rows), store.view_set(before["views"]).read(rows)
    np.testing.assert_array_equal(ours.crop, theirs.crop)
    np.testing.assert_array_equal(ours.digest, theirs.digest)  # the decoded pixels are the same


def test_a_teacher_that_is_filled_in_joins_the_views_of_the_runs_other_teacher_whatever_else_is_there(photos: Any, tmp_path: Path) -> None:
    store, options, _ = photos
    make_teacher(tmp_path / "second", seed=2)
    key = extract_features(replace(options, workers=0, renderer="pillow"))["features"]["teacher"]
    views = store.features(key).views
    ViewSet.create(store.objects, views.dataset, views.spec, views.images_per_shard, fast())
    fill_missing(store, ["teacher", "second"], ["photos"], teachers=[options.teachers[0].name, str(tmp_path / "second")])
    assert {store.features(made).views.key for made in store.list_features()} == {views.key}


def test_a_set_that_this_machine_cannot_render_is_refused_before_a_token_is_computed(photos: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store, options, _ = photos
    options = replace(options, workers=0)
    first = extract_features(options)
    monkeypatch.setattr(torch_resize, "check", lambda: "0" * 16)
    with pytest.raises(CacheMismatch, match=r"gives other pixels; run: pip install 'torch=="):
        store.view_set(first["views"]).renderer.require(first["views"])
    elsewhere = extract_features(replace(options, codec="fp16"))  # begins a set of its own, named after what this machine does
    assert elsewhere["views"] != first["views"]


def test_an_unknown_renderer_is_named() -> None:
    with pytest.raises(BadInput, match="unknown renderer 'quick'"):
        ExtractOptions("store", "photos", (TeacherRequest("x"),), renderer="quick")  # type: ignore[arg-type]  # that is the test
