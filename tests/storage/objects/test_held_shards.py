"""A reader in order of a remote store fetches whole objects into memory, bounded, once each, and hands over no unverified byte."""

import gc
import threading
import uuid
import weakref
from pathlib import Path

import numpy as np
import pytest
from eupe_pipeline.storage.core.errors import CacheDamaged
from eupe_pipeline.storage.features.features import FeatureReader
from eupe_pipeline.storage.objects.held_shards import HeldObjects
from eupe_pipeline.storage.objects.read_ahead import CONNECTIONS
from eupe_pipeline.storage.objects.remote import RemoteObjects
from eupe_pipeline.storage.shards.shards import ShardedGroup

from ..faulty_s3 import Fault, FaultyServer
from ..made_up_store import Made, build
from ..test_s3 import fully_committed, reopen_remote, shard_gets, wait_for

pytestmark = pytest.mark.fault


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The same set on this disk: 20 images, 40 rows, 5 shards of 8 rows. Read only."""
    return build(tmp_path_factory.mktemp("local"), images=20)


def uploaded(local: Made) -> Made:
    return fully_committed(local, RemoteObjects(f"s3://bucket/{uuid.uuid4().hex}"))


@pytest.fixture(scope="module")
def remote(server: FaultyServer, local: Made) -> Made:
    """The set on the server. Read only."""
    return uploaded(local)


@pytest.fixture(scope="module")
def compacted(server: FaultyServer, local: Made) -> Made:
    """The same with its records in ledgers. Read only."""
    made = uploaded(local)
    assert [group.compact() for group in (made.features.group, made.features.views.group)] == [1, 1]
    return made


def opened(made: Made, server: FaultyServer, cache: Path | None = None) -> FeatureReader:
    """Return a reader that has read nothing, and begin to count."""
    features = reopen_remote(made, cache).features
    server.faults.clear()
    server.seen.clear()
    return features


def check(features: FeatureReader, local: Made, *spans: tuple[int, int]) -> None:
    for first, last in spans:
        found, right = features.read(np.arange(first, last)), local.features.read(np.arange(first, last))
        np.testing.assert_array_equal(found.patch, right.patch)
        np.testing.assert_array_equal(found.scale, right.scale)
        np.testing.assert_array_equal(found.cls, right.cls)


def test_an_epoch_in_order_is_one_request_an_object_and_one_a_record(server: FaultyServer, remote: Made, local: Made) -> None:
    features = opened(remote, server)
    check(features, local, *((first, first + 4) for first in range(0, 40, 4)))
    assert shard_gets(server) == sorted(f"{name}/{shard}" for name in ("cls", "patch", "patch_scale") for shard in range(5))
    assert not [path for method, path in server.seen if method == "HEAD" and "/c." in path]
    records = [path for method, path in server.seen if "/commits/" in path and method == "GET"]
    assert len(records) == len(set(records)) == 10


@pytest.mark.parametrize("folder", [False, True], ids=["in memory", "in a folder"])
def test_the_records_of_a_compacted_set_are_no_requests_of_their_own(
    server: FaultyServer, compacted: Made, local: Made, folder: bool, tmp_path: Path
) -> None:
    features = opened(compacted, server, tmp_path / "cache" if folder else None)
    check(features, local, (0, 8))
    before = [path for _, path in server.seen if "/c." not in path]
    looked_for = [path for path in before if path.endswith(".json") and "/commits/" in path]
    assert len(looked_for) <= 2 * CONNECTIONS, "the first records of each group are looked for, and are in a ledger"
    assert len([path for path in before if ".records" in path]) == 2 * 2, "the length, and the records of 64 shards, of each group"
    check(features, local, (8, 16), (16, 40), (3, 17))
    assert [path for _, path in server.seen if "/c." not in path] == before
    gets = shard_gets(server)
    assert sorted(set(gets)) == sorted(f"{name}/{shard}" for name in ("cls", "patch", "patch_scale") for shard in range(5))
    assert len(gets) == 15 or not folder, "a shard is as many requests as it has arrays"


def test_a_record_beside_the_ledgers_counts(server: FaultyServer, local: Made) -> None:
    made = uploaded(local)
    group, objects = made.features.group, made.features.group.objects
    data = {shard: objects.read(f"{group.prefix}/commits/{shard:06d}.json") for shard in range(5)}
    group.compact()
    objects.create(f"{group.prefix}/discarded/000002", [b"{}"])
    objects.create(f"{group.prefix}/discarded/000003", [b"{}"])
    objects.create(f"{group.prefix}/commits/000003.json", [data[3]])
    again = opened(made, server).group
    found = {shard: again.record(shard) for shard in range(5)}
    assert {shard: None if record is None else record.to_bytes() for shard, record in found.items()} == {**data, 2: None}
    assert len([path for method, path in server.seen if method == "GET" and path.endswith("commits/000003.json")]) == 1


def test_a_reader_of_before_the_ledger_notices_what_was_discarded_from_it(server: FaultyServer, local: Made) -> None:
    made = uploaded(local)
    writer, reader = made.features.group, opened(made, server).group
    assert reader.record(0) is not None
    writer.compact()
    writer.objects.create(f"{writer.prefix}/discarded/000002", [b"{}"])
    assert [reader.record(shard) is None for shard in range(5)] == [False, False, True, False, False]


def test_few_rows_are_read_row_by_row(server: FaultyServer, remote: Made, local: Made) -> None:
    features = opened(remote, server)
    check(features, local, (9, 10), (33, 34))
    found = features.read(np.array([39, 1, 17]))
    np.testing.assert_array_equal(found.patch, local.features.read(np.array([39, 1, 17])).patch)
    assert isinstance(features._objects, HeldObjects)
    assert len(features._objects._held) == 0


def test_what_is_held_stays_within_its_bytes(server: FaultyServer, remote: Made, local: Made) -> None:
    features = opened(remote, server)
    holder = features._objects
    assert isinstance(holder, HeldObjects)
    sizes = [entry.bytes for entry in local.features.group.record(0).objects.values()]  # type: ignore[union-attr]
    holder._held.limit = 2 * sum(sizes)
    most = 0
    for first in range(0, 40, 2):
        check(features, local, (first, first + 2))
        most = max(most, sum(len(held.data) for held in list(holder._held._values.values())))
    assert most <= 2 * sum(sizes)
    check(features, local, (0, 40))
    assert len(holder._spare._spare) > 0, "memory of dropped objects is used again"


@pytest.mark.parametrize("fault", [Fault(keep=100), Fault(status=503), Fault(reset=True)])
def test_a_body_that_ends_early_is_fetched_again(server: FaultyServer, remote: Made, local: Made, fault: Fault) -> None:
    features = opened(remote, server)
    features.group.record(0)
    features.views.group.record(0)
    server.fail("GET", fault)
    check(features, local, (0, 8))
    assert server.faults == []


def test_damage_is_named_and_never_handed_over(server: FaultyServer, local: Made) -> None:
    features = opened(uploaded(local), server)
    objects = features.group.objects
    key = f"features/{features.key}/{features.group.specs['patch'].key(2)}"
    data = bytearray(objects.read(key))
    data[len(data) // 3] ^= 1
    objects.replace(key, bytes(data))
    check(features, local, (0, 8), (8, 16))
    with pytest.raises(CacheDamaged, match=r"shard 2 .* is damaged"):
        features.read(np.arange(16, 24))
    check(features, local, (24, 40))
    data[len(data) // 3] ^= 1
    objects.replace(key, bytes(data))
    check(features, local, (16, 24))


def test_the_next_shards_come_while_one_is_read(server: FaultyServer, remote: Made, local: Made) -> None:
    features = opened(remote, server)
    check(features, local, (0, 4))
    wait_for(lambda: {name[-1] for name in shard_gets(server)} >= {"1", "2"})
    check(features, local, (4, 40))
    gets = shard_gets(server)
    assert len(gets) == len(set(gets))


def test_a_reader_in_the_middle_reads_ahead_once_it_goes_on(server: FaultyServer, remote: Made, local: Made) -> None:
    features = opened(remote, server)
    check(features, local, (8, 12))
    assert {name[-1] for name in shard_gets(server)} == {"1"}
    check(features, local, (12, 16), (16, 20))
    wait_for(lambda: {name[-1] for name in shard_gets(server)} >= {"3", "4"})


def test_what_is_in_a_ledger_takes_three_round_trips_and_no_request_twice(server: FaultyServer, compacted: Made, local: Made) -> None:
    features = opened(compacted, server)
    check(features, local, (0, 4))
    of_records = [(method, path) for method, path in server.seen if "/c." not in path]
    assert len(of_records) == len(set(of_records)) == 2 * 5, (
        "of each group: its folder, its ledgers, a ledger's index, the length of its records, 64 records"
    )


def test_readers_that_are_dropped_leave_neither_threads_nor_memory(server: FaultyServer, remote: Made, local: Made) -> None:
    of_others = fetching_threads()
    features = opened(remote, server)
    check(features, local, *((first, first + 4) for first in range(0, 40, 4)))
    assert fetching_threads() - of_others
    objects = weakref.ref(features._objects)
    del features
    gc.collect()
    wait_for(lambda: not fetching_threads() - of_others)
    assert objects() is None


def fetching_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("fetch-")}


def test_announced_rows_are_held_where_they_are_dense(server: FaultyServer, remote: Made, local: Made) -> None:
    features = opened(remote, server)
    features.prefetch(np.array([1, 9, 17, *range(32, 40)]))
    wait_for(lambda: len(shard_gets(server)) == 3)
    assert features.group._read_ahead is not None
    features.group._read_ahead.wait_for(4)
    assert {name[-1] for name in shard_gets(server)} == {"4"}
    check(features, local, (32, 40))
    assert len(shard_gets(server)) == 3


def test_two_sets_read_side_by_side_are_one_request_an_object(server: FaultyServer, local: Made) -> None:
    """In the memory that one set's shards ahead take alone."""
    made = [opened(uploaded(local), server) for _ in range(2)]
    objects = made[0].group.objects
    assert isinstance(objects, HeldObjects)
    size = sum(spec.row_bytes for spec in made[0].group.specs.values()) * 8
    shared = HeldObjects(objects.url.rpartition("/")[0], limit_bytes=26 * size)
    groups = [replace_objects(features, shared) for features in made]
    server.seen.clear()
    for first in range(0, 40, 4):
        for group in groups:
            rows = np.arange(first, first + 4)
            out = local.features.empty(4)
            group.read(rows, ("patch",), {"patch": out.patch})
            np.testing.assert_array_equal(out.patch, local.features.read(rows).patch)
    assert sorted(shard_gets(server)) == sorted([f"patch/{shard}" for shard in range(5)] * 2)


