"""Before the first step: pixels as they were recorded, and live teachers that are the ones that were cached."""

import io
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from eupe_pipeline.jobs.extraction.canaries import check_canary
from eupe_pipeline.jobs.training.start_checks import SAMPLED_VIEWS, check_pixels
from eupe_pipeline.storage.core.errors import CacheMismatch
from eupe_pipeline.storage.images import dataset as dataset_module
from eupe_pipeline.storage.store import FeatureStore
from PIL import Image

from ..training_request import train
from .test_train import LIVE, RECIPE


def test_a_sample_of_views_is_compared_and_images_that_failed_are_passed_over(tiny_store: Any) -> None:
    assert check_pixels(tiny_store.features().views) == SAMPLED_VIEWS
    gaps = tiny_store.features("tiny-gaps").views
    assert check_pixels(gaps, count=10**6) == gaps.rows - gaps.views_per_image


def test_another_decoder_is_found_before_anything_is_written(tiny_store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def brighter(data: bytes, *, where: str, orientation: str) -> Any:
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) ^ np.uint8(1)

    monkeypatch.setattr(dataset_module, "decode_image", brighter)
    with pytest.raises(CacheMismatch, match=r"image class\d/\d+.*pixel digest differs"):
        train(RECIPE, tiny_store.store, ["tiny-teacher"], data="photos", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_live_teacher_that_computes_otherwise_is_refused(tiny_store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same weights, same identity, other numbers: what another library version or a broken device does."""
    shutil.copytree(tiny_store.store.url, tmp_path / "store")
    store = FeatureStore.open(str(tmp_path / "store"))
    check_canary(store, tiny_store.teacher)
    live = replace(LIVE, run=replace(LIVE.run, steps=1))
    train(live, store, ["tiny-teacher"], data="photos", out=tmp_path / "right", proxy=tiny_store.teacher_run)
    monkeypatch.setattr(torch.nn.GELU, "forward", lambda self, x: torch.relu(x) * 3)
    with pytest.raises(CacheMismatch, match="canar"):
        train(live, store, ["tiny-teacher"], data="photos", out=tmp_path / "wrong", proxy=tiny_store.teacher_run)
    assert not (tmp_path / "wrong").exists()
