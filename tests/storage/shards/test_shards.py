"""Publish once, read any rows: equality with what was written, in any order, from several threads, into the caller's memory."""

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from eupe_pipeline.storage.core.errors import BadInput, CacheDamaged
from eupe_pipeline.storage.features.features import FeatureLayout, FeatureReader, TokenRows, features_identity
from eupe_pipeline.storage.features.phis import Covariance
from eupe_pipeline.storage.features.statistics import Statistics
from eupe_pipeline.storage.shards import shards
from eupe_pipeline.storage.shards.rows import group_by_shard
from hypothesis import given, settings
from hypothesis import strategies as st

from ..made_up_store import Made, commit, drawn_with_digests, plan, reopen, tokens


def written(made: Made) -> TokenRows:
    """All rows as they went in."""
    parts = [tokens(made.features, shard) for shard in range(made.features.shards)]
    columns = [np.concatenate([part[n] for part in parts]) for n in range(3)]
    return TokenRows(*columns)


@settings(max_examples=120)
@given(rows=st.lists(st.integers(0, 39), max_size=60), check=st.booleans())
def test_any_rows_in_any_order_are_those_that_were_written(pristine: Made, rows: list[int], check: bool) -> None:
    wanted, asked = written(pristine), np.array(rows, np.int64)
    found = pristine.features.read(asked, check=check)
    for got, whole in zip(found[:3], wanted[:3], strict=True):
        assert got is not None
        assert whole is not None
        np.testing.assert_array_equal(got, whole[asked])


