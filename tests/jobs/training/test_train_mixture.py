"""Runs over several datasets: homogeneous batches in recorded shares, one normalisation, exact resume, ranks that see one order."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eupe_pipeline.jobs.extraction.extract import extract_features
from eupe_pipeline.jobs.extraction.options import ExtractOptions, TeacherRequest
from eupe_pipeline.jobs.training.data import cached_targets, joined_views, open_parts, run_order
from eupe_pipeline.storage.core.errors import BadInput, CacheMismatch, Interrupted
from eupe_pipeline.storage.images.indexing import build_index
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.views.view_spec import ViewSpec, render
from eupe_pipeline.student.data.stream import Stream
from eupe_pipeline.student.data.targets import STUDENT, Rendering
from eupe_pipeline.student.model.recipe import DataConfig

from ...conftest import write_images
from ..training_request import train, train_command
from .test_train import RECIPE, interrupt_after, losses

SHARES = {"few": 0.25, "many": 0.75}
MIXED = replace(RECIPE, data=DataConfig(SHARES), run=replace(RECIPE.run, steps=12))
BATCH = MIXED.run.batch_size


@pytest.fixture(scope="module")
def mixed(tiny_store: Any, tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """`few` (6 images, 2 views) and `many` (20 images, 3 views); `other` has statistics of its own."""
    root = tmp_path_factory.mktemp("mixture")
    store = FeatureStore.create(str(root / "store"))
    teacher = (TeacherRequest(str(tiny_store.teacher_run)),)
    borrowed: tuple[str, ...] = ()
    for name, count, views in (("few", 6, 2), ("many", 20, 3), ("other", 5, 1)):
        write_images(root / name, count)
        build_index(store.objects, str(root / name), name)
        spec = ViewSpec(views_per_image=views, seed=count)
        kept = () if name == "other" else borrowed
        options = ExtractOptions(
            store.url, name, teacher, spec, images_per_shard=8, codec="fp32", statistics_batches=2, workers=0, statistics_from=kept
        )
        key = extract_features(options)["features"]["teacher"]
        borrowed = borrowed or (key,)
    return store


def run(store: FeatureStore, out: Path, **more: Any) -> dict[str, Any]:
    return train(more.pop("recipe", MIXED), store, ["teacher"], out=out, **more)


def test_each_batch_is_all_of_one_dataset_with_its_own_pixels_and_tokens(mixed: FeatureStore) -> None:
    parts = open_parts(mixed, ["teacher"], "", SHARES)
    views, order = joined_views(parts), run_order(MIXED, parts, mixed, None)
    drawn = Rendering(STUDENT, 16, "bicubic")
    stream = Stream(views, cached_targets(parts), order, lambda step: drawn, batch_size=BATCH, largest_px={STUDENT: 16})
    of_few = 0
    for batch in stream.batches(0, 40):
        rows = batch.plan.indices.row_B
        part = parts[int(rows[0] >= 12)]
        local = rows - (12 if part.name == "many" else 0)
        assert 0 <= local.min() <= local.max() < part.views.rows
        reader, recorded = part.readers["teacher"], part.views.read(local)
        assert np.array_equal(batch.tensors["teacher/patch"].numpy(), reader.read(local).patch)
        for n, row in enumerate(local.tolist()):
            image = part.views.dataset.read_image(row // part.views.views_per_image)
            expected = render(image, recorded.crop[n], bool(recorded.flip[n]), 16, renderer=part.views.renderer)
            assert np.array_equal(batch.tensors["pixels/student"][n].numpy(), expected)
        of_few += part.name == "few"
    assert 4 <= of_few <= 18


def test_a_mixture_is_recorded_and_goes_on_bit_equal_after_a_stop(mixed: FeatureStore, tmp_path: Path) -> None:
    run(mixed, tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(mixed, tmp_path / "cut", on_event=interrupt_after(5))
    assert run(mixed, tmp_path / "cut")["resumed_from"] == 5
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    recorded = json.loads((tmp_path / "cut" / "identities.json").read_text())["targets"]["teacher"]
    assert recorded["features"] != recorded["mixed_with"]["many"]["features"]
    assert json.loads((tmp_path / "cut" / "recipe.json").read_text())["decisive"]["data"]["shares"] == SHARES
    with pytest.raises(CacheMismatch, match=r"data\.shares\.few: got 0.5, wanted 0.25"):
        run(mixed, tmp_path / "cut", recipe=replace(MIXED, data=DataConfig({"few": 0.5, "many": 0.5})))


@pytest.mark.parametrize("kind", ["global", "shards"])
def test_any_number_of_ranks_sees_the_same_rows(mixed: FeatureStore, kind: str) -> None:
    parts = open_parts(mixed, ["teacher"], "", SHARES)
    order = run_order(replace(MIXED, data=DataConfig(SHARES, kind, 2)), parts, mixed, None)
    for step in range(20):
        whole = order.batch(step, BATCH).row_B.tolist()
        for ranks in (2, 3, 6):
            assert [row for rank in range(ranks) for row in order.batch(step, BATCH, rank, ranks).row_B.tolist()] == whole


def test_live_targets_of_a_mixture_are_the_cached_ones(mixed: FeatureStore, tiny_store: Any, tmp_path: Path) -> None:
    run(mixed, tmp_path / "cached")
    live = replace(MIXED, teacher=replace(MIXED.teacher, source="live"))
    run(mixed, tmp_path / "live", recipe=live, proxy=tiny_store.teacher_run)
    assert losses(tmp_path / "live") == pytest.approx(losses(tmp_path / "cached"), abs=1e-3)


def test_other_statistics_are_refused_and_the_remedy_named(mixed: FeatureStore, tmp_path: Path) -> None:
    with pytest.raises(CacheMismatch, match=r"statistics: got .*--statistics-from teacher@"):
        run(mixed, tmp_path / "run", recipe=replace(MIXED, data=DataConfig({"few": 0.5, "other": 0.5})))


def test_a_dataset_without_a_teachers_set_is_refused_by_name(mixed: FeatureStore, tmp_path: Path) -> None:
    of_few = open_parts(mixed, ["teacher"], "few", {})[0].readers["teacher"].key
    with pytest.raises(BadInput, match=f"none of {of_few} is over many@"):
        train(MIXED, mixed, [of_few], out=tmp_path / "run")


def test_a_mixture_and_one_dataset_at_once_are_refused(mixed: FeatureStore, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="the recipe mixes few, many"):
        run(mixed, tmp_path / "run", data="few")


def test_a_bare_name_means_the_set_over_the_dataset_of_the_run(mixed: FeatureStore) -> None:
    keys = {name: open_parts(mixed, ["teacher"], name, {})[0].readers["teacher"].key for name in ("few", "many", "other")}
    assert len(set(keys.values())) == 3


def test_the_command_line_takes_shares_and_a_dry_run_shows_them(mixed: FeatureStore, tmp_path: Path) -> None:
    settings = (
        "device=cpu",
        "student.architecture=vit-mini",
        "student.sizes_px=[24]",
        "adapter.width=32",
        "run.steps=10",
        "run.batch_size=6",
        "views.photometric=none",
    )
    common: dict[str, Any] = {"stage": 2, "store": mixed.url, "features": ["teacher"], "settings": settings}
    plan = train_command(data=["few=0.25", "many=0.75"], out=tmp_path / "run", dry_run=True, on_event=print, **common)
    shown = {key.split("@")[0]: row for key, row in plan["data"].items()}
    assert shown["few"] == {"share": 0.25, "images": 6, "epochs": 2.5}
    assert plan["recipe"]["data.shares.many"] == {"value": 0.75, "origin": "--set"}
    with pytest.raises(BadInput, match="NAME=SHARE"):
        train_command(data=["few", "many"], out=tmp_path / "run", dry_run=True, on_event=print, **common)


def test_the_shares_come_out_in_the_long_run(mixed: FeatureStore) -> None:
    parts = open_parts(mixed, ["teacher"], "", SHARES)
    order = run_order(MIXED, parts, mixed, None)
    few = sum(int(order.batch(step, BATCH).row_B[0] < 12) for step in range(2000))
    assert abs(few / 2000 - SHARES["few"]) < 0.04
