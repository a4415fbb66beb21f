"""Extraction over a tiny real store: complete and exact, resumable from any state, refusing what would be silently wrong."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from eupe_pipeline.jobs.extraction import extract
from eupe_pipeline.jobs.extraction.extract import extract_features
from eupe_pipeline.jobs.extraction.options import TeacherRequest
from eupe_pipeline.jobs.extraction.pool import InProcess, workers
from eupe_pipeline.jobs.extraction.shard_worker import ShardWorker
from eupe_pipeline.jobs.extraction.work_orders import WorkOrder
from eupe_pipeline.jobs.training.data import refuse_random_weights
from eupe_pipeline.storage.core.errors import BadInput, CacheMismatch, Interrupted
from eupe_pipeline.storage.images.indexing import build_index
from eupe_pipeline.storage.sources.decode import decode_image
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.views.view_spec import render
from eupe_pipeline.teachers.encoders.preprocessing import Preprocessing
from eupe_pipeline.teachers.registry.resolve import load_teacher, resolve_teacher

from ...fault_log import Trials
from ..actors import actor_pids
from ..conftest import tokens


def test_the_store_holds_exactly_what_the_teacher_says_about_each_recorded_view(photos: Any, tiny_store: Any) -> None:
    store, options, _ = photos
    summary = extract_features(options)
    reader = store.features(summary["features"]["teacher"])
    teacher = load_teacher(resolve_teacher(str(tiny_store.teacher_run)))
    cls, patch = tokens(store, reader.key)
    for row in (0, 1, 17, 47):
        views = reader.views.read(np.array([row]))
        image = reader.views.dataset.read_image(row // 2)
        pixels = render(image, views.crop[0], bool(views.flip[0]), 16, renderer=reader.views.renderer)
        live = teacher(torch.from_numpy(pixels.copy())[None])
        np.testing.assert_allclose(reader.statistics.denormalize_cls(cls[row : row + 1]), live.cls_BD, atol=1e-4)
        np.testing.assert_allclose(reader.statistics.denormalize_patch(patch[row : row + 1]), live.patch_BHWD, atol=1e-4)


def test_normalised_tokens_have_mean_zero_and_deviation_one_where_all_views_were_measured(photos: Any) -> None:
    store, options, _ = photos
    summary = extract_features(replace(options, statistics_batches=100))
    cls, patch = tokens(store, summary["features"]["teacher"])
    assert abs(cls.mean(axis=0)).max() < 1e-4
    np.testing.assert_allclose(patch.std(axis=(0, 1, 2)), 1.0, atol=1e-3)


def test_a_second_run_finds_everything_there(photos: Any, events: Any) -> None:
    _, options, _ = photos
    first = extract_features(options)
    seen, on_event = events
    second = extract_features(options, on_event)
    assert second["features"] == first["features"]
    assert (second["views_done"], second["shards_missing"], seen) == (0, 0, [])


def test_a_dry_run_tells_what_is_missing_and_leaves_the_store_as_it_is(photos: Any) -> None:
    store, options, root = photos

    def dry(**changes: Any) -> dict[str, Any]:
        before = sorted(path for path in (root / "store").rglob("*"))
        found = extract_features(replace(options, dry_run=True, **changes))
        assert sorted(path for path in (root / "store").rglob("*")) == before
        return found

    plan = dry()
    assert (plan["shards_missing"], plan["statistics_missing"], plan["features"]) == (3, ["teacher"], {"teacher": None})
    real = extract_features(options)
    assert plan["views"] == real["views"]
    expected = plan["bytes_expected"]["teacher"] + plan["views_bytes_expected"]
    assert plan["bytes_expected"]["teacher"] < real["bytes_committed"] < 1.1 * expected + 4096
    done = dry()
    assert (done["shards_missing"], done["bytes_expected"], done["features"]) == (0, {"teacher": 0}, real["features"])
    other = dry(codec="int8")
    assert (other["shards_missing"], other["views_bytes_expected"], other["statistics_missing"]) == (3, 0, [])
    assert other["features"]["teacher"] not in store.list_features()
    assert next((root / "store" / "features").glob("*/commits/000001.json")).unlink() is None
    assert (dry()["shards_missing"], dry()["bytes_expected"]["teacher"] * 3) == (1, plan["bytes_expected"]["teacher"])


@pytest.mark.parametrize("finished", [1, 2])
def test_what_a_stopped_run_committed_is_kept_and_the_rest_follows_bit_by_bit(photos: Any, finished: int) -> None:
    store, options, root = photos
    whole = FeatureStore.create(str(root / "whole"))
    build_index(whole.objects, str(root / "images"), "photos")
    expected = extract_features(replace(options, store=whole.url))

    def stop(event: dict[str, Any]) -> None:
        if event["stage"].startswith("extract") and event["done"] >= 16 * finished:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="Run the same command again"):
        extract_features(options, stop)
    kept = len(store.features(store.list_features()[0]).group.committed())
    assert kept >= finished  # the next shard may have been committed while the event was on its way
    resumed = extract_features(options)
    assert resumed["views_done"] == 48 - 16 * kept
    assert resumed["features"] == expected["features"]
    for ours, theirs in zip(tokens(store, resumed["features"]["teacher"]), tokens(whole, expected["features"]["teacher"]), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_two_teachers_share_one_set_of_views(photos: Any, tiny_store: Any, tmp_path: Path) -> None:
    store, options, _ = photos
    shutil.copytree(tiny_store.teacher_run, tmp_path / "second")
    both = replace(options, teachers=(*options.teachers, TeacherRequest(str(tmp_path / "second"), size_px=24)))
    summary = extract_features(both)
    readers = [store.features(key) for key in summary["features"].values()]
    assert readers[0].views.digest == readers[1].views.digest
    assert [reader.grid for reader in readers] == [(2, 2), (3, 3)]
    assert len(store.list_view_sets()) == 1


def test_a_second_teacher_notices_that_an_image_decodes_differently_now(photos: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, options, _ = photos
    extract_features(options)
    monkeypatch.setattr("eupe_pipeline.storage.images.dataset.decode_image", lambda data, **values: decode_image(data, **values) ^ 1)
    with pytest.raises(CacheMismatch, match="pixel digest differs"):
        extract_features(replace(options, codec="int8"))


def test_an_image_edited_after_indexing_stops_the_run_by_name(photos: Any) -> None:
    _, options, root = photos
    victim = root / "images" / "class1" / "004.png"
    victim.write_bytes(victim.read_bytes() + b"\0")
    with pytest.raises(CacheMismatch, match=r"class1/004\.png .* has changed since it was indexed"):
        extract_features(options)


def break_image(root: Path) -> None:
    """A PNG with a right header and broken pixels: the index accepts it, the decoder does not."""
    victim = root / "images" / "class1" / "004.png"
    data = bytearray(victim.read_bytes())
    data[60:-20] = bytes(len(data) - 80)
    victim.write_bytes(data)


def test_a_broken_image_is_named_and_left_out_below_the_limit_and_stops_the_run_above(photos: Any) -> None:
    store, options, root = photos
    break_image(root)
    build_index(store.objects, str(root / "images"), "broken")
    strict = replace(options, data="broken")
    with pytest.raises(BadInput, match=r"1 of 24 images failed.*class1/004\.png"):
        extract_features(strict)
    summary = extract_features(replace(strict, max_bad_share=0.1))
    assert list(summary["failed"]) == ["class1/004.png"]
    assert store.features(summary["features"]["teacher"]).failed_rows().tolist() == [18, 19]


def test_a_broken_image_counts_no_more_once_it_is_removed(photos: Any) -> None:
    """Its shard is taken over from the earlier version, with the reason of then."""
    store, options, root = photos
    break_image(root)
    build_index(store.objects, str(root / "images"), "broken")
    strict = replace(options, data="broken")
    with pytest.raises(BadInput, match="take these images out of the source and index it again with --allow-removed"):
        extract_features(strict)
    extract_features(replace(strict, max_bad_share=0.1))
    victim = root / "images" / "class1" / "004.png"
    victim.unlink()
    shutil.copy(next(victim.parent.glob("*.png")), victim.with_name("900.png"))
    build_index(store.objects, str(root / "images"), "broken", allow_removed=True)
    summary = extract_features(strict)
    assert summary["shards_taken_over"] > 0
    assert summary["failed"] == {}


def test_tokens_that_are_not_finite_are_left_out_by_name(photos: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, options, _ = photos
    honest = ShardWorker._forward

    def poisoned(self: ShardWorker, name: str, *views: Any) -> Any:
        found = honest(self, name, *views)
        found.tokens.patch[0, 0, 0, 0] = float("nan")
        return found

    extract_features(replace(options, codec="fp16"))  # the statistics are honest
    monkeypatch.setattr(ShardWorker, "_forward", poisoned)
    summary = extract_features(replace(options, max_bad_share=0.9))
    assert len(summary["failed"]) == 6
    assert all("not finite" in reason for reason in summary["failed"].values())


def test_every_field_that_changes_the_tokens_makes_another_feature_set(photos: Any) -> None:
    _, options, _ = photos
    first = extract_features(options)["features"]["teacher"]
    others = [
        replace(options, codec="int8"),
        replace(options, views=replace(options.views, seed=4)),
        replace(options, precision="bf16"),
        replace(options, statistics_batches=5),
        replace(options, teachers=(TeacherRequest(options.teachers[0].name, size_px=24),)),
    ]
    keys = {extract_features(other)["features"]["teacher"] for other in others}
    assert len(keys | {first}) == 1 + len(others)


def test_statistics_that_were_frozen_are_used_again_by_another_codec(photos: Any) -> None:
    store, options, _ = photos
    keys = [extract_features(replace(options, codec=codec))["features"]["teacher"] for codec in ("fp32", "int8")]
    assert store.features(keys[0]).statistics.digest == store.features(keys[1]).statistics.digest
    assert len(store.objects.names("statistics")) == 1


def test_unusable_requests_are_refused_before_any_work(photos: Any) -> None:
    store, options, root = photos
    refusals = [
        (replace(options, teachers=(*options.teachers, *options.teachers)), "named once"),
        (replace(options, teachers=(TeacherRequest("dinov9"),)), r"unknown teacher 'dinov9'.*efficientnet-lite0"),
        (replace(options, data="cats"), "photos"),
        (replace(options, address="auto"), "--workers 0"),
    ]
    for bad, text in refusals:
        with pytest.raises(BadInput, match=text):
            extract_features(bad)
    for value in ({"batch_size": 0}, {"teachers_at_once": 0}, {"num_gpus": 0.0}, {"statistics_batches": 0}):
        with pytest.raises(BadInput, match="at least 1"):
            replace(options, **value)
    with pytest.raises(BadInput, match="not a feature store"):
        extract_features(replace(options, store=str(root / "images")))
    assert store.list_features() == []


@pytest.mark.fault(6, "recovered")
@pytest.mark.filterwarnings("default")
def test_ray_workers_give_the_same_store_although_one_is_killed(photos: Any) -> None:
    store, options, root = photos
    alone = FeatureStore.create(str(root / "alone"))
    build_index(alone.objects, str(root / "images"), "photos")
    expected = extract_features(replace(options, store=alone.url))
    killed: list[int] = []

    def kill_one(event: dict[str, Any]) -> None:
        if event["stage"].startswith("extract") and not killed:
            killed.extend(sorted(actor_pids())[:1])
            os.kill(killed[0], signal.SIGKILL)

    summary = extract_features(replace(options, images_per_shard=2, workers=2), kill_one)
    assert killed
    assert summary["retries"] >= 1
    assert summary["views_done"] in (44, 48)  # 44 when it had committed a shard before it could say so
    keys = summary["features"]["teacher"], expected["features"]["teacher"]
    for ours, theirs in zip(tokens(store, keys[0]), tokens(alone, keys[1]), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)  # other batches, other rounding


@pytest.mark.fault
@pytest.mark.long
@pytest.mark.filterwarnings("default")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("runs", [25])
def test_however_often_workers_are_killed_every_view_is_stored_once(photos: Any, runs: int) -> None:
    """Four of a run's workers die while they work, five shards apart: a shard that three of them held in turn would end the run."""
    store, options, root = photos
    wanted = tokens(store, extract_features(options)["features"]["teacher"])
    with Trials(6) as trials:
        for number in range(runs):
            again, killed = FeatureStore.create(str(root / f"again{number}")), list[int]()
            build_index(again.objects, str(root / "images"), "photos")

            def kill(event: dict[str, Any], killed: list[int] = killed) -> None:
                fresh = sorted(actor_pids() - set(killed))
                if event["stage"].startswith("extract") and event["done"] >= 2 * (2 + 5 * len(killed)) and len(killed) < 4 and fresh:
                    killed.append(fresh[0])
                    os.kill(fresh[0], signal.SIGKILL)

            summary = extract_features(replace(options, store=again.url, images_per_shard=1, workers=2), kill)
            assert 48 - 2 * len(killed) <= summary["views_done"] <= 48  # what a worker committed with its last breath is found, not done
            for ours, theirs in zip(tokens(again, summary["features"]["teacher"]), wanted, strict=True):
                np.testing.assert_allclose(ours, theirs, atol=1e-4)
            trials.note("recovered", len(killed))
    assert trials.counts["recovered"] >= runs


