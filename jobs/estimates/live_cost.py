"""Measure what a live teacher would have cost: the time of its forward pass over rendered views of the same data.

The report compares a cache with this number. Rendering is not timed, since the student needs it too; each teacher is measured
apart after one warm-up batch, and the median batch counts.
"""

import statistics
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ...storage.views.pixels import view_pixels
from ...storage.views.view_set import ViewSet
from ...teachers.registry.teacher import Teacher


def live_teacher_cost(
    teachers: Mapping[str, Teacher], views: ViewSet, *, batches: int = 4, batch_size: int = 32
) -> dict[str, dict[str, Any]]:
    """Return by teacher: `seconds_per_view` and `views_per_s` of one forward, over the first committed views."""
    batch_size = min(batch_size, views.rows)
    return {name: _cost(teacher, views, batches, batch_size) for name, teacher in teachers.items()}


def _cost(teacher: Teacher, views: ViewSet, batches: int, batch_size: int) -> dict[str, Any]:
    seconds = []
    for number in range(batches + 1):
        rows = (np.arange(batch_size) + number * batch_size) % views.rows
        pixels = torch.from_numpy(view_pixels(views, rows, teacher.spec.preprocessing.input))
        started = time.perf_counter()
        teacher(pixels)
        if teacher.device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    median = statistics.median(seconds[1:]) / batch_size
    return {"seconds_per_view": median, "views_per_s": 1.0 / median, "batches": batches, "batch_size": batch_size}
