"""The command as a scheduler and a careless user treat it: stopped, and started twice."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from eupe_pipeline.jobs.extraction.extract import extract_features
from eupe_pipeline.jobs.extraction.options import ExtractOptions
from eupe_pipeline.storage.images.indexing import build_index
from eupe_pipeline.storage.store import FeatureStore

from ..conftest import tokens

COMMAND = [sys.executable, "-c", "import sys; from eupe_pipeline.pipeline.commands.main import main; sys.exit(main(sys.argv[1:]))"]


def arguments(store: FeatureStore, options: ExtractOptions, workers: int = 0) -> list[str]:
    """The command line that extracts as the options say, one image a shard."""
    teacher = options.teachers[0].name
    words = ["extract-features", "--store", store.url, "--data", "photos", "--teacher", teacher, "--views", "2", "--seed", "3"]
    return [*COMMAND, *words, "--codec", "fp32", "--shard-images", "1", "--batch-size", "2", "--workers", str(workers), "--json"]


def test_two_drivers_started_on_one_plan_both_succeed_and_every_image_is_there_once(photos: Any) -> None:
    store, options, root = photos
    alone = FeatureStore.create(str(root / "alone"))
    build_index(alone.objects, str(root / "images"), "photos")
    expected = extract_features(replace(options, store=alone.url))["features"]["teacher"]
    drivers = [subprocess.Popen(arguments(store, options), stdout=subprocess.PIPE, text=True) for _ in range(2)]
    lines = [driver.communicate(timeout=120)[0].splitlines() for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0]
    keys = {json.loads(said[-1])["features"]["teacher"] for said in lines}
    assert len(keys) == 1
    reader = store.features(keys.pop())
    assert reader.complete
    for shard in range(reader.shards):
        reader.group.verify(shard)
    assert len(store.objects.names(f"features/{reader.key}/commits")) == reader.shards == 24
    for ours, theirs in zip(tokens(store, reader.key), tokens(alone, expected), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.long)])
def test_a_scheduler_that_stops_the_command_finds_whole_shards_after_a_moment(photos: Any, workers: int) -> None:
    store, options, _ = photos
    child = subprocess.Popen(arguments(store, options, workers), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None
    for line in child.stdout:
        if '"extract ' in line:
            break
    began = time.perf_counter()
    child.terminate()
    _, said = child.communicate(timeout=20)
    assert time.perf_counter() - began < 10
    if child.returncode == 0:
        pytest.skip("it was done before the signal came")
    assert child.returncode == 2
    assert "every shard that was committed stays" in said
    reader = store.features(store.list_features()[0])
    for shard in reader.group.committed():
        reader.group.verify(shard)
    extract_features(replace(options, images_per_shard=1, statistics_batches=None))
    assert reader.complete