@pytest.mark.fault(6, "recovered")
def test_a_killed_process_leaves_whole_shards_and_the_next_one_completes_them(photos: Any) -> None:
    store, options, _ = photos
    script = (
        "import sys, eupe_pipeline.jobs.extraction.extract as e; from eupe_pipeline.storage.views.view_spec import ViewSpec; "
        "e.extract_features(e.ExtractOptions(sys.argv[1], 'photos', (e.TeacherRequest(sys.argv[2]),), ViewSpec(views_per_image=2, seed=3), "
        "images_per_shard=1, codec='fp32', statistics_batches=4, batch_size=8, workers=0), "
        "lambda event: print(event['stage'], event['done'], flush=True))"
    )
    command = [sys.executable, "-c", script, store.url, options.teachers[0].name]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    for line in child.stdout:
        if line.startswith("extract"):
            break
    time.sleep(0.02)
    child.kill()
    child.wait()
    child.stdout.close()
    key = store.list_features()[0]
    before = store.features(key)
    there = set(range(24)) - set(before.missing_shards())
    for shard in there:
        before.group.verify(shard)
    summary = extract_features(replace(options, images_per_shard=1))
    assert summary["views_done"] == 48 - 2 * len(there)
    assert store.features(key).complete


def test_workers_in_this_process_load_the_teachers_once(photos: Any) -> None:
    store, options, _ = photos
    extract_features(options)
    views = store.view_set(store.list_view_sets()[0])
    order = WorkOrder(store.url, views.key, (resolve_teacher(options.teachers[0].name),), "cpu", 1, 8)
    with workers(order, 0, None) as pool:
        assert isinstance(pool, InProcess)
        assert pool._worker is pool._worker


