"""Targets of several sizes in a mixture of datasets, behind a URL and on several ranks: the run of one process on a local store."""

import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from eupe_pipeline.jobs.extraction.extract import extract_features
from eupe_pipeline.jobs.extraction.options import ExtractOptions, TeacherRequest
from eupe_pipeline.jobs.training.data import open_parts, run_order
from eupe_pipeline.storage.images.indexing import build_index
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.upkeep.copying import copy_features
from eupe_pipeline.storage.views.view_spec import ViewSpec
from eupe_pipeline.student.model.draws import choose_size
from eupe_pipeline.student.model.ranks import Ranks
from eupe_pipeline.student.model.recipe import DataConfig, RunConfig, TeacherConfig
from eupe_pipeline.student.training.run_folder import read_metrics

from ...conftest import write_images
from ...storage.faulty_s3 import FaultyServer
from ...student.gloo import on_ranks
from ..training_request import train
from .test_train import RECIPE, losses

SIZES = (24, 16)
SIZED = replace(
    RECIPE, stage=3, student=replace(RECIPE.student, sizes_px=(16, 24)), teacher=TeacherConfig("cached", SIZES),
    run=RunConfig(12, 4, checkpoint_every=6, log_every=1, reader_threads=1), data=DataConfig({"few": 0.4, "many": 0.6}, "shards", 1),
)  # fmt: skip


@pytest.fixture(scope="module")
def sized(tiny_store: Any, tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """Two datasets, each with the teacher's sets of two sizes; all have the statistics of the first one."""
    root = tmp_path_factory.mktemp("sized")
    store = FeatureStore.create(str(root / "store"))
    kept: tuple[str, ...] = ()
    for name, count, views in (("few", 6, 2), ("many", 12, 1)):
        write_images(root / name, count)
        build_index(store.objects, str(root / name), name)
        for size in SIZES:
            teacher = TeacherRequest(str(tiny_store.teacher_run), size_px=size)
            spec = ViewSpec(views_per_image=views, seed=count)
            options = ExtractOptions(
                store.url, name, (teacher,), spec, images_per_shard=4, codec="fp32", statistics_batches=1, workers=0, statistics_from=kept
            )
            kept = kept or (extract_features(options)["features"]["teacher"],)
            extract_features(options)
    return store


def run(store: FeatureStore, out: Path, features: Sequence[str] = ("teacher",), recipe: Any = SIZED, **more: Any) -> list[Any]:
    train(recipe, store, features, data="", out=out, **more)
    return [(line["loss"], line["sizes_px"]) for line in read_metrics(out)]


@pytest.mark.long
def test_a_mixture_in_a_bucket_is_the_run_on_the_local_store_and_fetches_the_drawn_sizes(
    sized: FeatureStore, bucket: FaultyServer, tmp_path: Path
) -> None:
    local = run(sized, tmp_path / "local")
    drawn = [choose_size(0, "teacher", step, SIZES) for step in range(12)]
    assert [sizes["teacher"] for _, sizes in local] == drawn
    url = f"s3://runs/{uuid.uuid4().hex}"
    remote = FeatureStore.create(url)
    keys = [copy_features(sized, key, remote).key for key in sized.list_features()]
    assert len(keys) == 4
    bucket.seen.clear()
    cached = FeatureStore.open(url, shard_cache=tmp_path / "cache")
    assert run(cached, tmp_path / "s3", keys, shard_cache=tmp_path / "cache") == local
    fetched = [path.replace("%40", "@") for method, path in bucket.seen if method == "GET"]
    read = {key for key in keys if any(f"features/{key}/patch/c" in path for path in fetched)}
    parts = open_parts(sized, ["teacher"], "", SIZED.data.shares, sizes_px=SIZES)
    order = run_order(SIZED, parts, sized, None)
    of_few = [order.batch(step, 4).row_B[0] < parts[0].views.rows for step in range(12)]
    expected = {parts[0 if few else 1].by_size[size]["teacher"].key for few, size in zip(of_few, drawn, strict=True)}
    assert read == expected, "the sets of the drawn dataset and size, and no other"
    assert len(expected) >= 3


def _of_rank(ranks: Ranks, url: str, out: Path) -> None:
    run(FeatureStore.open(url), out, ranks=ranks)


@pytest.mark.long
def test_two_ranks_read_one_size_a_step_and_train_what_one_process_does(sized: FeatureStore, tmp_path: Path) -> None:
    one = run(sized, tmp_path / "one")
    on_ranks(2, tmp_path, _of_rank, sized.url, tmp_path / "two")
    assert [line["sizes_px"] for line in read_metrics(tmp_path / "two")] == [sizes for _, sizes in one]
    assert losses(tmp_path / "two") == pytest.approx([loss for loss, _ in one], rel=1e-4)
