"""What normalises a teacher: a fixed sample, merged in order, PHI-S, or another set's statistics."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eupe_pipeline.jobs.extraction.extract import extract_features
from eupe_pipeline.jobs.extraction.measure_statistics import _InOrder, sample_rows
from eupe_pipeline.jobs.extraction.options import TeacherRequest
from eupe_pipeline.jobs.extraction.shard_worker import SampleMoments
from eupe_pipeline.storage.core.errors import BadInput, CacheMismatch
from eupe_pipeline.storage.features.statistics import Moments

from ...conftest import make_teacher
from ..conftest import tokens


def test_statistics_of_another_set_are_used_again_and_named_in_the_identity(photos: Any) -> None:
    store, options, _ = photos
    first = store.features(extract_features(options)["features"]["teacher"])
    other_views = replace(options, views=replace(options.views, seed=9), statistics_from=(first.key,))
    seen: list[dict[str, Any]] = []
    second = store.features(extract_features(other_views, seen.append)["features"]["teacher"])
    assert second.statistics.digest == first.statistics.digest
    assert second.identity["statistics"]["from_views"] == first.views.digest
    assert not [event for event in seen if event["stage"] == "statistics"]


def test_statistics_of_a_set_that_none_of_the_teachers_made_are_refused(photos: Any, tmp_path: Path) -> None:
    _, options, _ = photos
    first = extract_features(options)["features"]["teacher"]
    make_teacher(tmp_path / "stranger", seed=2)
    stranger = replace(options, teachers=(TeacherRequest(str(tmp_path / "stranger")),), statistics_from=(first,))
    with pytest.raises(CacheMismatch, match=r"no teacher of this command made teacher@.*weights_sha256"):
        extract_features(stranger)


def test_phi_s_gives_every_coordinate_variance_one_and_keeps_its_matrix(photos: Any) -> None:
    store, options, _ = photos
    plain = extract_features(options)["features"]["teacher"]
    phis = extract_features(replace(options, normalisation="phi-s", statistics_batches=100))["features"]["teacher"]
    assert phis != plain
    reader = store.features(phis)
    assert reader.identity["statistics"]["method"] == "PHI-S"
    _, patch = tokens(store, phis)
    np.testing.assert_allclose(patch.std(axis=(0, 1, 2)), 1.0, atol=0.02)
    original = store.features(plain).statistics.denormalize_patch(tokens(store, plain)[1])
    np.testing.assert_allclose(reader.statistics.denormalize_patch(patch), original, atol=1e-3)
    with pytest.raises(BadInput, match="phi-s"):
        replace(options, normalisation="phis")


def test_results_that_come_in_another_order_give_the_same_bits() -> None:
    random = np.random.default_rng(0)
    parts = []
    for _ in range(5):
        moments = Moments(3)
        moments.update(random.normal(size=(4, 3)))
        parts.append(moments)

    def merged(order: Sequence[int]) -> str:
        found = _InOrder("mean-std")
        for number in order:
            found.add(number, SampleMoments(4, {"t": (None, deepcopy(parts[number]))}))
        return found.statistics("t").digest

    assert merged([0, 1, 2, 3, 4]) == merged([4, 2, 0, 1, 3])


def test_the_sample_of_the_statistics_is_fixed_and_inside_the_views() -> None:
    assert sample_rows(5, 8).tolist() == [0, 1, 2, 3, 4]
    rows = sample_rows(1_000_000_000, 1000)
    assert rows.min() >= 0
    assert rows.max() < 1_000_000_000
    np.testing.assert_array_equal(rows, sample_rows(1_000_000_000, 1000))