def test_teachers_one_after_another_give_the_tokens_that_they_give_together(photos: Any, tmp_path: Path) -> None:
    _, options, root = photos
    shutil.copytree(options.teachers[0].name, tmp_path / "second")
    both = replace(options, teachers=(*options.teachers, TeacherRequest(str(tmp_path / "second"), size_px=24)))
    apart = FeatureStore.create(str(root / "apart"))
    build_index(apart.objects, str(root / "images"), "photos")
    together, one_by_one = (
        extract_features(both),
        extract_features(replace(both, store=apart.url, teachers_at_once=1)),
    )
    assert one_by_one["features"] == together["features"]
    assert (one_by_one["views_done"], together["views_done"]) == (96, 48)
    assert one_by_one["bytes"] == together["bytes"]


def test_the_size_of_a_forward_is_no_part_of_the_identity(photos: Any) -> None:
    _, options, _ = photos
    first = extract_features(options)
    again = extract_features(replace(options, batch_size=None))
    assert again["features"] == first["features"]
    assert again["views_done"] == 0


def test_the_summary_says_where_the_time_went(photos: Any) -> None:
    _, options, _ = photos
    summary = extract_features(replace(options, batch_size=None))
    assert set(summary["shares_of_time"]) == {"decode", "wait", "forward", "encode", "write"}
    assert 0 < summary["shares_of_time"]["forward"] <= 1.0
    assert summary["batch_sizes"]["teacher"] >= 1
    assert summary["out_of_memory_backoffs"] == 0


