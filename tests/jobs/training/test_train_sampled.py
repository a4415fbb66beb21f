"""Training from sampled and resampled tokens over a tiny real store: exact where it can be, refused where it would mislead."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from eupe_pipeline.jobs.estimates.training import plan_training
from eupe_pipeline.jobs.evaluation.knn import knn_of_features
from eupe_pipeline.jobs.extraction.extract import extract_features
from eupe_pipeline.jobs.extraction.options import ExtractOptions, TeacherRequest
from eupe_pipeline.jobs.training.options import TrainOptions
from eupe_pipeline.pipeline.pictures.pca import colours
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.images.indexing import build_index
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.views.view_spec import ViewSpec
from eupe_pipeline.student.data.targets import CachedTargets
from eupe_pipeline.student.model.recipe import RunConfig, TeacherConfig
from eupe_pipeline.student.training.run_folder import read_metrics
from eupe_pipeline.teachers.encoders.tokens import SampledTokens

from ..training_request import train
from .test_train import RECIPE, losses

SHORT = replace(RECIPE, student=replace(RECIPE.student, sizes_px=(32,)), run=RunConfig(4, 6, checkpoint_every=2, log_every=1))
LAYOUTS: dict[str, dict[str, Any]] = {
    "dense": {},
    "every": {"tokens_per_view": 16},
    "some": {"tokens_per_view": 6},
    "small": {"grid": (3, 3)},
    "some-int8": {"tokens_per_view": 6, "codec": "int8"},
}


@pytest.fixture(scope="module")
def kept(tiny_store: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[FeatureStore, dict[str, str]]:
    """A store with one teacher's 4×4 tokens in several layouts, and the key of each."""
    store = FeatureStore.create(str(tmp_path_factory.mktemp("kept") / "store"))
    build_index(store.objects, str(tiny_store.teacher_run.parent / "images"), "photos")
    request = TeacherRequest(str(tiny_store.teacher_run), size_px=32)
    options = ExtractOptions(
        store.url, "photos", (request,), ViewSpec(views_per_image=2, seed=3), 8, "fp32", statistics_batches=2, workers=0
    )
    return store, {name: extract_features(replace(options, **less))["features"]["teacher"] for name, less in LAYOUTS.items()}


def run(kept: Any, name: str, out: Path, recipe: Any = SHORT, **more: Any) -> dict[str, Any]:
    store, keys = kept
    return train(recipe, store, [keys[name]], data="photos", out=out, **more)


def test_all_tokens_at_recorded_places_train_bit_equal_to_the_dense_set(kept: Any, tmp_path: Path) -> None:
    for name in ("dense", "every"):
        run(kept, name, tmp_path / name)
    assert losses(tmp_path / "every") == losses(tmp_path / "dense")


def test_a_few_tokens_train_near_the_dense_set_and_the_class_token_is_untouched(kept: Any, tmp_path: Path) -> None:
    for name in ("dense", "some", "some-int8"):
        run(kept, name, tmp_path / name)
    first = {name: next(iter(read_metrics(tmp_path / name)))["losses"]["teacher"] for name in ("dense", "some", "some-int8")}
    assert first["some"]["cls"] == first["dense"]["cls"]
    assert first["some"]["patch"] != first["dense"]["patch"]
    assert first["some"]["patch"] == pytest.approx(first["dense"]["patch"], rel=0.1)
    assert first["some-int8"]["patch"] == pytest.approx(first["some"]["patch"], rel=1e-2)


def test_parts_of_a_batch_take_their_own_places(kept: Any, tmp_path: Path) -> None:
    run(kept, "some", tmp_path / "whole")
    run(kept, "some", tmp_path / "parts", replace(SHORT, run=replace(SHORT.run, accumulate=3)))
    np.testing.assert_allclose(losses(tmp_path / "parts"), losses(tmp_path / "whole"), rtol=1e-4)


