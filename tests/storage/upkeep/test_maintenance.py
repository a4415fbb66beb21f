"""Verify, repair, prune, copy, compact: damage is found and repaired, nothing that lives is lost (FAULTS 24, 26)."""

import contextlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from eupe_pipeline.storage.core.errors import BadInput, CacheDamaged
from eupe_pipeline.storage.objects.objects import Objects
from eupe_pipeline.storage.shards import ledger, shards
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.upkeep import maintenance
from eupe_pipeline.storage.upkeep.leases import Clock, Lease, holders
from eupe_pipeline.storage.upkeep.maintenance import prune, verify
from eupe_pipeline.storage.upkeep.repair_views import repair_views

from ...fault_log import Trials
from ..made_up_store import Made, build, commit, everything, files, plan, reopen, same, tokens


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in files(folder)}


def damage_shards(made: Made, random: np.random.Generator) -> set[int]:
    """Flip, cut or delete one file of one to three shards."""
    chosen = set(random.choice(made.features.shards, int(random.integers(1, 4)), replace=False).tolist())
    for shard in chosen:
        name = ["patch/c.{}.0.0.0", "cls/c.{}.0", "patch_scale/c.{}.0.0.0", "commits/00000{}.json"][random.integers(4)].format(shard)
        path = made.folder / "features" / made.features.key / name
        data = bytearray(path.read_bytes())
        data[random.integers(len(data))] ^= 1 << random.integers(8)
        how = random.integers(3) if "commits" not in name else 0
        path.unlink()
        if how < 2:
            path.write_bytes(bytes(data[:-1]) if how else bytes(data))
    return chosen


@pytest.mark.fault
def test_damaged_stores_are_repaired_and_only_the_damaged_shards_touched(pristine: Made, quick_disk: Path) -> None:
    shutil.copytree(pristine.folder, quick_disk / "store")
    made, random = reopen(pristine._replace(store=FeatureStore.open(str(quick_disk / "store")))), np.random.default_rng(1)
    before, right = contents(made.folder), everything(pristine)
    with Trials(26) as trials:
        for _ in range(100):
            chosen = damage_shards(made, random)
            damaged_contents = contents(made.folder)
            found = verify(reopen(made).features)
            assert {damage.shard for damage in found} == chosen
            assert contents(made.folder) == damaged_contents
            fresh = reopen(made)
            for shard in chosen:
                record = fresh.views.group.record(shard)
                assert record is not None
                fresh.features.repair_shard(shard, tokens(fresh.features, shard), {}, record.digest)
            assert contents(made.folder) == before
            trials.note("recovered")
    assert same(everything(reopen(made)), right)


def test_a_shard_from_other_views_is_found(copied: Callable[[], Made]) -> None:
    made = copied()
    made.features.group.discard(2)
    made.features.commit_shard(2, tokens(made.features, 2), {}, "0" * 64)
    (found,) = verify(reopen(made).features)
    assert (found.shard, found.reason) == (2, "it was made from other views than those that are committed now")
    with pytest.raises(CacheDamaged, match=r"shard 2 of .* was made from other views"):
        reopen(made).features.read(np.array([16]))
    made.views.group.discard(1)
    with pytest.raises(CacheDamaged, match=r"shard 1 of .* was made from other views"):
        reopen(made).features.read(np.array([8]))


def test_views_are_verified_and_redrawn_to_the_same_bytes(copied: Callable[[], Made]) -> None:
    made = copied()
    before = contents(made.folder)
    path = made.folder / "views" / made.views.key / "crop/c.1.0"
    path.write_bytes(b"\0" + path.read_bytes()[1:-1] + b"\1")
    fresh = reopen(made)
    assert [one.shard for one in verify(fresh.views)] == [1]
    repair_views(fresh.views, 1, set).write_to(fresh.views.group)
    assert contents(made.folder) == before
    assert verify(reopen(made).features) == []


def test_instalments_cover_every_shard_once(pristine: Made) -> None:
    seen: list[int] = []
    for part in range(1, 4):
        events: list[dict[str, object]] = []
        assert verify(pristine.features, (part, 3), events.append) == []
        seen.append(len(events))
    assert sum(seen) == pristine.features.shards
    for part_of in ((0, 3), (4, 3), (1, 0)):
        with pytest.raises(BadInput, match="does not exist"):
            verify(pristine.features, part_of)


