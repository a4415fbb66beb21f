"""Workers on a cluster: lost nodes, actors that die, and what is neither."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eupe_pipeline.jobs.extraction.extract import extract_features
from eupe_pipeline.jobs.extraction.pool import MAX_TRIES, InProcess, RayActors
from eupe_pipeline.jobs.extraction.work_orders import WorkOrder
from eupe_pipeline.jobs.ray_session import ray_session
from eupe_pipeline.storage.core.errors import BadInput, EupeError
from eupe_pipeline.storage.images.indexing import build_index
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.views.view_set import ViewSet
from eupe_pipeline.teachers.registry.resolve import resolve_teacher

from ..actors import actor_pids
from ..conftest import tokens

pytestmark = pytest.mark.filterwarnings("default")


ROWS_OF_MINUTES = [0] * 200_000


def kill_actors(count: int) -> None:
    """Kill so many actors, one after another, each as soon as it works."""
    killed: set[int] = set()
    until = time.monotonic() + 120
    while len(killed) < count and time.monotonic() < until:
        for pid in actor_pids(b"ray::_Actor.do") - killed:
            os.kill(pid, signal.SIGKILL)
            killed.add(pid)
        time.sleep(0.05)


@pytest.fixture
def order(photos: Any) -> WorkOrder:
    store, options, _ = photos
    views = ViewSet.create(store.objects, store.dataset("photos"), options.views, options.images_per_shard)
    return WorkOrder(store.url, views.key, (resolve_teacher(options.teachers[0].name),), "cpu", 1, 8)


@pytest.mark.fault(6, "recovered")
def test_a_lost_node_costs_no_image_and_doubles_none(photos: Any) -> None:
    store, options, root = photos
    alone = FeatureStore.create(str(root / "alone"))
    build_index(alone.objects, str(root / "images"), "photos")
    expected = extract_features(replace(options, store=alone.url))
    script = [sys.executable, str(Path(__file__).parents[1] / "cluster_run.py"), store.url, options.teachers[0].name]
    done = subprocess.run(script, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["lost_at"]
    assert (summary["views_done"], summary["shards_missing"]) == (48, 0)
    reader = store.features(summary["features"]["teacher"])
    assert reader.complete
    assert len(store.objects.names(f"features/{reader.key}/commits")) == 24
    for ours, theirs in zip(tokens(store, reader.key), tokens(alone, expected["features"]["teacher"]), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.fixture(scope="class")
def ray() -> Iterator[Any]:
    with ray_session(cpus=2) as session:
        yield session


class TestActors:
    @pytest.mark.fault(6, "detected", MAX_TRIES)
    def test_a_task_that_kills_its_worker_each_time_ends_the_run_after_three_tries(self, ray: Any, order: WorkOrder) -> None:
        workers = RayActors(ray, order, 1)
        results = workers.run([("measure", (ROWS_OF_MINUTES, ["teacher"]))])
        killer = threading.Thread(target=kill_actors, args=(MAX_TRIES,))
        killer.start()
        with pytest.raises(EupeError, match=rf"failed {MAX_TRIES} times because its worker died.*--batch-size"):
            list(results)
        killer.join()
        assert workers.retries == MAX_TRIES
        workers.stop()

    def test_an_error_on_purpose_comes_back_with_its_own_text(self, ray: Any, order: WorkOrder) -> None:
        workers = RayActors(ray, replace(order, teachers=(replace(order.teachers[0], weights_path=Path("/nowhere")),)), 1)
        with pytest.raises(BadInput, match="/nowhere is not a file"):
            list(workers.run([("measure", ([0], ["teacher"]))]))
        workers.stop()

    @pytest.mark.long
    def test_more_workers_than_there_is_room_for_hold_up_nothing(self, ray: Any, order: WorkOrder) -> None:
        workers = RayActors(ray, order, 4)
        results = dict(workers.run([("measure", ([row], ["teacher"])) for row in range(6)]))
        assert sorted(results) == list(range(6))
        assert workers.retries == 0
        workers.stop()

    @pytest.mark.long
    def test_without_a_count_the_cluster_s_room_is_taken(self, ray: Any, order: WorkOrder) -> None:
        workers = RayActors(ray, order, None)
        results = workers.run([("measure", ([row], ["teacher"])) for row in range(6)])
        next(results)
        # Asked for, not at work: the first may have done all six tasks before the second has started.
        assert len(workers._ready) + len(workers._starting) == 2
        list(results)
        workers.stop()


def test_a_caller_who_has_had_enough_ends_the_work_of_this_process(order: WorkOrder) -> None:
    workers = InProcess(order)
    results = workers.run([("measure", ([row], ["teacher"])) for row in range(20)])
    next(results)
    results.close()  # type: ignore[attr-defined]
    with pytest.raises(EupeError, match="stopped between two batches"):
        workers._worker.measure([0], ["teacher"])


def test_an_error_of_one_task_ends_those_beside_it(order: WorkOrder) -> None:
    workers = InProcess(order)
    with pytest.raises(KeyError):
        list(workers.run([("measure", ([0], ["teacher"])), ("measure", ([0], ["nobody"])), ("measure", ([0], ["teacher"]))]))
