"""Whoever takes the pixels of a recorded view refuses an image that decodes to others than were recorded: one rule, one text."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eupe_pipeline.jobs.extraction.extract import extract_features
from eupe_pipeline.jobs.extraction.options import ExtractOptions, TeacherRequest
from eupe_pipeline.jobs.repair.repair import FidelityOptions, RepairOptions, fidelity, repair_features
from eupe_pipeline.jobs.training import start_checks
from eupe_pipeline.pipeline.pictures.neighbours import galleries
from eupe_pipeline.pipeline.reports.cache_sample import shown_images
from eupe_pipeline.pipeline.reports.page_contents import chosen_galleries
from eupe_pipeline.storage.core.errors import CacheMismatch
from eupe_pipeline.storage.images import dataset as dataset_module
from eupe_pipeline.storage.sources.decode import Pixels, decode_image
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.views.view_spec import ViewSpec
from eupe_pipeline.student.data.stored_views import StoredViews

from .training.test_train import LIVE, RECIPE
from .training_request import train

REFUSED = r"image class\d/\d+\.png of photos@\w+ decodes to other pixels than those of its recorded view \(pixel digest differs"


@pytest.fixture
def store(tiny_store: Any, tmp_path: Path) -> FeatureStore:
    """The tiny store, as another image library sees its images: one level in a byte."""
    shutil.copytree(tiny_store.store.url, tmp_path / "store")
    return FeatureStore.open(str(tmp_path / "store"))


@pytest.fixture
def other_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def brighter(data: bytes, **values: Any) -> Pixels:
        return decode_image(data, **values) ^ np.uint8(1)

    monkeypatch.setattr(dataset_module, "decode_image", brighter)


def options(store: FeatureStore, tiny_store: Any, **values: Any) -> ExtractOptions:
    teacher, views = TeacherRequest(str(tiny_store.teacher_run)), ViewSpec(views_per_image=2, seed=3)
    return ExtractOptions(store.url, "photos", (teacher,), views, images_per_shard=8, workers=0, **values)


def extracted(store: FeatureStore, tiny_store: Any) -> object:
    """A second teacher over committed views; its statistics are there."""
    return extract_features(options(store, tiny_store, statistics_from=("tiny-teacher",)))


def measured(store: FeatureStore, tiny_store: Any) -> object:
    """Statistics alone: an extraction begins with them."""
    return extract_features(options(store, tiny_store, statistics_batches=1))


def repaired(store: FeatureStore, tiny_store: Any) -> object:
    damaged = Path(store.url, "features", store.features("tiny-teacher").key, "patch", "c.1.0.0.0")
    damaged.unlink()
    found = repair_features(RepairOptions(store.url, "tiny-teacher", TeacherRequest(str(tiny_store.teacher_run))))
    assert len(found["left"]) == 1
    assert not damaged.exists()
    raise CacheMismatch(found["left"][0])


def learnt_live(store: FeatureStore, tiny_store: Any) -> object:
    recipe = replace(LIVE, run=replace(LIVE.run, steps=1))
    return train(recipe, store, ["tiny-teacher"], data="photos", out=Path(store.url).parent / "run", proxy=tiny_store.teacher_run)


CALLERS: dict[str, Callable[[FeatureStore, Any], object]] = {
    "extraction": extracted,
    "statistics": measured,
    "repair": repaired,
    "fidelity": lambda store, tiny: fidelity(FidelityOptions(store.url, "tiny-teacher", TeacherRequest(str(tiny.teacher_run)), 4)),
    "training": lambda store, _: train(RECIPE, store, ["tiny-teacher"], data="photos", out=Path(store.url).parent / "run"),
    "live targets": learnt_live,
    "a notebook's views": lambda store, _: StoredViews(store.url, ["tiny-teacher"], size_px=16)[3],
    "neighbours": lambda store, _: galleries(store.features("tiny-teacher"), np.array([0]), 2, lambda event: None),
}


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.usefixtures("other_library")
def test_no_caller_takes_other_pixels_than_were_recorded(caller: str, store: FeatureStore, tiny_store: Any) -> None:
    with pytest.raises(CacheMismatch, match=REFUSED):
        CALLERS[caller](store, tiny_store)


@pytest.mark.parametrize("caller", ["training", "live targets"])
@pytest.mark.usefixtures("other_library")
def test_a_stream_refuses_them_too_where_the_sample_at_the_start_missed_them(
    caller: str, store: FeatureStore, tiny_store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start_checks, "check_pixels", lambda views: 0)
    with pytest.raises(CacheMismatch, match=REFUSED):
        CALLERS[caller](store, tiny_store)


@pytest.mark.usefixtures("other_library")
def test_a_report_shows_no_view_of_a_changed_image_and_says_why(store: FeatureStore) -> None:
    reader, notes, others = store.features("tiny-teacher"), list[str](), list[str]()
    shown = shown_images(reader, notes)
    assert [(one.photo, one.views[0].image) for one in shown] == [(None, None)] * 3
    assert len(notes) == 1
    assert "pixel digest differs" in notes[0]
    assert chosen_galleries([reader], (), others, lambda event: None) == {}
    assert "pixel digest differs" in others[0]
