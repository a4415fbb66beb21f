"""A store to extract into: a fresh one over a copy of the tiny store's images, with a random ViT as teacher."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import fsspec
import numpy as np
import pytest
from eupe_pipeline.jobs.extraction import batch_size
from eupe_pipeline.jobs.extraction.options import ExtractOptions, TeacherRequest
from eupe_pipeline.storage.images.indexing import build_index
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.views.view_spec import ViewSpec

from ..storage.faulty_s3 import SECRETS, FaultyServer, running
from .growing import Growing, make_photos
from .two_hosts import two_hosts


@pytest.fixture
def photos(tiny_store: Any, tmp_path: Path) -> Any:
    """A fresh store over a copy of the tiny store's images, and the teacher's run folder."""
    shutil.copytree(tiny_store.teacher_run.parent / "images", tmp_path / "images")
    store = FeatureStore.create(str(tmp_path / "store"))
    build_index(store.objects, str(tmp_path / "images"), "photos")
    options = ExtractOptions(
        store.url,
        "photos",
        (TeacherRequest(str(tiny_store.teacher_run)),),
        ViewSpec(views_per_image=2, seed=3),
        images_per_shard=8,
        codec="fp32",
        statistics_batches=4,
        batch_size=8,
        workers=0,
    )
    return store, options, tmp_path


def tokens(store: FeatureStore, key: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    reader = store.features(key)
    rows = reader.read(np.arange(reader.rows))
    assert rows.cls is not None
    return rows.cls, rows.patch


@pytest.fixture
def hosts() -> Iterator[tuple[str, str]]:
    """The names of two hosts that reach each other and nothing else."""
    with two_hosts() as names:
        yield names


@pytest.fixture(scope="module")
def bucket() -> Iterator[FaultyServer]:
    """An S3 server of a module's own with the bucket `runs`; the client library keeps connections, so none may be left from another."""
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with running() as server:
        found = {**SECRETS, "AWS_ENDPOINT_URL": server.url, "AWS_DEFAULT_REGION": "us-east-1"}
        environment = mock.patch.dict(os.environ, found)
        environment.start()
        fsspec.filesystem("s3", use_listings_cache=False).mkdir("runs")
        yield server
        environment.stop()
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.fixture(scope="session")
def all_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """44 photos, four of which come later, and two teachers. Read only."""
    return make_photos(tmp_path_factory.mktemp("grown"))


@pytest.fixture
def growing(tmp_path: Path, all_photos: Path, monkeypatch: pytest.MonkeyPatch) -> Growing:
    """A folder of 40 photos that can grow, and the number of views that teachers see."""
    growing = Growing(tmp_path, all_photos)
    forward = batch_size.SizedTeacher._forward

    def counted(self: Any, pixels_BHWC: Any, photometric_BP: Any = None) -> Any:
        growing.forwards += len(pixels_BHWC)
        return forward(self, pixels_BHWC, photometric_BP)

    monkeypatch.setattr(batch_size.SizedTeacher, "_forward", counted)
    return growing
