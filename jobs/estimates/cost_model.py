"""A model of what caching a teacher's tokens costs and when it pays: arithmetic alone, from a few measured figures.

Rows = images × views, bytes = rows × bytes of a stored view, device time = rows × seconds of a view's forward. A live teacher costs a
forward for each sample that a student sees; a cached one costs a forward for each row once, and then only reading. So without prices the
cache breaks even after as many epochs as there are views; storage that is paid for moves it further out. The student's own step is the
same on both sides and drops out. Not counted: checksums and indexes in a shard (below 0.1 %), the network, idle devices, people.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

PAPER_IMAGES = 1_689_000_000 + 1_280_000  # LVD-1689M and ImageNet-1k
_HOUR_S, _GB = 3600.0, 1e9


@dataclass(frozen=True)
class Prices:
    """Money, in any one currency; zero where it is of no interest."""

    device_hour: float = 0.0
    gigabyte_month: float = 0.0
    months: float = 12.0
    """How long the store is kept."""


@dataclass(frozen=True)
class Measured:
    """What one view of each teacher takes, and what a student needs."""

    row_bytes: Mapping[str, int]
    """By teacher: bytes of a stored view."""
    seconds_per_view: Mapping[str, float]
    """By teacher: device seconds of a forward."""
    student_images_per_s: float
    store_bytes_per_s: float


def extraction_cost(
    images: int, views: int, images_per_shard: int, measured: Measured, prices: Prices, known: Mapping[str, int] = MappingProxyType({})
) -> dict[str, Any]:
    """Return rows, shards, and by teacher and in all: bytes, device hours and money; `known` rows of a teacher cost nothing more."""
    rows, table = images * views, {}
    for name, size in measured.row_bytes.items():
        new = rows - known.get(name, 0)
        table[name] = _costs(new * size, new * measured.seconds_per_view[name] / _HOUR_S, prices)
    if len(table) > 1:
        table["all"] = {column: sum(cost[column] for cost in table.values()) for column in next(iter(table.values()))}
    in_store = {"rows_in_store": dict(known)} if any(known.values()) else {}
    return {"images": images, "rows": rows, "shards": -(-images // images_per_shard), **in_store, "cost": table}


@dataclass(frozen=True)
class SizedSet:
    """A teacher's targets at one of the input sizes that are drawn."""

    row_bytes: int
    """Bytes of a stored view."""
    seconds_per_view: float
    """Device seconds of a forward."""
    new_rows: int
    """Views that the store has no tokens of yet."""

    @property
    def new_bytes(self) -> int:
        """Bytes that the store would grow by."""
        return self.new_rows * self.row_bytes

    @property
    def extraction_s(self) -> float:
        """Device seconds of the forwards that lack."""
        return self.new_rows * self.seconds_per_view


def cached_or_live(
    sets: Mapping[str, SizedSet], sizes: int, samples: int, student_s: float, store_bytes_per_s: float = math.inf
) -> dict[str, Any]:
    """Return what targets of several drawn sizes cost from a cache and beside live teachers, and from which student on the first is less.

    `sets` are those of every teacher at each of so many `sizes`, drawn equally often. A step reads its targets while the student computes.
    """
    forward_s = sum(one.seconds_per_view for one in sets.values()) / sizes
    read_s = sum(one.row_bytes for one in sets.values()) / sizes / store_bytes_per_s
    extraction_h = sum(one.extraction_s for one in sets.values()) / _HOUR_S
    cached_h, live_h = samples * max(student_s, read_s) / _HOUR_S, samples * (student_s + forward_s) / _HOUR_S
    saved_h = live_h - cached_h
    return {
        "cached": _way(sum(one.new_bytes for one in sets.values()), extraction_h, cached_h),
        "live": _way(0, 0.0, live_h),
        "cached_costs_less_from_student": max(1, math.ceil(extraction_h / saved_h)) if saved_h > 0 else None,
    }


def _way(size: int, extraction_h: float, training_h: float) -> dict[str, float]:
    return {"bytes": size, "extraction_hours": extraction_h, "training_hours": training_h, "hours": extraction_h + training_h}


def _costs(size: int, hours: float, prices: Prices) -> dict[str, float]:
    extracting, keeping = hours * prices.device_hour, size / _GB * prices.gigabyte_month * prices.months
    return {"bytes": size, "terabytes": size / 1e12, "device_hours": hours, "extraction_money": extracting, "storage_money": keeping}


def reading_need(measured: Measured) -> dict[str, Any]:
    """Return the bandwidth that one student asks of the store, and how many students the store feeds."""
    need = measured.student_images_per_s * sum(measured.row_bytes.values())
    return {
        "student_images_per_s": measured.student_images_per_s,
        "needed_megabytes_per_s": need / 1e6,
        "measured_megabytes_per_s": measured.store_bytes_per_s / 1e6,
        "students_fed": measured.store_bytes_per_s / need,
    }


def break_even(images: int, views: int, epochs_of_a_run: float, measured: Measured, prices: Prices) -> dict[str, float]:
    """Return after how many epochs, and runs of so many epochs, a cache has cost less than a live teacher; and what each run saves then."""
    live_epoch_h = images * sum(measured.seconds_per_view.values()) / _HOUR_S
    epochs = float(views)
    if prices.device_hour and live_epoch_h:
        keeping = images * views * sum(measured.row_bytes.values()) / _GB * prices.gigabyte_month * prices.months
        epochs += keeping / (live_epoch_h * prices.device_hour)
    teacher_s, student_s = sum(measured.seconds_per_view.values()), 1 / measured.student_images_per_s
    return {
        "epochs": epochs,
        "runs": epochs / epochs_of_a_run,
        "device_hours_saved_by_each_run_after": live_epoch_h * epochs_of_a_run,
        "live_step_over_cached_step": 1 + teacher_s / student_s,
    }