@given(st.lists(st.integers(0, 99)), st.integers(1, 30))
def test_rows_are_grouped_by_shard_and_none_is_lost(rows: list[int], shard_rows: int) -> None:
    groups = group_by_shard(np.array(rows, np.int64), np.argsort(rows, kind="stable"), shard_rows)
    assert [shard for shard, _ in groups] == sorted({row // shard_rows for row in rows})
    back = {place: shard * shard_rows + local for shard, places in groups for local, place in places}
    assert [back[place] for place in range(len(rows))] == rows


def test_rows_go_into_the_callers_memory(pristine: Made) -> None:
    out = pristine.features.empty(3)
    found = pristine.features.read(np.array([9, 0, 39]), out)
    assert found.patch is out.patch
    np.testing.assert_array_equal(out.patch, written(pristine).patch[[9, 0, 39]])


def test_memory_that_does_not_fit_is_refused_before_a_byte_is_read(pristine: Made) -> None:
    good = pristine.features.empty(2)
    bad = [
        good.patch.astype(np.uint8),
        good.patch[:1],
        np.asfortranarray(good.patch),
        np.empty((4, *good.patch.shape[1:]), np.int8)[::2],
        np.empty((2, 2, 3, 63), np.int8),
    ]
    read_only = good.patch.copy()
    read_only.flags.writeable = False
    for patch in [*bad, read_only]:
        with pytest.raises(ValueError, match="out for patch must be"):
            pristine.features.read(np.array([0, 1]), good._replace(patch=patch))


@pytest.mark.parametrize("rows", [[-1], [40], [0, 2**40]])
def test_rows_outside_are_refused(pristine: Made, rows: list[int]) -> None:
    with pytest.raises(BadInput, match="which has 40"):
        pristine.features.read(np.array(rows))
    with pytest.raises(BadInput, match="which has 40"):
        pristine.views.read(np.array(rows))


def test_eight_threads_share_a_reader(copied: object, pristine: Made) -> None:
    features, wanted = reopen(pristine).features, written(pristine)

    def read(seed: int) -> bool:
        rows = np.random.default_rng(seed).integers(0, 40, 16)
        found = features.read(rows)
        return np.array_equal(found.patch, wanted.patch[rows]) and np.array_equal(features.read_cls(rows), wanted.cls[rows])  # type: ignore[index]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(64)))


def test_class_tokens_can_be_read_alone(pristine: Made) -> None:
    np.testing.assert_array_equal(pristine.features.read_cls(np.array([8, 7])), written(pristine).cls[[8, 7]])  # type: ignore[index]


def test_a_shard_without_a_record_does_not_exist(tmp_path: Path) -> None:
    made = plan(tmp_path)
    commit(made, 2)
    assert made.features.missing_shards() == [0, 1, 3, 4]
    assert not made.features.complete
    made.features.read(np.arange(16, 24))
    with pytest.raises(CacheDamaged, match=r"shard 1 of .* is not committed"):
        made.features.read(np.array([16, 9]))
    with pytest.raises(BadInput, match=r"shard 1 of views/.* is not committed"):
        made.views.read(np.array([9]))


def test_a_second_commit_changes_nothing(tmp_path: Path) -> None:
    made = plan(tmp_path)
    commit(made, 0)
    record = made.features.group.record(0)
    again = reopen(made).features.commit_shard(0, tokens(made.features, 0), {}, record.views_record if record else "")
    assert again == record
    assert reopen(made).features.group.record(0) == record


def test_an_object_of_a_killed_writer_is_adopted_when_it_is_ours(tmp_path: Path) -> None:
    made = plan(tmp_path)
    commit(made, 0)
    record = made.folder / "features" / made.features.key / "commits/000000.json"
    before = record.read_bytes()
    record.unlink()
    fresh = reopen(made)
    fresh.features.commit_shard(0, tokens(fresh.features, 0), {}, fresh.views.group.record(0).digest)  # type: ignore[union-attr]
    assert record.read_bytes() == before


def test_an_object_of_another_machines_rounding_is_adopted_as_it_is(tmp_path: Path) -> None:
    made = plan(tmp_path, codec="fp16")
    commit(made, 0, noise=1e-3)
    stored = made.features.read(np.arange(8)).patch.copy()
    (made.folder / "features" / made.features.key / "commits/000000.json").unlink()
    fresh = reopen(made)
    fresh.features.commit_shard(0, tokens(fresh.features, 0), {}, "")
    np.testing.assert_array_equal(fresh.features.read(np.arange(8)).patch, stored)
    assert not np.array_equal(stored, tokens(fresh.features, 0).patch)


@pytest.mark.parametrize("array", ["patch/c.{}.0.0.0", "cls/c.{}.0", "patch_scale/c.{}.0.0.0"])
def test_an_object_of_another_shard_is_never_adopted(tmp_path: Path, array: str) -> None:
    made = plan(tmp_path)
    commit(made, 0)
    folder = made.folder / "features" / made.features.key
    (folder / array.format(1)).write_bytes((folder / array.format(0)).read_bytes())
    with pytest.raises(CacheDamaged, match="cannot be adopted"):
        commit(reopen(made), 1)
    (folder / array.format(1)).unlink()
    commit(reopen(made), 1)


def test_views_of_another_shard_are_never_adopted(tmp_path: Path) -> None:
    made = plan(tmp_path)
    folder = made.folder / "views" / made.views.key
    made.views.commit_shard(0, drawn_with_digests(made.views, 0), {})
    for array in ("crop", "flip", "pixel_digest"):
        (folder / array / "c.1.0").write_bytes((folder / array / "c.0.0").read_bytes())
        with pytest.raises(CacheDamaged, match="cannot be adopted"):
            made.views.commit_shard(1, drawn_with_digests(made.views, 1), {})
        (folder / array / "c.1.0").unlink()


def test_an_object_with_other_failed_images_is_not_adopted(tmp_path: Path) -> None:
    made = plan(tmp_path)
    commit(made, 0)
    (made.folder / "features" / made.features.key / "commits/000000.json").unlink()
    fresh = reopen(made)
    with pytest.raises(CacheDamaged, match="tokens for other images"):
        fresh.features.commit_shard(0, tokens(fresh.features, 0), {fresh.dataset.ids(0, 1)[0]: "broken"}, "")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("codec", ["fp32", "fp16", "int8", "int4"])
def test_tokens_that_are_not_finite_are_refused_and_the_image_named(tmp_path: Path, codec: str, value: float) -> None:
    made = plan(tmp_path, codec=codec)
    cls, patch = np.ones((8, 12), np.float32), np.random.default_rng(0).normal(size=(8, 2, 3, 64)).astype(np.float32)
    patch[5, 1, 2, 3] = value
    image_id = made.dataset.ids(2, 3)[0]
    with pytest.raises(BadInput, match=f"image {image_id}: its patch"):
        made.features.commit_shard(0, made.features.encode(cls, patch), {}, "")
    assert not made.features.group.committed()
    made.features.commit_shard(0, made.features.encode(cls, patch), {image_id: "not finite"}, "")
    assert made.features.failed_rows().tolist() == [4, 5]


def test_tokens_beyond_half_precision_are_refused(tmp_path: Path) -> None:
    made = plan(tmp_path, codec="fp16")
    patch = np.full((8, 2, 3, 64), 65_520, np.float32)
    with pytest.raises(BadInput, match="not finite as float16"):
        made.features.commit_shard(0, made.features.encode(np.ones((8, 12), np.float32), patch), {}, "")


def test_features_normalised_by_phi_s_keep_their_matrix(tmp_path: Path) -> None:
    made, covariance = plan(tmp_path), Covariance(64)
    covariance.update(np.random.default_rng(0).normal(size=(500, 64)) * np.linspace(0.1, 9, 64))
    statistics = Statistics.from_covariances(None, covariance, 500)
    identity = features_identity({"architecture": "x"}, made.views, statistics, {}, FeatureLayout(None, 64, (2, 3), "int8"))
    FeatureReader.create(made.store.objects, "rotated", made.views, identity, statistics)
    found = made.store.features("rotated")
    assert found.identity["statistics"]["method"] == "PHI-S"
    assert found.statistics.patch_matrix is not None
    np.testing.assert_array_equal(found.statistics.patch_matrix, statistics.patch_matrix)
    np.testing.assert_array_equal(found.open_zarr()["statistics/patch_matrix"][:], statistics.patch_matrix)


def test_a_record_for_other_images_is_not_taken_for_ours(tmp_path: Path) -> None:
    made = plan(tmp_path)
    commit(made, 0)
    standing = made.features.group.record(0)
    assert standing is not None
    ours = replace(standing, image_ids_sha256="0" * 64)
    arrays = dict(zip(("cls", "patch", "patch_scale"), tokens(made.features, 0)[:3], strict=True))
    with pytest.raises(CacheDamaged, match="committed for other images"):
        made.features.group.publish(ours, arrays, np.ones(8, np.bool_))  # type: ignore[arg-type]


def test_threads_that_read_more_records_than_are_kept_do_not_trip_over_each_other(pristine: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_KEPT_RECORDS", 2)
    group, before = reopen(pristine).features.group, sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            numbers = [record.shard for record in pool.map(group.record, [n % 5 for n in range(2000)]) if record is not None]
    finally:
        sys.setswitchinterval(before)
    assert numbers == [n % 5 for n in range(2000)]
    for several in ([3, 1, 4], [n % 5 for n in range(40)]):
        assert [record.shard for record in group.records(several)] == several


def test_a_shard_that_was_committed_while_another_thread_looked_for_it_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = plan(tmp_path)
    group, looking, go_on = reopen(made).features.group, threading.Event(), threading.Event()
    look = group.ledgers.record

    def slow(shard: int) -> bytes | None:
        found = look(shard)
        looking.set()
        assert go_on.wait(20)
        return found

    monkeypatch.setattr(group.ledgers, "record", slow)
    with ThreadPoolExecutor(2) as pool:
        before = pool.submit(group.record, 0)
        assert looking.wait(20)
        commit(made, 0)
        after = pool.submit(group.record, 0)
        time.sleep(0.1)
        go_on.set()
        assert before.result() is None
        assert after.result() is not None