def replace_objects(features: FeatureReader, shared: HeldObjects) -> ShardedGroup:
    """Return the set's group in a store that holds several of them."""
    group = features.group
    return ShardedGroup(shared, f"{group.objects.url.rpartition('/')[2]}/{group.prefix}", group.group_digest, list(group.specs.values()))


def test_arrays_that_are_read_in_turn_each_go_on_in_order(server: FaultyServer, remote: Made, local: Made) -> None:
    features = opened(remote, server)
    group = features.group
    for first in range(0, 40, 4):
        rows, out = np.arange(first, first + 4), local.features.empty(4)
        right = local.features.read(rows)
        assert out.scale is not None
        group.read(rows, ("patch",), {"patch": out.patch})
        group.read(rows, ("patch_scale",), {"patch_scale": out.scale})
        np.testing.assert_array_equal(out.patch, right.patch)
        np.testing.assert_array_equal(out.scale, right.scale)
    assert shard_gets(server) == sorted(f"{name}/{shard}" for name in ("patch", "patch_scale") for shard in range(5))


def test_a_second_epoch_reads_ahead_as_the_first(server: FaultyServer, remote: Made, local: Made) -> None:
    features = opened(remote, server)
    check(features, local, *((first, first + 8) for first in range(0, 40, 8)))
    server.seen.clear()
    check(features, local, (0, 4))
    wait_for(lambda: {f"patch/{shard}" for shard in (1, 2, 3)} <= set(shard_gets(server)))


def test_a_shard_that_is_removed_while_it_is_read_is_named(server: FaultyServer, local: Made) -> None:
    made = uploaded(local)
    features = opened(made, server)
    check(features, local, (9, 10))
    made.features.group.objects.remove(f"{made.features.group.prefix}/{features.group.specs['patch'].key(1)}")
    with pytest.raises(CacheDamaged, match=r"shard 1 of features/.* was removed while it was read"):
        features.read(np.array([9]))