def test_prune_deletes_what_the_dry_run_says_and_nothing_else(copied: Callable[[], Made]) -> None:
    made = copied()
    Lease(made.store.objects, made.features.key, "reader").release()
    killed = made.folder / "views" / made.views.key / "crop" / ".tmp-1-0-c.1.0"
    killed.write_bytes(b"half")
    before = contents(made.folder)
    would_go = prune(made.store, made.features.key, dry_run=True)
    assert contents(made.folder) == before
    os.utime(killed, (0, 0))
    assert prune(made.store, made.features.key, dry_run=False) == would_go
    assert set(before) - set(contents(made.folder)) - {str(killed.relative_to(made.folder))} == set(would_go)
    assert not killed.exists()
    assert would_go[0].endswith("identity.json")
    assert all(name.startswith(f"features/{made.features.key}/") for name in would_go)
    assert not (made.folder / "leases" / made.features.key).exists()
    assert made.store.view_set(made.views.key).rows == 40
    assert made.store.list_features() == []
    with pytest.raises(BadInput, match="has no feature set"):
        prune(made.store, "other@0123", dry_run=False)


def test_a_set_whose_writer_was_killed_a_moment_ago_is_gone_after_a_prune(copied: Callable[[], Made]) -> None:
    """Its unfinished file kept the folder for a day: the set was still listed, and each `verify` missed its identity."""
    made = copied()
    left = [made.folder / "features" / made.features.key / part / ".tmp-1-0-c.1" for part in ("patch", "commits", ".")]
    left.append(made.folder / "views" / made.views.key / ".tmp-1-0-c.1")
    for path in left:
        path.write_bytes(b"half")
    os.utime(left[0], (time.time() + 3600,) * 2)  # by a clock that is ahead
    prune(made.store, made.features.key, dry_run=False)
    assert made.store.list_features() == []
    assert not (made.folder / "features" / made.features.key).exists()
    assert left[-1].exists()  # of views that stay, somebody may be writing it


def test_what_an_extraction_writes_that_begins_during_a_prune_stays(copied: Callable[[], Made], monkeypatch: pytest.MonkeyPatch) -> None:
    made, taken = copied(), list[Lease]()
    left = made.folder / "features" / made.features.key / "patch" / ".tmp-1-0-c.1"
    left.write_bytes(b"half")

    def late(objects: Objects, key: str, clock: Clock | None) -> None:
        taken.append(Lease(objects, key, "extraction"))

    monkeypatch.setattr(maintenance, "drop_expired", late)
    prune(made.store, made.features.key, dry_run=False)
    assert left.exists()
    taken[0].release()


