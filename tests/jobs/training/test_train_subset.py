"""Runs over a recorded subset: nothing else is drawn, it is part of what the run is, and a mixture has one for each dataset."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eupe_pipeline.jobs.curation.curate import curate_features
from eupe_pipeline.jobs.curation.options import CurateOptions
from eupe_pipeline.jobs.training.data import open_parts, run_order
from eupe_pipeline.storage.core.errors import BadInput, CacheMismatch
from eupe_pipeline.storage.images.subsets import ImageSubset
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.student.model.recipe import DataConfig

from ..training_request import train, train_command
from .test_train import RECIPE
from .test_train_mixture import SHARES, mixed  # noqa: F401  # a fixture

BATCH = RECIPE.run.batch_size


@pytest.fixture
def store(tiny_store: Any, tmp_path: Path) -> FeatureStore:
    """A copy of the tiny store: 24 images."""
    shutil.copytree(tiny_store.store.url, tmp_path / "store")
    return FeatureStore.open(tmp_path / "store")


def record(store: FeatureStore, stays: list[int], name: str = "few", data: str = "photos") -> ImageSubset:
    dataset = store.dataset(data)
    mask = np.isin(np.arange(len(dataset)), stays)
    return ImageSubset.create(store.objects, name, dataset, mask, {})


def drawn(store: FeatureStore, steps: int, **data: Any) -> list[int]:
    parts = open_parts(store, ["tiny-teacher"], "photos", {}, subsets=["few"])
    order = run_order(replace(RECIPE, data=DataConfig(**data)), parts, store, None)
    return [int(image) for step in range(steps) for image in order.batch(step, BATCH).image_B]


@pytest.mark.parametrize("data", [{"order": "global"}, {"order": "shards"}, {"order": "global", "replace_failed": True}])
def test_each_epoch_draws_every_image_of_the_subset_once_and_no_other(store: FeatureStore, data: dict[str, Any]) -> None:
    chosen = [0, 3, 4, 9, 10, 11, 15, 16, 17, 20, 22, 23]
    record(store, chosen)
    seen = drawn(store, 6, **data)
    for epoch in range(3):
        assert sorted(seen[12 * epoch : 12 * epoch + 12]) == chosen


def test_a_run_records_its_subset_and_goes_on_with_no_other(store: FeatureStore, tmp_path: Path, events: Any) -> None:
    seen, on_event = events
    subset, other = record(store, list(range(10))), record(store, list(range(12)), "more")
    out = tmp_path / "run"
    train(RECIPE, store, ["tiny-teacher"], data="photos", out=out, subsets=("few",), on_event=on_event)
    start = next(one for one in seen if one["event"] == "start")
    assert (start["images"], start["excluded_images"]) == (10, 14)
    dataset = store.dataset("photos").key
    assert json.loads((out / "identities.json").read_text())["subsets"] == {dataset: subset.key}
    assert train(RECIPE, store, ["tiny-teacher"], data="photos", out=out, subsets=(subset.key,))["already"] is True
    with pytest.raises(CacheMismatch, match=f"subsets.{dataset}: got '{other.key}', wanted '{subset.key}'"):
        train(RECIPE, store, ["tiny-teacher"], data="photos", out=out, subsets=("more",))
    with pytest.raises(CacheMismatch, match="subsets: got nothing, wanted"):
        train(RECIPE, store, ["tiny-teacher"], data="photos", out=out)


def test_a_run_without_a_subset_records_what_it_always_did(store: FeatureStore, tmp_path: Path) -> None:
    record(store, [1, 2, 3])
    train(RECIPE, store, ["tiny-teacher"], data="photos", out=tmp_path / "run")
    assert set(json.loads((tmp_path / "run" / "identities.json").read_text())) == {"targets", "views", "init_from"}
    with pytest.raises(CacheMismatch, match=r"subsets: got .*, wanted nothing"):
        train(RECIPE, store, ["tiny-teacher"], data="photos", out=tmp_path / "run", subsets=("few",))


def test_the_plan_counts_the_subset(store: FeatureStore, tmp_path: Path) -> None:
    subset = record(store, list(range(8)))
    settings = ["run.steps=4", "run.batch_size=6", "student.sizes_px=[16]", "data.order='global'"]
    found = train_command(store=store.url, out=tmp_path / "run", recipe="demo", settings=settings, dry_run=True, subsets=("few",))
    (data,) = found["data"].values()
    assert data == {"share": 1.0, "images": 8, "epochs": 3.0, "subset": subset.key, "of_images": 24}
    plain = train_command(store=store.url, out=tmp_path / "run", recipe="demo", settings=settings, dry_run=True)
    assert list(plain["data"].values()) == [{"share": 1.0, "images": 24, "epochs": 1.0}]


def test_subsets_that_do_not_fit_are_refused(store: FeatureStore, tmp_path: Path) -> None:
    first, second = record(store, [0, 1, 2]), record(store, [3, 4])

    def opened(*names: str) -> list[Any]:
        return open_parts(store, ["tiny-teacher"], "photos", {}, subsets=names)

    with pytest.raises(BadInput, match=f"photos has two subsets, {min(first.key, second.key)} and"):
        opened("few")
    assert opened(first.key)[0].subset.key == first.key
    with pytest.raises(BadInput, match="unknown subsets in"):
        opened("nobody")
    with pytest.raises(BadInput, match="subsets is a list of names"):
        train(RECIPE, store, ["tiny-teacher"], data="photos", out=tmp_path / "run", subsets="few")


def test_each_dataset_of_a_mixture_may_have_a_subset(mixed: FeatureStore) -> None:  # noqa: F811
    one = record(mixed, [1, 2, 5, 8, 13, 19], "clean", "many")
    recipe = replace(RECIPE, data=DataConfig(SHARES))
    parts = open_parts(mixed, ["teacher"], "", SHARES, subsets=["clean"])
    assert [(part.name, part.images) for part in parts] == [("few", 6), ("many", 6)]
    order = run_order(recipe, parts, mixed, None)
    assert order.epoch_length == 12
    images = {int(image) for step in range(30) for image in order.batch(step, BATCH).image_B}
    assert images == {*range(6), *(6 + image for image in (1, 2, 5, 8, 13, 19))}
    with pytest.raises(CacheMismatch, match=rf"--subset clean is not of what is trained on \(few@\w+\): {one.key} of dataset"):
        open_parts(mixed, ["teacher"], "few", {}, subsets=["clean"])
    both = record(mixed, [0, 3], "clean", "few")
    assert [part.subset for part in open_parts(mixed, ["teacher"], "", SHARES, subsets=["clean"])] != [None, None]
    assert [str(part.subset) for part in open_parts(mixed, ["teacher"], "", SHARES, subsets=["clean"])] == [str(both), str(one)]


def test_what_curate_writes_train_takes(store: FeatureStore, tmp_path: Path) -> None:
    found = curate_features(CurateOptions("tiny-teacher", store.url, "half", balance=0.5))
    assert found["kept"] == 12
    settings = ["run.steps=2", "run.batch_size=4", "student.sizes_px=[16]"]
    summary = train_command(store=store.url, out=tmp_path / "run", recipe="demo", settings=settings, subsets=("half",))
    assert summary["already"] is False
    assert found["subset"] in (tmp_path / "run" / "identities.json").read_text()
