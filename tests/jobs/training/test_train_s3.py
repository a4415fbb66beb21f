"""Training from a store on a real S3 server: whole shards, each fetched once, in an order that is the same on a local copy."""

import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.upkeep.copying import copy_features
from eupe_pipeline.storage.upkeep.leases import holders
from eupe_pipeline.student.model.recipe import DataConfig

from ...storage.faulty_s3 import FaultyServer
from ..training_request import train
from .test_train import RECIPE, losses


def test_a_run_on_s3_goes_through_shards_and_is_the_run_on_a_local_copy(tiny_store: Any, bucket: FaultyServer, tmp_path: Path) -> None:
    url = f"s3://runs/{uuid.uuid4().hex}"
    key = copy_features(tiny_store.store, tiny_store.features().key, FeatureStore.create(url)).key
    said: list[dict[str, Any]] = []
    bucket.seen.clear()
    store = FeatureStore.open(url, shard_cache=tmp_path / "cache")
    recipe = replace(RECIPE, data=DataConfig(window_shards=1), run=replace(RECIPE.run, reader_threads=1))
    train(recipe, store, [key], data="photos", out=tmp_path / "s3", shard_cache=tmp_path / "cache", on_event=said.append)
    assert said[0] == {"event": "note", "text": "data.order: shards  # auto: one request a shard is cheaper than one a view"}
    fetched = [path for method, path in bucket.seen if method == "GET" and "/patch/c" in path and "/features/" in path]
    assert len(fetched) == 3  # two epochs of three shards
    assert holders(store.objects, key) == []
    local = replace(recipe, data=replace(recipe.data, order="shards"))
    train(local, tiny_store.store, [key], data="photos", out=tmp_path / "local")
    assert losses(tmp_path / "s3") == losses(tmp_path / "local")
