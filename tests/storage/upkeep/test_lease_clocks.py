"""Leases of machines whose clocks are wrong: the store's own clock judges, so no live one is taken and no dead one stays."""

import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import fsspec
import pytest
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.objects.dry_run_objects import DryRunObjects
from eupe_pipeline.storage.objects.objects import LocalObjects
from eupe_pipeline.storage.objects.remote import RemoteObjects
from eupe_pipeline.storage.upkeep import leases
from eupe_pipeline.storage.upkeep.leases import Lease, drop_expired, holders
from eupe_pipeline.storage.upkeep.maintenance import prune

from ..made_up_store import Made, files

KEY = "set@0123456789ab"
HOUR = 3600.0
TRUE_TIME = time.time
SKEWS = [-400 * 24 * HOUR, -26 * HOUR, -3 * HOUR, -3599.0, -60.0, 0.0, 60.0, 3 * HOUR, 26 * HOUR, 400 * 24 * HOUR]


def skewed(hours_s: float) -> Callable[[], float]:
    return lambda: TRUE_TIME() + hours_s


@pytest.fixture(autouse=True)
def another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases whose process cannot be judged from here."""
    monkeypatch.setattr(leases, "this_process", lambda: {"boot": "another machine's", "pid_namespace": "pid:[1]", "pid": 1, "started": 1})


def age(folder: Path, seconds: float) -> None:
    """Let a store's leases have been written so long ago by the store's clock."""
    for path in folder.glob("leases/*/*.json"):
        os.utime(path, (TRUE_TIME() - seconds, TRUE_TIME() - seconds))


@pytest.mark.fault(35, "right")
@pytest.mark.parametrize("skew_s", SKEWS)
def test_a_live_lease_of_a_machine_with_a_wrong_clock_is_respected_and_a_dead_one_ends(skew_s: float, copied: Callable[[], Made]) -> None:
    made = copied()
    store, key = made.store, made.features.key
    lease = Lease(store.objects, key, "far", clock=skewed(skew_s))
    with pytest.raises(BadInput, match=r"being read by far-[0-9a-f]{8}; .* \(in 60 min at the latest"):
        prune(store, key, dry_run=False)
    age(made.folder, HOUR - 90)
    with pytest.raises(BadInput, match=r"in 2 min at the latest"):
        prune(store, key, dry_run=False)
    lease._clock = skewed(skew_s + HOUR)
    lease.renew()
    age_after_renewal = [path.stat().st_mtime for path in made.folder.glob("leases/*/*.json")]
    assert len(age_after_renewal) == 1
    assert time.time() - age_after_renewal[0] < 60
    age(made.folder, HOUR + 1)
    assert holders(store.objects, key) == []
    assert prune(store, key, dry_run=False)
    assert store.list_features() == []
    assert files(made.folder / "leases") == []
    assert files(made.folder / "probes") == []


@pytest.mark.fault(35, "right")
@pytest.mark.parametrize("skew_s", SKEWS)
def test_the_clock_of_the_machine_that_prunes_does_not_matter(skew_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = LocalObjects(tmp_path)
    Lease(objects, KEY, "far")
    monkeypatch.setattr(time, "time", skewed(skew_s))
    assert len(holders(objects, KEY)) == 1
    age(tmp_path, HOUR + 1)  # by the store's clock, which is the true one
    assert holders(objects, KEY) == []
    drop_expired(objects, KEY)
    assert objects.names(f"leases/{KEY}") == []


@pytest.mark.fault(35, "right")
@pytest.mark.parametrize("skew_s", SKEWS)
def test_in_an_object_store_the_servers_times_count(skew_s: float) -> None:
    filesystem = fsspec.filesystem("memory")
    objects = RemoteObjects("memory://clocks")
    with Lease(objects, KEY, "far", clock=skewed(skew_s)):
        assert len(holders(objects, KEY)) == 1
        (name,) = objects.names(f"leases/{KEY}")
        filesystem.store[f"/clocks/leases/{KEY}/{name}"].modified = datetime.fromtimestamp(time.time() - HOUR - 1, UTC)
        assert holders(objects, KEY) == []
    assert objects.names("probes") == []


def test_a_file_from_a_future_beyond_a_day_does_not_hold_a_set_for_ever(tmp_path: Path) -> None:
    objects = LocalObjects(tmp_path)
    Lease(objects, KEY, "far")
    age(tmp_path, -20 * HOUR)
    assert len(holders(objects, KEY)) == 1
    age(tmp_path, -30 * HOUR)
    assert holders(objects, KEY) == []


def test_without_the_stores_clock_this_machines_is_taken(tmp_path: Path) -> None:
    objects = LocalObjects(tmp_path)
    Lease(objects, KEY, "far")
    dry = DryRunObjects(objects)
    assert len(holders(dry, KEY)) == 1
    age(tmp_path, HOUR + 1)
    assert holders(dry, KEY) == []
    assert not (tmp_path / "probes").exists()


def test_leases_written_before_they_said_how_long_they_last_last_an_hour(tmp_path: Path) -> None:
    objects = LocalObjects(tmp_path)
    objects.create(f"leases/{KEY}/old-{int(time.time()) + 3600}.json", [b'{"process":{}}'])
    assert holders(objects, KEY) == ["old"]
    age(tmp_path, HOUR + 1)
    assert holders(objects, KEY) == []
