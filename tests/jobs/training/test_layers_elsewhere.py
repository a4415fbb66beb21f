"""Feature sets with layers behind a URL, and trained from after their dataset grew: sampled tokens, hold-out, compaction and copies."""

import shutil
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eupe_pipeline.jobs.extraction.extract import extract_features
from eupe_pipeline.jobs.extraction.options import ExtractOptions, TeacherRequest
from eupe_pipeline.jobs.training.options import Watch
from eupe_pipeline.pipeline.reports.catalog import verify_features
from eupe_pipeline.storage.features.features import FeatureReader
from eupe_pipeline.storage.images.hold_out import held_out_images
from eupe_pipeline.storage.images.indexing import build_index
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.upkeep.copying import copy_features
from eupe_pipeline.storage.views.view_spec import ViewSpec
from eupe_pipeline.student.model.recipe import DataConfig, TeacherConfig
from eupe_pipeline.student.training.run_folder import read_metrics
from numpy.typing import NDArray

from ...conftest import write_images
from ...storage.faulty_s3 import FaultyServer
from ..training_request import train
from .test_train import RECIPE, losses

LAYER = 1
WEIGHTED = replace(RECIPE, teacher=TeacherConfig(layers={str(LAYER): 2.0}))


def request(store: str, teacher: Path, **values: Any) -> ExtractOptions:
    views = ViewSpec(views_per_image=2, seed=3)
    return ExtractOptions(store, "photos", (TeacherRequest(str(teacher)),), views, 8, batch_size=8, workers=0, layers=(LAYER,), **values)


def of_layer(reader: FeatureReader, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    return reader.decode_layer(reader.read_layers(rows, (LAYER,))[LAYER])


def test_a_set_with_layers_is_extracted_to_s3_read_and_trained_from_as_in_a_folder(
    tiny_store: Any, bucket: FaultyServer, tmp_path: Path
) -> None:
    images, urls = tiny_store.teacher_run.parent / "images", {"s3": f"s3://runs/{uuid.uuid4().hex}", "folder": str(tmp_path / "store")}
    readers = {}
    for name, url in urls.items():
        build_index(FeatureStore.create(url).objects, str(images), "photos")
        summary = extract_features(request(url, tiny_store.teacher_run, codec="fp32"))
        readers[name] = FeatureStore.open(url).features(summary["features"]["teacher"])
        assert extract_features(request(url, tiny_store.teacher_run, codec="fp32"))["views_done"] == 0
    assert readers["s3"].key == readers["folder"].key
    rows = np.array([40, 3, 17])
    np.testing.assert_array_equal(of_layer(readers["s3"], rows), of_layer(readers["folder"], rows))
    assert verify_features(store=urls["s3"])["findings"] == []
    bucket.seen.clear()
    recipe = replace(WEIGHTED, data=DataConfig(order="shards"))
    for name, reader in readers.items():
        store = FeatureStore.open(urls[name], shard_cache=tmp_path / "cache")
        train(recipe, store, [reader.key], data="photos", out=tmp_path / name, shard_cache=tmp_path / "cache")
    assert losses(tmp_path / "s3") == losses(tmp_path / "folder")
    assert {name for line in read_metrics(tmp_path / "s3") for name in line["losses"]} == {"teacher", f"teacher/{LAYER}"}
    assert [path for method, path in bucket.seen if method == "GET" and f"/patch.{LAYER}/c" in path], "the layer came from the bucket"


@pytest.mark.parametrize("tokens_per_view", [None, 3])
def test_layers_survive_growth_compaction_and_a_copy_and_held_out_photos_stay_so(
    tiny_store: Any, tmp_path: Path, tokens_per_view: int | None
) -> None:
    write_images(tmp_path / "images", 24)
    store = FeatureStore.create(str(tmp_path / "store"))
    before = build_index(store.objects, str(tmp_path / "images"), "photos")
    asked = request(store.url, tiny_store.teacher_run, codec="int8", tokens_per_view=tokens_per_view)
    first = store.features(extract_features(asked)["features"]["teacher"])
    first.group.compact()
    write_images(tmp_path / "more", 30)
    for path in sorted((tmp_path / "more").rglob("02[4-9].png")):
        shutil.copy(path, tmp_path / "images" / path.parent.name / f"z{path.name}")
    after = build_index(store.objects, str(tmp_path / "images"), "photos")
    grown_summary = extract_features(asked)
    assert (grown_summary["shards_taken_over"], grown_summary["views_done"]) == (3, 12)
    grown = FeatureStore.open(store.url).features(grown_summary["features"]["teacher"])
    grown.group.compact()
    copied = copy_features(store, grown.key, FeatureStore.create(str(tmp_path / "copy")))
    assert copied.layout == grown.layout == first.layout
    rows = np.arange(first.rows)
    for reader in (grown, copied):
        np.testing.assert_array_equal(of_layer(reader, rows), of_layer(first, rows))
    recipe = replace(WEIGHTED, data=DataConfig(hold_out=0.25), student=replace(WEIGHTED.student, sizes_px=(16,)))
    held = [before.ids(0, len(before))[image] for image in held_out_images(before, 0.25)]
    assert set(held) <= {after.ids(0, len(after))[image] for image in held_out_images(after, 0.25)}
    watch = Watch("agreement", recipe.run.steps, images=20)
    for name, found in (("run", FeatureStore.open(str(tmp_path / "copy"))), ("original", store)):
        train(recipe, found, [grown.key], data="photos", out=tmp_path / name, watch=watch)
    ours, theirs = ([line for line in read_metrics(tmp_path / name) if "loss" in line] for name in ("run", "original"))
    assert [line["loss"] for line in ours] == [line["loss"] for line in theirs]
    measured = [line["agreement"]["held_out"] for line in read_metrics(tmp_path / "run") if "agreement" in line]
    assert [list(one["teachers"]) for one in measured] == [["teacher"]], "agreement is of the final tokens"
    assert all(set(line["losses"]) == {"teacher", f"teacher/{LAYER}"} for line in ours)
