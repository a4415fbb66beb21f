"""What an extraction tells at its end."""

import time

import pytest
from eupe_pipeline.jobs.extraction.summary import PHASES, ShardReport, combined, progress, work_done


def report(shard: int, size: int) -> ShardReport:
    seconds = {"decode": 1.0, "forward": 4.0, "encode": 0.5, "write": 0.5}
    return ShardReport(shard, 10, seconds=seconds, bytes=100, batch_sizes={"t": size}, backoffs=int(size < 8))


def test_shares_are_of_the_wall_time_of_all_workers() -> None:
    found = work_done([report(0, 8), report(1, 4)], workers=2, seconds=5.0)
    assert found["views_done"] == 20
    assert found["views_per_second"] == pytest.approx(4.0)
    assert found["shares_of_time"] == {"decode": 0.2, "wait": 0.0, "forward": 0.8, "encode": 0.1, "write": 0.1}
    assert (found["bytes_committed"], found["batch_sizes"], found["out_of_memory_backoffs"]) == (200, {"t": 4}, 1)


def test_nothing_done_is_no_rate() -> None:
    found = work_done([], workers=0, seconds=0.1)
    assert (found["views_done"], found["views_per_second"], found["shares_of_time"]) == (0, None, {})
    assert set(found["worker_seconds"]) == set(PHASES)


def test_extractions_one_after_another_add_up_and_what_is_the_same_stays() -> None:
    parts = [
        {
            "rows": 48,
            "dry_run": False,
            "features": {"a": "a@1"},
            "bytes": {"a": 5},
            "seconds": 2.0,
            "views_done": 48,
            "views_per_second": 24.0,
        },
        {
            "rows": 48,
            "dry_run": False,
            "features": {"b": "b@2"},
            "bytes": {"b": 7},
            "seconds": 4.0,
            "views_done": 48,
            "views_per_second": 12.0,
        },
    ]
    whole = combined(parts)
    assert whole["features"] == {"a": "a@1", "b": "b@2"}
    assert (whole["rows"], whole["bytes"], whole["seconds"], whole["views_done"]) == (48, {"a": 5, "b": 7}, 6.0, 96)
    assert whole["views_per_second"] == pytest.approx(16.0)
    assert whole["dry_run"] is False


def test_one_extraction_is_its_own_sum() -> None:
    assert combined([{"rows": 3, "views_done": 0}]) == {"rows": 3, "views_done": 0}


def test_progress_counts_only_fresh_work_for_its_rate() -> None:
    event = progress("extract", 60, 100, "views", time.perf_counter() - 2.0, 20)
    assert event["rate"] == pytest.approx(10.0, rel=0.05)
    assert event["seconds_left"] == pytest.approx(4.0, rel=0.05)
    assert progress("extract", 0, 100, "views", time.perf_counter(), 0)["seconds_left"] is None


def test_shares_of_extractions_one_after_another_are_of_the_whole_time_and_an_image_fails_once() -> None:
    parts = [
        {"seconds": 1.0, "shares_of_time": {"forward": 0.8, "wait": 0.2}, "failed": {"a": "broken"}, "images_failed": 1, "gpu_use": 0.5},
        {"seconds": 3.0, "shares_of_time": {"forward": 0.4, "wait": 0.6}, "failed": {"a": "broken"}, "images_failed": 1, "gpu_use": 0.9},
        {"seconds": 9.0, "shares_of_time": {}, "failed": {}, "images_failed": 0},
    ]
    whole = combined(parts)
    assert whole["shares_of_time"] == pytest.approx({"forward": 0.5, "wait": 0.5})
    assert (whole["gpu_use"], whole["images_failed"], whole["seconds"]) == (pytest.approx(0.8), 1, 13.0)
