"""The checks of a training run before its first step, beside the identities: does this machine decode what the teachers saw?

A sample of recorded views is decoded and compared with the pixel digests in the store, which finds another image library or edited files
within a second instead of somewhere in the first epoch; the stream goes on comparing every crop that it cuts. Teachers that run live
compute the canary images and are compared with the record that the extraction left.
"""

from collections.abc import Iterable

import numpy as np

from ...storage.store import FeatureStore
from ...storage.views.pixels import fill_pixels
from ...storage.views.view_set import ViewSet
from ...teachers.registry.teacher import Teacher
from ..extraction.canaries import check_canary
from ..extraction.measure_statistics import sample_rows

SAMPLED_VIEWS = 32


def check_pixels(views: ViewSet, count: int = SAMPLED_VIEWS) -> int:
    """Compare `count` committed views with their pixel digests; returns how many there were. Raises `CacheMismatch`, `BadImage`.

    Views that store their pixels are left alone: those carry hashes of their own, and the images may be gone.
    """
    checked = 0
    if views.spec.pixels is not None:
        return checked
    for row in sample_rows(views.rows, count).tolist():
        image, _ = divmod(row, views.views_per_image)
        image_id, shard = views.dataset.row(image).id, image // views.images_per_shard
        if views.read_shard(shard) is None or image_id in views.failed_images(shard):
            continue
        fill_pixels(views, np.array([row]), views.read(np.array([row])), [])
        checked += 1
    return checked


def check_teachers(store: FeatureStore, teachers: Iterable[Teacher]) -> None:
    """Compare each loaded teacher with its canary in the store; raises `CacheMismatch`."""
    for teacher in teachers:
        check_canary(store, teacher)
