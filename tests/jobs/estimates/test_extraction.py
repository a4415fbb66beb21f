"""The plan of a real extraction, measured on this machine, and what it leaves behind: nothing."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from eupe_pipeline.jobs.estimates.extraction import PlanOptions, plan_extraction, store_speed
from eupe_pipeline.jobs.extraction.extract import extract_features
from eupe_pipeline.jobs.extraction.options import ExtractOptions
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.views.view_spec import StoredPixels


def small(extraction: ExtractOptions, student_images_per_s: float | None = None) -> PlanOptions:
    return PlanOptions(extraction, "vit-mini", 16, student_images_per_s, batches=1)


def listing(store: FeatureStore) -> set[Path]:
    return {path for path in Path(store.url).rglob("*") if path.is_file()}


def test_a_plan_promises_the_bytes_that_the_extraction_then_writes_and_leaves_nothing(photos: Any) -> None:
    store, options, _ = photos
    before = listing(store)
    plan = plan_extraction(small(options))
    assert listing(store) == before
    here = plan["for photos"]
    assert (here["images"], here["rows"], here["shards"]) == (24, 48, 3)
    written = extract_features(options)["bytes_committed"]
    assert here["cost"]["teacher"]["bytes"] <= written < 1.1 * here["cost"]["teacher"]["bytes"] + 4096
    assert plan["teachers"]["teacher"]["views_per_s"] > 0
    assert plan["at the paper's scale"]["images"] == 1_690_280_000
    assert plan["break_even"]["epochs"] == 2.0


def test_stored_pixels_are_planned_like_one_more_teacher_at_no_device_time(photos: Any) -> None:
    _, options, _ = photos
    spec = replace(options.views, pixels=StoredPixels(32))
    plain, with_pixels = (plan_extraction(small(replace(options, views=views), 100.0)) for views in (options.views, spec))
    cost = with_pixels["for photos"]["cost"]
    assert cost["pixels at 32 px"]["bytes"] == 48 * 32 * 32 * 3
    assert cost["pixels at 32 px"]["device_hours"] == 0
    assert cost["all"]["bytes"] == plain["for photos"]["cost"]["teacher"]["bytes"] + cost["pixels at 32 px"]["bytes"]
    more = with_pixels["reading"]["needed_megabytes_per_s"] - plain["reading"]["needed_megabytes_per_s"]
    assert more == pytest.approx(100 * 32 * 32 * 3 / 1e6)
    done = replace(options, views=spec)
    extract_features(done)
    assert {column: value for column, value in plan_extraction(small(done, 100.0))["for photos"]["cost"]["all"].items() if value} == {}


def test_a_plan_of_sampled_tokens_of_a_smaller_grid_promises_their_bytes(photos: Any) -> None:
    _, options, _ = photos
    teacher = replace(options.teachers[0], size_px=32)
    whole = replace(options, teachers=(teacher,), codec="int8")
    less = replace(whole, grid=(3, 3), tokens_per_view=2)
    promised = [plan_extraction(small(one))["for photos"]["cost"]["teacher"]["bytes"] for one in (whole, less)]
    written = [extract_features(one)["bytes_committed"] for one in (whole, less)]
    assert promised[1] < 0.5 * promised[0]
    assert all(told <= real < 1.1 * told + 4096 for told, real in zip(promised, written, strict=True))
    with pytest.raises(BadInput, match=r"teacher teacher: a grid of 4×4"):
        plan_extraction(small(replace(whole, grid=(5, 4))))


def test_a_given_rate_of_the_student_is_taken_instead_of_a_measured_one(photos: Any) -> None:
    _, options, _ = photos
    plan = plan_extraction(small(replace(options, batch_size=None), 1e6))
    assert plan["reading"]["student_images_per_s"] == 1e6
    assert plan["teachers"]["teacher"]["batch_size"] >= 1


def test_a_store_in_memory_has_a_speed_as_well() -> None:
    store = FeatureStore.create("memory://plan")
    assert store_speed(store) > 1e6
    assert store.objects.names("probes") == []


@pytest.mark.parametrize("bad", [{"epochs_of_a_run": 0.0}, {"batches": 0}, {"student_images_per_s": -1.0}])
def test_numbers_that_mean_nothing_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="above 0"):
        PlanOptions(ExtractOptions("store", "photos", ()), **bad)
