"""A run goes on when its store was moved or is named by a link: the store is what its content says, not where it lies."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from eupe_pipeline.storage.core.errors import Interrupted
from eupe_pipeline.storage.store import FeatureStore

from ..training_request import train
from .test_train import RECIPE, interrupt_after, losses


def moved(store: Path) -> Path:
    return store.rename(store.with_name("moved"))


def linked(store: Path) -> Path:
    link = store.with_name("link")
    link.symlink_to(store)
    return link


def relatively_linked_and_moved(store: Path) -> Path:
    link = moved(store).with_name("relative")
    link.symlink_to("moved")
    return link


@pytest.mark.parametrize("change", [moved, linked, relatively_linked_and_moved])
def test_a_run_ends_in_the_same_weights_with_its_store_elsewhere(change: Callable[[Path], Path], tiny_store: Any, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(tiny_store.store.url, store)
    train(RECIPE, FeatureStore.open(str(store)), ["tiny-teacher"], data="photos", out=tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(RECIPE, FeatureStore.open(str(store)), ["tiny-teacher"], data="photos", out=tmp_path / "run", on_event=interrupt_after(4))
    elsewhere = FeatureStore.open(str(change(store)))
    summary = train(RECIPE, elsewhere, ["tiny-teacher"], data="photos", out=tmp_path / "run")
    assert summary["resumed_from"] == 4
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    weights = [(tmp_path / name / "model" / "backbone.safetensors").read_bytes() for name in ("whole", "run")]
    assert weights[0] == weights[1]
