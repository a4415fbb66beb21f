"""Training beside an extraction: the same run as after it, stopped and resumed at any time, and clear words when nobody extracts."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eupe_pipeline.jobs.extraction.extract import extract_features
from eupe_pipeline.jobs.runs.reading_leases import EXTRACTION
from eupe_pipeline.jobs.training.data import Part, run_order
from eupe_pipeline.storage.core.errors import BadInput, CacheMismatch, Interrupted, StoreUnavailable
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.upkeep.leases import Lease, holders
from eupe_pipeline.storage.upkeep.maintenance import prune
from eupe_pipeline.student.data.following import FollowedOrder, instead_of_failed
from eupe_pipeline.student.model.recipe import DataConfig

from ..training_request import train
from .test_train import RECIPE, losses

FOLLOWING = replace(RECIPE, data=DataConfig(order="shards", window_shards=1), run=replace(RECIPE.run, steps=12))


def run(store: FeatureStore, out: Path, **more: Any) -> dict[str, Any]:
    return train(more.pop("recipe", FOLLOWING), store, ["teacher"], data="photos", out=out, **{"follow_s": 60.0, **more})


def begun(photos: Any) -> tuple[FeatureStore, Any, str]:
    """A store whose extraction was stopped after the shard that a run needs first."""
    store, options, _ = photos
    key = extract_features(options)["features"]["teacher"]
    reader = store.features(key)
    order = run_order(
        replace(FOLLOWING, data=replace(FOLLOWING.data, replace_failed=True)), [Part("photos", 1.0, {"teacher": reader})], store, 1
    )
    needed = int(order.batch(0, 6).row_B[0]) // reader.group.shard_rows
    for shard in set(range(reader.shards)) - {needed}:
        reader.group.discard(shard)
    return FeatureStore.open(store.url), options, key


def test_a_run_waits_for_its_extraction_and_is_the_run_that_had_not_to_wait(photos: Any, tmp_path: Path) -> None:
    store, options, _ = begun(photos)
    waits: list[dict[str, Any]] = []
    extraction = threading.Thread(target=extract_features, args=(options,))

    def on_event(event: dict[str, Any]) -> None:
        if event["event"] == "progress":
            waits.append(event)
            if len(waits) == 1:
                extraction.start()

    run(store, tmp_path / "followed", on_event=on_event)
    extraction.join()
    assert waits[0]["stage"] == "wait for the extraction"
    assert (waits[0]["done"], waits[0]["total"], waits[0]["unit"]) == (1, 3, "shards")
    run(FeatureStore.open(store.url), tmp_path / "after")
    assert losses(tmp_path / "followed") == losses(tmp_path / "after")


def test_a_run_that_is_stopped_while_it_waits_keeps_its_steps_and_goes_on(photos: Any, tmp_path: Path) -> None:
    store, options, _ = begun(photos)

    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "progress":
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="stopped after step"):
        run(store, tmp_path / "run", on_event=stop)
    extract_features(options)
    assert run(FeatureStore.open(store.url), tmp_path / "run")["resumed_from"] == 1  # 8 images of the first shard, 6 a step
    run(FeatureStore.open(store.url), tmp_path / "whole")
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_without_an_extraction_the_wait_ends_with_what_to_do(photos: Any, tmp_path: Path) -> None:
    store, _, key = begun(photos)
    with pytest.raises(StoreUnavailable, match=rf"2 of 3 shards of {key} are not there.*has ended or died.*extract-features"):
        run(store, tmp_path / "run", follow_s=0.0)
    with (
        Lease(store.objects, key, f"{EXTRACTION}-elsewhere-1"),
        pytest.raises(StoreUnavailable, match=r"nothing new has come for \d+ s from"),
    ):
        run(store, tmp_path / "run", follow_s=0.0)


def test_a_run_may_be_started_before_its_extraction(photos: Any, tmp_path: Path) -> None:
    store, options, _ = photos
    extraction = threading.Thread(target=extract_features, args=(options,))
    notes: list[str] = []

    def on_event(event: dict[str, Any]) -> None:
        if event["event"] == "note":
            notes.append(event["text"])
            extraction.start()

    run(store, tmp_path / "run", on_event=on_event)
    extraction.join()
    assert notes == ["waiting for an extraction to begin teacher over photos"]
    with pytest.raises(StoreUnavailable, match="no extraction has begun another over photos"):
        train(FOLLOWING, store, ["another"], data="photos", out=tmp_path / "none", follow_s=0.0)


def test_a_followed_run_goes_on_only_as_one(photos: Any, tmp_path: Path) -> None:
    store, options, _ = photos
    extract_features(options)
    run(store, tmp_path / "run")
    with pytest.raises(CacheMismatch, match=r"data\.replace_failed: got False, wanted True"):
        run(store, tmp_path / "run", follow_s=None)


def test_missing_shards_without_follow_name_the_ways_out(photos: Any, tmp_path: Path) -> None:
    store, _, _ = begun(photos)
    with pytest.raises(BadInput, match=r"2 of 3 shards are missing.*--follow or --on-miss compute"):
        run(store, tmp_path / "run", follow_s=None)


def test_an_image_without_tokens_gives_its_place_to_the_next_of_the_batch(tiny_store: Any) -> None:
    reader = tiny_store.features("tiny-gaps")
    recipe = replace(RECIPE, data=DataConfig(replace_failed=True))
    order = run_order(recipe, [Part("photos", 1.0, {"t": reader})], tiny_store.store, 1.0)
    assert isinstance(order, FollowedOrder)
    replaced = 0
    for step in range(12):
        before, after = order.order.batch(step, 6), order.batch(step, 6)
        replaced += int((before.image_B == 5).sum())
        assert 5 not in after.image_B
        assert set(after.image_B.tolist()) == set(before.image_B.tolist()) - {5}
        parts = [order.batch(step, 6, rank, 4).row_B for rank in range(4)]
        assert np.array_equal(np.concatenate(parts), after.row_B)
    assert replaced == 3  # twelve batches of six are three epochs


def test_the_next_place_goes_around_the_end_and_a_batch_without_any_is_refused() -> None:
    assert instead_of_failed(np.array([False, True, True, False, True])).tolist() == [0, 3, 3, 3, 0]
    with pytest.raises(BadInput, match="all of them failed"):
        instead_of_failed(np.array([True, True]))


RUN = """
import sys
from eupe_pipeline.storage.store import FeatureStore
from tests.jobs.training.test_train import RECIPE
from tests.jobs.training_request import train
train(RECIPE, FeatureStore.open(sys.argv[1]), ["teacher"], data="photos", out=__import__("pathlib").Path(sys.argv[2]), follow_s=60.0)
"""


def test_prune_waits_for_a_run_in_another_process(photos: Any, tmp_path: Path) -> None:
    store, options, key = begun(photos)
    root = Path(__file__).parents[3]
    process = subprocess.Popen([sys.executable, "-c", RUN, store.url, str(tmp_path / "run")], cwd=root, stderr=subprocess.PIPE)
    try:
        while not holders(store.objects, key) and process.poll() is None:
            time.sleep(0.05)
        with pytest.raises(BadInput, match=f"{key} is being read by train-run-"):
            prune(store, key, dry_run=False)
        extract_features(options)
        assert process.wait(120) == 0, process.stderr and process.stderr.read()
    finally:
        process.kill()
        process.communicate()
    prune(store, key, dry_run=False)
    assert store.list_features() == []
