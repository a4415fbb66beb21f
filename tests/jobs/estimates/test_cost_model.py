"""The arithmetic of the plan, against figures worked out by hand and against what the store really writes."""

from dataclasses import replace

import pytest
from eupe_pipeline.jobs.estimates.cost_model import PAPER_IMAGES, Measured, Prices, break_even, extraction_cost, reading_need

ONE = Measured({"t": 400_000}, {"t": 0.01}, student_images_per_s=100.0, store_bytes_per_s=80e6)


def test_rows_bytes_shards_and_hours() -> None:
    found = extraction_cost(1_000, 2, 128, ONE, Prices(device_hour=2.0, gigabyte_month=0.02, months=10))
    assert (found["rows"], found["shards"]) == (2_000, 8)
    cost = found["cost"]["t"]
    assert cost["bytes"] == 800_000_000
    assert cost["device_hours"] == pytest.approx(20 / 3600)
    assert cost["extraction_money"] == pytest.approx(2 * 20 / 3600)
    assert cost["storage_money"] == pytest.approx(0.8 * 0.02 * 10)
    assert "all" not in found["cost"]


def test_several_teachers_are_also_summed() -> None:
    two = replace(ONE, row_bytes={"a": 100, "b": 50}, seconds_per_view={"a": 1.0, "b": 2.0})
    cost = extraction_cost(3_600, 1, 128, two, Prices())["cost"]
    assert cost["all"]["bytes"] == 3_600 * 150
    assert cost["all"]["device_hours"] == pytest.approx(3.0)


def test_at_the_paper_s_scale_a_proxy_in_bf16_takes_what_the_recipe_says() -> None:
    proxy = replace(ONE, row_bytes={"proxy": 790_000}, seconds_per_view={"proxy": 0.01})
    assert extraction_cost(PAPER_IMAGES, 1, 128, proxy, Prices())["cost"]["proxy"]["bytes"] == pytest.approx(1.335e15, rel=0.01)


def test_without_prices_the_cache_is_even_after_as_many_epochs_as_views() -> None:
    found = break_even(1_000, 3, 100.0, ONE, Prices())
    assert found["epochs"] == 3.0
    assert found["runs"] == pytest.approx(0.03)
    assert found["device_hours_saved_by_each_run_after"] == pytest.approx(1_000 * 0.01 * 100 / 3600)
    assert found["live_step_over_cached_step"] == pytest.approx(2.0)


def test_storage_that_is_paid_for_moves_it_out() -> None:
    prices = Prices(device_hour=3.6, gigabyte_month=0.01, months=1)
    live_epoch_money = 1_000 * 0.01 / 3600 * 3.6
    storage_money = 0.4 * 0.01
    assert break_even(1_000, 1, 10.0, ONE, prices)["epochs"] == pytest.approx(1 + storage_money / live_epoch_money)


def test_reading_compares_what_a_student_needs_with_what_the_store_gives() -> None:
    found = reading_need(ONE)
    assert found["needed_megabytes_per_s"] == pytest.approx(40.0)
    assert found["students_fed"] == pytest.approx(2.0)
