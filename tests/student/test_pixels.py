"""Stored pixels are what decoding gives, serve only their own size, and make the images superfluous."""

import shutil
from typing import Any

import pytest
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.views import StoredPixels, ViewSpec
from eupe_pipeline.storage.viewset import ViewSet

from ..conftest import extract

SIZE_PX = 16


@pytest.fixture(scope="module")
def moved(tiny_store: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A store of its own over a copy of the images, that keeps pixels of 16 px; (store, folder of the images)."""
    root = tmp_path_factory.mktemp("moved")
    shutil.copytree(tiny_store.teacher_run.parent / "images", root / "images")
    store = FeatureStore.create(str(root / "store"))
    from eupe_pipeline.storage.indexing import build_index

    dataset = build_index(store.objects, str(root / "images"), "photos")
    spec = ViewSpec(views_per_image=2, seed=3, photometric="teacher_same", pixels=StoredPixels(SIZE_PX))
    extract(store, tiny_store.teacher, ViewSet.create(store.objects, dataset, spec, images_per_shard=8), "tiny-teacher", "fp32")
    return store, root / "images"