def test_teachers_with_and_without_sampling_train_in_one_run(kept: Any) -> None:
    store, keys = kept
    source = CachedTargets({"a": store.features(keys["some"]), "b": store.features(keys["small"])})
    memory, rows = source.allocate(3), np.array([5, 40, 2])
    source.fill(rows[:2], memory, 0)
    source.fill(rows[2:], memory, 2)
    found, stored = source.resolve(memory), store.features(keys["some"]).read(rows)
    assert isinstance(found["a"], SampledTokens)
    np.testing.assert_array_equal(found["a"].position_BT, stored.position)
    assert torch.equal(found["a"].patch_BTD, torch.from_numpy(np.asarray(stored.patch)))
    assert not isinstance(found["b"], SampledTokens)
    assert found["b"].patch_BHWD.shape == (3, 3, 3, 48)
    assert [source.specs[name].tokens for name in "ab"] == [6, None]


def test_another_grid_is_refused_before_the_run_s_folder_exists(kept: Any, tmp_path: Path) -> None:
    store, keys = kept
    for sizes in ((24,), (32, 24)):
        other = replace(SHORT, student=replace(SHORT.student, sizes_px=sizes))
        with pytest.raises(BadInput, match=r"vit-mini at 24 px has a grid of 3×3.* choose student\.sizes_px"):
            run(kept, "some", tmp_path / "run", other)
        with pytest.raises(BadInput, match="grid of 3×3"):
            plan_training(TrainOptions(other, store.url, (keys["some"],), tmp_path / "run", "photos"))
    assert not (tmp_path / "run").exists()
    run(kept, "small", tmp_path / "run", other)  # a whole grid, though a smaller one, is aligned as ever


def test_a_dry_run_counts_the_bytes_of_the_stored_tokens(kept: Any, tmp_path: Path) -> None:
    store, keys = kept
    asked = {name: TrainOptions(SHORT, store.url, (keys[name],), tmp_path / name, "photos") for name in ("dense", "some")}
    plans = {name: plan_training(options) for name, options in asked.items()}
    view = {name: plan["reading"]["target_bytes_a_view"] for name, plan in plans.items()}
    assert view == {"dense": 4 * (16 * 48 + 48), "some": 4 * (6 * 48 + 48) + 2 * 6}
    memory = {name: plan["students"]["vit-mini"]["activation_bytes"] for name, plan in plans.items()}
    assert memory["some"] < memory["dense"]  # adapters compute the stored tokens alone
    assert plans["some"]["batch"]["targets_device_bytes"] < 0.5 * plans["dense"]["batch"]["targets_device_bytes"]


def test_a_live_teacher_gives_whole_grids_whatever_was_stored(kept: Any, tiny_store: Any, tmp_path: Path) -> None:
    live = replace(SHORT, stage=3, teacher=TeacherConfig("live", sizes_px=(16, 32)), student=replace(SHORT.student, sizes_px=(24, 32)))
    for name in ("dense", "some", "small"):
        run(kept, name, tmp_path / name, live, proxy=tiny_store.teacher_run)
    assert losses(tmp_path / "some") == losses(tmp_path / "dense") == losses(tmp_path / "small")


def test_neighbours_by_an_approximate_mean_have_its_name(kept: Any) -> None:
    store, keys = kept
    found = {name: knn_of_features(store, keys[name], keys[name]) for name in ("dense", "every", "some", "small")}
    names = {name: next(key for key in one if key.startswith("mean")) for name, one in found.items()}
    assert names == {"dense": "mean_patch", "every": "mean_sampled_patch", "some": "mean_sampled_patch", "small": "mean_resampled_patch"}
    assert found["every"]["mean_sampled_patch"] == found["dense"]["mean_patch"]
    assert "mean_sampled_patch" in knn_of_features(store, keys["dense"], keys["some"])


def test_pictures_of_sampled_tokens_are_refused(kept: Any) -> None:
    store, keys = kept
    reader = store.features(keys["some"])
    with pytest.raises(BadInput, match=r"need whole grids: for sampled tokens extract without --tokens-per-view"):
        colours(reader.decode(reader.read(np.arange(6))))
