"""Leases of jobs: who reads or writes a set is known to prune and to runs that follow, and is forgotten when the job ends."""

import contextlib
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from eupe_pipeline.jobs.runs.reading_leases import EXTRACTION, extractors, leases
from eupe_pipeline.storage.core.errors import BadInput, StoreUnavailable
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.upkeep.leases import Lease, holders
from eupe_pipeline.storage.upkeep.maintenance import prune


@pytest.fixture
def store(tiny_store: Any, tmp_path: Path) -> FeatureStore:
    shutil.copytree(tiny_store.store.url, tmp_path / "store")
    return FeatureStore.open(str(tmp_path / "store"))


def key_of(store: FeatureStore) -> str:
    return store.features("tiny-int8").key


def test_a_set_is_leased_while_the_job_runs_and_free_after_it(store: FeatureStore) -> None:
    key = key_of(store)
    with leases(store, [key, key], "train-one", print):
        assert len(holders(store.objects, key)) == 1
        with pytest.raises(BadInput, match="is being read by train-one"):
            prune(store, key, dry_run=False)
    assert holders(store.objects, key) == []
    prune(store, key, dry_run=False)


def test_a_job_that_fails_gives_its_leases_back(store: FeatureStore) -> None:
    with pytest.raises(RuntimeError), leases(store, [key_of(store)], "train", print):
        raise RuntimeError("power cut")
    assert holders(store.objects, key_of(store)) == []


def test_leases_are_renewed_while_the_job_runs(store: FeatureStore) -> None:
    folder = Path(store.url) / "leases" / key_of(store)
    with leases(store, [key_of(store)], "train", print, renew_s=0.05):
        first = {path.name for path in folder.iterdir()}
        deadline = time.monotonic() + 10
        while {path.name for path in folder.iterdir()} <= first and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not {path.name for path in folder.iterdir()} <= first


def test_a_set_that_was_deleted_meanwhile_is_refused(store: FeatureStore) -> None:
    key = key_of(store)
    prune(store, key, dry_run=False)
    with pytest.raises(BadInput, match="was deleted"), leases(store, [key], "train", print):
        pass
    assert holders(store.objects, key) == []


def test_a_store_that_nobody_may_write_to_is_read_with_a_warning(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(key: str, buffers: Any) -> bool:
        raise StoreUnavailable("no permission to create")

    monkeypatch.setattr(store.objects, "create", refuse)
    said: list[dict[str, Any]] = []
    with leases(store, [key_of(store)], "train", said.append):
        assert [event["event"] for event in said] == ["warning"]


def test_a_store_that_nobody_may_write_to_gives_one_warning_for_all_sets(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(key: str, buffers: Any) -> bool:
        raise StoreUnavailable("no permission to create")

    monkeypatch.setattr(store.objects, "create", refuse)
    said: list[dict[str, Any]] = []
    with leases(store, store.list_features(), "train", said.append):
        assert len(said) == 1
        assert all(key in said[0]["text"] for key in store.list_features())


def test_an_extractor_of_this_machine_whose_process_is_gone_does_not_count(store: FeatureStore) -> None:
    key, child = key_of(store), os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            Lease(store.objects, key, f"{EXTRACTION}-here-1")
        os._exit(0)
    os.waitpid(child, 0)
    with Lease(store.objects, key, f"train-here-{os.getpid()}"):
        assert len(store.objects.names(f"leases/{key}")) == 2
        assert extractors(store, [key]) == []
        with Lease(store.objects, key, f"{EXTRACTION}-here-{os.getpid()}"):
            assert len(extractors(store, [key])) == 1
