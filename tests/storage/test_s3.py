"""The store on S3: a real server over HTTP, with every way that a network and a busy bucket fail (FAULTS 10–12, 27)."""

import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from eupe_pipeline.storage.core.checksums import xxh3_128
from eupe_pipeline.storage.core.errors import BadInput, CacheDamaged, StoreUnavailable
from eupe_pipeline.storage.objects import remote, shard_cache
from eupe_pipeline.storage.objects.remote import TRIES, RemoteObjects, retry
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.upkeep.leases import Lease, holders
from eupe_pipeline.storage.upkeep.maintenance import prune

from ..fault_log import Trials
from .faulty_s3 import SECRETS, Fault, FaultyServer
from .made_up_store import Made, build, commit, everything, plan, reopen, same, tokens

pytestmark = pytest.mark.fault


@pytest.fixture
def s3(server: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[FaultyServer, RemoteObjects]]:
    monkeypatch.setattr(remote, "_MIN_WAIT_S", 0.001)
    server.faults.clear()
    server.seen.clear()
    yield server, RemoteObjects(f"s3://bucket/{uuid.uuid4().hex}")
    assert server.faults == []


def test_the_contract_of_objects_holds(s3: tuple[FaultyServer, RemoteObjects]) -> None:
    _, objects = s3
    assert objects.create("a/b", [b"one", memoryview(b" two")])
    assert not objects.create("a/b", [b"other"])
    assert objects.read("a/b") == b"one two"
    assert (objects.size("a/b"), objects.size("a/c")) == (7, None)
    objects.create("a/c/d", [b"."])
    assert objects.names("a") == ["b", "c"]
    assert objects.names("none") == []
    part = bytearray(3)
    objects.open("a/b").read_into([memoryview(part)], 4)
    assert part == b"two"
    with pytest.raises(CacheDamaged):
        objects.open("a/b").read_into([memoryview(bytearray(9))], 4)
    with pytest.raises(CacheDamaged, match="7 bytes"):
        objects.read("a/b", 6)
    with pytest.raises(FileNotFoundError):
        objects.read("none")
    objects.remove("a/b")
    objects.remove("a/b")
    assert objects.create("a/b", [b"new"])


PASSING = [
    Fault(status=503),
    Fault(status=503, code=b"ServiceUnavailable"),
    Fault(status=500, code=b"InternalError"),
    Fault(status=409, code=b"ConditionalRequestConflict"),
    Fault(reset=True),
]


@pytest.mark.parametrize("fault", PASSING, ids=lambda fault: str(fault.status or "reset"))
@pytest.mark.parametrize("times", [1, TRIES - 1])
def test_failures_that_pass_are_survived(s3: tuple[FaultyServer, RemoteObjects], fault: Fault, times: int) -> None:
    server, objects = s3
    with Trials(10) as trials:
        server.fail("PUT", *[fault] * times)
        assert objects.create("x", [b"0123456789"])
        server.fail("GET", *[fault] * times)
        assert objects.read("x") == b"0123456789"
        trials.note("recovered", 2)
        if fault.status not in (409,):
            server.fail("HEAD", *[fault] * times)
            assert objects.size("x") == 10
            trials.note("recovered")