def test_a_teacher_that_is_not_the_recorded_one_does_no_shard(photos: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store, options, _ = photos
    first = extract_features(options)["features"]["teacher"]
    before = store.features(first).group.committed()
    honest = Preprocessing.apply
    monkeypatch.setattr(Preprocessing, "apply", lambda self, pixels: honest(self, pixels).flip(1))
    with pytest.raises(CacheMismatch, match=r"teacher: the teacher is not the one that was recorded"):
        extract_features(replace(options, codec="fp16"))
    assert len(before) == 3
    assert all(not store.features(key).group.committed() for key in store.list_features() if key != first)


def test_tokens_of_random_weights_are_trained_on_only_when_that_is_said_again(
    photos: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EUPE_PIPELINE_HOME", str(tmp_path))
    store, options, _ = photos
    trial = replace(options, teachers=(TeacherRequest("timm:test_vit.r160_in1k", size_px=32),))
    with pytest.raises(BadInput, match="never replaced by random ones"):
        extract_features(trial)
    key = next(iter(extract_features(replace(trial, allow_random_weights=True))["features"].values()))
    with pytest.raises(BadInput, match="random weights; --allow-random-weights"):
        refuse_random_weights([store.features(key)], allowed=False)
    refuse_random_weights([store.features(key)], allowed=True)


def test_a_shard_that_another_driver_has_committed_meanwhile_costs_nothing(photos: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store, options, root = photos
    break_image(root)
    build_index(store.objects, str(root / "images"), "broken")
    options = replace(options, data="broken", max_bad_share=0.1)
    plan_of = extract._plan

    def other_first(*arguments: Any) -> Any:
        plan = plan_of(*arguments)
        monkeypatch.setattr(extract, "_plan", plan_of)
        extract_features(options)
        return plan

    monkeypatch.setattr(extract, "_plan", other_first)
    late = extract_features(options)
    assert (late["views_done"], late["bytes_committed"], late["shards_missing"]) == (0, 0, 0)
    assert (list(late["failed"]), late["worker_seconds"]["forward"]) == (["class1/004.png"], 0.0)