def test_a_prune_that_was_killed_leaves_nothing_readable_and_is_finished_later(
    copied: Callable[[], Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    for kill_at in (1, 2, 7, 12, 20):
        made = copied()
        going = prune(made.store, made.features.key, dry_run=True)
        real, count = made.store.objects.remove, iter(range(1000))

        def remove(key: str, count: object = count, real: Callable[[str], None] = real, kill_at: int = kill_at) -> None:
            if next(count) == kill_at:  # type: ignore[call-overload]
                raise KeyboardInterrupt
            real(key)

        monkeypatch.setattr(made.store.objects, "remove", remove)
        with pytest.raises(KeyboardInterrupt):
            prune(made.store, made.features.key, dry_run=False)
        store = FeatureStore.open(made.store.url)
        with pytest.raises(CacheDamaged, match=r"no identity\.json"):
            store.features(made.features.key)
        assert prune(store, made.features.key, dry_run=False) == going[kill_at:]
        assert not [path for path in files(made.folder) if made.features.key in path.parts]


def test_a_lease_protects_a_set_until_it_is_given_back_or_runs_out(copied: Callable[[], Made]) -> None:
    made, now = copied(), [1000.0]
    with Lease(made.store.objects, made.features.key, "host/run 7", 60, lambda: now[0]) as lease:
        for _ in range(3):
            with pytest.raises(BadInput, match="is being read by host_run_7"):
                prune(made.store, made.features.key, dry_run=False, clock=lambda: now[0])
            now[0] += 50
            lease.renew()
        assert len(made.store.objects.names(f"leases/{made.features.key}")) == 1
    assert holders(made.store.objects, made.features.key, lambda: now[0]) == []
    Lease(made.store.objects, made.features.key, "killed", 60, lambda: now[0])
    assert holders(made.store.objects, made.features.key, lambda: now[0])
    now[0] += 61
    prune(made.store, made.features.key, dry_run=False, clock=lambda: now[0])


def test_a_reader_that_comes_during_a_prune_keeps_its_set(copied: Callable[[], Made], monkeypatch: pytest.MonkeyPatch) -> None:
    made = copied()
    before = contents(made.folder)
    real = maintenance._deletion_order
    taken: list[Lease] = []

    def late(key: str) -> tuple[int, str]:
        if not taken:
            taken.append(Lease(made.store.objects, made.features.key, "late"))
        return real(key)

    monkeypatch.setattr(maintenance, "_deletion_order", late)
    with pytest.raises(BadInput, match="being read by late"):
        prune(made.store, made.features.key, dry_run=False)
    taken[0].release()
    assert contents(made.folder) == before


@pytest.fixture
def small_ledgers(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (ledger, shards):
        monkeypatch.setattr(module, "LEDGER_SHARDS", 3)


@pytest.mark.usefixtures("small_ledgers")
def test_compacted_records_serve_every_read_and_repair(copied: Callable[[], Made], pristine: Made) -> None:
    made, right = copied(), everything(pristine)
    size = made.features.stored_bytes()
    assert made.features.group.compact() == 2
    assert made.store.objects.names(f"features/{made.features.key}/commits") == []
    fresh = reopen(made)
    assert fresh.features.complete
    assert fresh.features.stored_bytes() == size
    assert same(everything(fresh), right)
    assert verify(fresh.features) == []
    fresh.features.group.discard(4)
    fresh = reopen(made)
    assert fresh.features.missing_shards() == [4]
    with pytest.raises(CacheDamaged, match=r"shard 4 .* is not committed"):
        fresh.features.read(np.array([33]))
    commit(fresh, 4)
    assert same(everything(reopen(made)), right)
    assert reopen(made).features.group.compact() == 2
    assert same(everything(reopen(made)), right)


@pytest.mark.usefixtures("small_ledgers")
def test_an_incomplete_span_is_not_compacted(tmp_path: Path) -> None:
    made = plan(tmp_path)
    for shard in (0, 1, 2, 4):
        commit(made, shard)
    assert made.features.group.compact() == 1
    assert reopen(made).features.missing_shards() == [3]
    assert made.store.objects.names(f"features/{made.features.key}/commits") == ["000004.json"]


@pytest.mark.usefixtures("small_ledgers")
def test_no_flipped_bit_of_a_ledger_is_silent(copied: Callable[[], Made], pristine: Made) -> None:
    made, right, random = copied(), everything(pristine), np.random.default_rng(5)
    made.features.group.compact()
    for trial in range(120):
        path = made.folder / "features" / made.features.key / f"ledgers/000000.{'records' if trial % 2 else 'parquet'}"
        good = path.read_bytes()
        data = bytearray(good)
        data[random.integers(len(data))] ^= 1 << random.integers(8)
        path.write_bytes(bytes(data))
        with contextlib.suppress(CacheDamaged):
            assert same(everything(reopen(made)), right)
        path.write_bytes(good)


@pytest.mark.usefixtures("small_ledgers")
def test_a_reader_that_was_open_before_the_compaction_goes_on(copied: Callable[[], Made], pristine: Made) -> None:
    made = copied()
    reader = reopen(made).features
    reader.read(np.array([0]))
    made.features.group.compact()
    np.testing.assert_array_equal(reader.read(np.arange(40)).patch, pristine.features.read(np.arange(40)).patch)


def test_a_failed_image_is_still_named_after_a_compaction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = plan(tmp_path, images=8)
    failed = made.dataset.ids(5, 6)[0]
    made.features.commit_shard(0, tokens(made.features, 0), {}, "")
    made.features.commit_shard(1, tokens(made.features, 1), {failed: "cut"}, "")
    made.features.group.compact()
    assert reopen(made).features.failed_rows().tolist() == [10, 11]
    shutil.rmtree(made.folder / "features" / made.features.key / "commits")
    assert reopen(made).features.failed_rows().tolist() == [10, 11]


def test_build_is_deterministic(tmp_path: Path) -> None:
    assert same(everything(build(tmp_path / "a", images=4)), everything(build(tmp_path / "b", images=4)))