@pytest.mark.parametrize("keep", [0, 1, 5, 4096, 99_999])
def test_a_body_that_is_cut_anywhere_is_read_again(s3: tuple[FaultyServer, RemoteObjects], keep: int) -> None:
    server, objects = s3
    data = os.urandom(100_000)
    objects.create("x", [data])
    with Trials(10) as trials:
        server.fail("GET", Fault(keep=keep), Fault(keep=keep // 2))
        assert objects.read("x") == data
        server.fail("GET", Fault(keep=keep // 2))
        part = bytearray(50_000)
        objects.open("x").read_into([memoryview(part)], 7)
        assert part == data[7:50_007]
        trials.note("recovered", 2)


def test_a_bucket_that_is_not_there_is_said(s3: tuple[FaultyServer, RemoteObjects]) -> None:
    with pytest.raises(StoreUnavailable, match="make the bucket first"):
        RemoteObjects("s3://no-such-bucket/store").create("x", [b"1"])


def test_giving_up_names_the_key_and_the_tries_and_no_secret(s3: tuple[FaultyServer, RemoteObjects]) -> None:
    server, objects = s3
    for verb, method in (("read", "GET"), ("create", "PUT")):
        server.fail(method, *[Fault(status=503)] * TRIES)
        with pytest.raises(StoreUnavailable, match=rf"{verb} s3://bucket/.*/some/key failed {TRIES} times") as raised:
            objects.read("some/key") if verb == "read" else objects.create("some/key", [b"."])
        assert not [secret for secret in SECRETS.values() if secret in str(raised.value)]


def test_a_refused_permission_is_not_tried_again(s3: tuple[FaultyServer, RemoteObjects]) -> None:
    server, objects = s3
    server.fail("PUT", Fault(status=403, code=b"AccessDenied"))
    with pytest.raises(StoreUnavailable, match="no permission to create x"):
        objects.create("x", [b"."])
    assert [method for method, _ in server.seen] == ["PUT"]


def test_a_lost_reply_is_neither_a_false_conflict_nor_a_false_success(s3: tuple[FaultyServer, RemoteObjects], tmp_path: Path) -> None:
    """The put succeeded, nobody heard: the writer finds its own object, compares, and goes on; the store is as if nothing had happened."""
    server, objects = s3
    assert_same = build(tmp_path / "plain", images=5)
    made = remote_copy(assert_same, objects)
    for shard, lost in ((0, 3), (1, 7), (1, 0)):
        server.fail("PUT", *[None] * lost, Fault(lose_reply=True))
        commit(made, shard)
        commit(made, shard)
        server.faults.clear()
    assert same(everything(reopen_remote(made)), everything(assert_same))


@pytest.mark.parametrize("lost", [4, 5, 7])
def test_a_lost_reply_at_any_put_of_a_fresh_shard(s3: tuple[FaultyServer, RemoteObjects], tmp_path: Path, lost: int) -> None:
    server, objects = s3
    local = build(tmp_path / "plain", images=4)
    made = remote_copy(local, objects)
    server.fail("PUT", *[None] * lost, Fault(lose_reply=True))
    commit(made, 0)
    assert server.faults == []
    assert same(everything(reopen_remote(made)), everything(local))


def remote_copy(made: Made, objects: RemoteObjects) -> Made:
    """The same plan in a new remote store, without any shard."""
    dataset, views, features = made.dataset.key, made.views.key, made.features.key
    for prefix in ("", f"datasets/{dataset}", f"views/{views}", f"features/{features}"):
        for path in sorted(Path(made.store.url, prefix).rglob("*.json" if prefix else "eupe-store.json")):
            if "commits" not in path.parts:
                objects.create(str(path.relative_to(made.store.url)), [path.read_bytes()])
    for path in [*Path(made.store.url).rglob("*.parquet"), *Path(made.store.url).rglob("statistics/*/c.0")]:
        objects.create(str(path.relative_to(made.store.url)), [path.read_bytes()])
    return reopen_remote(made._replace(store=FeatureStore.open(objects.url)))


def reopen_remote(made: Made, cache: Path | None = None) -> Made:
    store = FeatureStore.open(made.store.url, shard_cache=cache)
    features = store.features(made.features.key)
    return Made(store, features.views.dataset, features.views, features)


def test_every_commit_is_seen_by_the_next_listing_of_another_reader(s3: tuple[FaultyServer, RemoteObjects], tmp_path: Path) -> None:
    _, objects = s3
    writer = remote_copy(build(tmp_path, images=12), objects)
    reader = reopen_remote(writer)
    for shard in range(writer.features.shards):
        assert reader.features.missing_shards() == list(range(shard, writer.features.shards))
        commit(writer, shard)


def test_writers_that_meet_on_s3_agree(s3: tuple[FaultyServer, RemoteObjects], tmp_path: Path) -> None:
    _, objects = s3
    one = remote_copy(plan_with_shards(tmp_path), objects)
    other = reopen_remote(one)
    first = commit(one, 0)
    assert other.features.commit_shard(0, tokens(other.features, 0), {}, first.views_record) == first


def plan_with_shards(folder: Path) -> Made:
    return plan(folder, images=8)


def test_a_shard_cache_reads_each_shard_once_and_right(s3: tuple[FaultyServer, RemoteObjects], tmp_path: Path) -> None:
    server, objects = s3
    local = build(tmp_path / "local", images=8)
    made = remote_copy(local, objects)
    for shard in range(made.features.shards):
        commit(made, shard)
    cached = reopen_remote(made, tmp_path / "cache")
    server.seen.clear()
    for _ in range(3):
        for row in range(16):
            found = cached.features.read(np.array([row]))
            np.testing.assert_array_equal(found.patch, local.features.read(np.array([row])).patch)
    shard_gets = [path for method, path in server.seen if method == "GET" and "/c." in path]
    assert len(shard_gets) == len(set(shard_gets)) == 3 * 2
    again = reopen_remote(made, tmp_path / "cache")
    server.seen.clear()
    again.features.read(np.arange(16))
    assert not [path for method, path in server.seen if "/c." in path and "statistics" not in path]


def shard_gets(server: FaultyServer) -> list[str]:
    """The shards, as "array/c.number", that were fetched whole, sorted."""
    paths = [path.split("?")[0] for method, path in server.seen if method == "GET" and "/c." in path and "statistics" not in path]
    return sorted(path.split("/", 4)[-1].rsplit("/", 2)[-2] + "/" + path.rsplit("/", 1)[-1].split(".")[1] for path in paths)


def fully_committed(local: Made, objects: RemoteObjects) -> Made:
    made = remote_copy(local, objects)
    for shard in range(made.features.shards):
        commit(made, shard)
    return made


def test_the_next_shards_are_fetched_while_a_reader_goes_from_shard_to_shard(
    s3: tuple[FaultyServer, RemoteObjects], tmp_path: Path
) -> None:
    server, objects = s3
    local = build(tmp_path / "local", images=20)
    cached = reopen_remote(fully_committed(local, objects), tmp_path / "cache").features
    server.seen.clear()
    cached.read(np.array([8 * 3]))
    assert {name[-1] for name in shard_gets(server)} == {"3"}, "one shard is no order"
    server.seen.clear()
    for shard in (0, 1):
        np.testing.assert_array_equal(cached.read(np.array([8 * shard])).patch, local.features.read(np.array([8 * shard])).patch)
    wait_for(lambda: {name[-1] for name in shard_gets(server)} == {"0", "1", "2", "4"})
    assert cached.group._read_ahead is not None
    cached.group._read_ahead.wait_for(2)
    cached.group._read_ahead.wait_for(4)
    np.testing.assert_array_equal(cached.read(np.arange(40)).patch, local.features.read(np.arange(40)).patch)
    fetched = shard_gets(server)
    assert len(fetched) == len(set(fetched))
    records = [path for method, path in server.seen if "/commits/" in path]
    assert len(records) == len(set(records)) == 8, "one request a record, the tokens' and the views'"


def wait_for(met: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not met():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_round_trips_are_made_side_by_side(s3: tuple[FaultyServer, RemoteObjects], tmp_path: Path) -> None:
    server, objects = s3
    local = build(tmp_path / "local", images=20)
    remote = reopen_remote(fully_committed(local, objects)).features
    rows = np.arange(0, 40, 4)
    remote.read(rows)  # opens the shards
    server.seen.clear()
    remote.read(rows)
    gets, seconds = [method for method, _ in server.seen], []
    assert len(gets) >= 20
    for threads in (1, None):
        server.fail("GET", *[Fault(stall_s=0.1)] * len(gets))
        start = time.perf_counter()
        found = remote.read(rows, threads=threads)
        seconds.append(time.perf_counter() - start)
        assert server.faults == [], "as many requests by one thread as by many: a chunk that rows share is read once"
        np.testing.assert_array_equal(found.patch, local.features.read(rows).patch)
    assert seconds[1] < seconds[0] / 2, seconds


def test_rows_that_are_expected_are_at_hand_when_they_are_read_even_when_their_copies_were_dropped(
    s3: tuple[FaultyServer, RemoteObjects], tmp_path: Path
) -> None:
    server, objects = s3
    local = build(tmp_path / "local", images=20)
    cached = reopen_remote(fully_committed(local, objects), tmp_path / "cache").features
    assert cached.group._read_ahead is not None
    for _ in range(2):
        server.seen.clear()
        cached.prefetch(np.array([33, 9, 8, 34]))
        wait_for(lambda: {name[-1] for name in shard_gets(server)} == {"1", "4"})
        cached.group._read_ahead.wait_for(1)
        cached.group._read_ahead.wait_for(4)
        fetched = shard_gets(server)
        np.testing.assert_array_equal(cached.read(np.array([33, 9])).patch, local.features.read(np.array([33, 9])).patch)
        assert shard_gets(server) == fetched
        assert len(fetched) == len(set(fetched))
        shutil.rmtree(tmp_path / "cache")  # as somebody who needs the space does


def test_a_body_that_ends_early_is_fetched_again(s3: tuple[FaultyServer, RemoteObjects], tmp_path: Path) -> None:
    server, objects = s3
    data = bytes(range(256)) * 20_000
    objects.create("large", [data])
    server.fail("GET", Fault(keep=1_500_000), Fault(keep=0), Fault(status=503))
    assert objects.download("large", tmp_path / "copy") == xxh3_128([data])
    assert (tmp_path / "copy").read_bytes() == data
    assert server.faults == []
    with pytest.raises(FileNotFoundError):
        objects.download("absent", tmp_path / "copy")


def test_a_full_shard_cache_drops_the_oldest_and_still_reads_right(s3: tuple[FaultyServer, RemoteObjects], tmp_path: Path) -> None:
    _, objects = s3
    local = build(tmp_path / "local", images=12)
    made = remote_copy(local, objects)
    for shard in range(made.features.shards):
        commit(made, shard)
    store = FeatureStore.open(made.store.url, shard_cache=tmp_path / "cache", shard_cache_bytes=8_000)
    features = store.features(made.features.key)
    rows = np.random.default_rng(0).integers(0, 24, 20)
    for row in rows:
        np.testing.assert_array_equal(features.read(rows[:1] * 0 + row).patch, local.features.read(rows[:1] * 0 + row).patch)
    assert sum(path.stat().st_size for path in (tmp_path / "cache").iterdir()) <= 8_000


def test_a_copy_that_outlived_a_crash_half_written_is_fetched_again(
    s3: tuple[FaultyServer, RemoteObjects], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, objects = s3
    local = build(tmp_path / "local", images=4)
    made = remote_copy(local, objects)
    commit(made, 0)
    reopen_remote(made, tmp_path / "cache").features.read(np.arange(8))
    copies = [path for path in (tmp_path / "cache").iterdir() if not path.name.startswith(".")]
    for path in copies:
        path.write_bytes(bytes(path.stat().st_size))
    monkeypatch.setattr(shard_cache, "_boot_time", lambda: time.time() + 1)
    found = reopen_remote(made, tmp_path / "cache").features.read(np.arange(8))
    np.testing.assert_array_equal(found.patch, local.features.read(np.arange(8)).patch)


def test_a_damaged_remote_object_never_enters_the_cache(s3: tuple[FaultyServer, RemoteObjects], tmp_path: Path) -> None:
    _, objects = s3
    made = remote_copy(build(tmp_path / "local", images=4), objects)
    commit(made, 0)
    key = f"features/{made.features.key}/patch/c.0.0.0.0"
    data = bytearray(objects.read(key))
    data[99] ^= 4
    objects.remove(key)
    objects.create(key, [bytes(data)])
    cached = reopen_remote(made, tmp_path / "cache")
    with pytest.raises(CacheDamaged, match="xxh3 differs"):
        cached.features.read(np.array([0]))


def test_final_errors_are_raised_at_once_and_others_a_bounded_number_of_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_MIN_WAIT_S", 0.0)
    calls: list[int] = []

    def failing(error: Exception) -> None:
        calls.append(1)
        raise error

    with pytest.raises(FileNotFoundError):
        retry("x", lambda: failing(FileNotFoundError()))
    with pytest.raises(OSError, match="full"):
        retry("x", lambda: failing(OSError(28, "full")))
    assert len(calls) == 2
    with pytest.raises(StoreUnavailable, match="x failed 6 times, the last time with TimeoutError"):
        retry("x", lambda: failing(TimeoutError()))
    assert len(calls) == 8


def test_a_lease_on_s3_keeps_a_set_from_prune_until_it_has_run_out(s3: tuple[FaultyServer, RemoteObjects], tmp_path: Path) -> None:
    _, objects = s3
    made, now = remote_copy(build(tmp_path, images=4), objects), [1000.0]
    with Lease(objects, made.features.key, "host/run 7", 60, lambda: now[0]) as lease:
        now[0] = 1050.0
        lease.renew()
        lease.renew()
        assert len(objects.names(f"leases/{made.features.key}")) == 1
        now[0] = 1100.0
        with pytest.raises(BadInput, match="is being read by host_run_7"):
            prune(made.store, made.features.key, dry_run=False, clock=lambda: now[0])
        now[0] = 1111.0
        assert holders(objects, made.features.key, lambda: now[0]) == []
    assert objects.names(f"leases/{made.features.key}") == []
    assert prune(made.store, made.features.key, dry_run=False, clock=lambda: now[0])
    assert made.store.list_features() == []


def test_the_servers_time_judges_the_lease_of_a_machine_whose_clock_is_wrong(
    s3: tuple[FaultyServer, RemoteObjects], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, objects = s3
    monkeypatch.setattr("eupe_pipeline.storage.upkeep.leases.this_process", dict)
    with Lease(objects, "set@0123456789ab", "far", clock=lambda: time.time() - 5 * 3600):
        (name,) = objects.names("leases/set@0123456789ab")
        assert abs((objects.modified(f"leases/set@0123456789ab/{name}") or 0) - time.time()) < 60
        assert len(holders(objects, "set@0123456789ab")) == 1
    assert objects.modified("none") is None
    with Lease(objects, "set@0123456789ab", "far", seconds=1, clock=lambda: time.time() + 5 * 3600):
        time.sleep(2.1)  # S3 counts whole seconds
        assert holders(objects, "set@0123456789ab") == []
    assert objects.names("probes") == []


def test_a_store_is_made_and_found_on_s3(s3: tuple[FaultyServer, RemoteObjects]) -> None:
    _, objects = s3
    with pytest.raises(BadInput, match="is not a feature store"):
        FeatureStore.open(objects.url)
    store = FeatureStore.create(objects.url)
    assert FeatureStore.create(objects.url).url == store.url
    assert store.list_features() == []


def test_a_reader_of_a_local_store_ignores_the_cache(tmp_path: Path) -> None:
    made = reopen(build(tmp_path, images=4))
    store = FeatureStore.open(made.store.url, shard_cache=tmp_path / "cache")
    store.features(made.features.key).read(np.arange(8))
    assert not (tmp_path / "cache").exists()
