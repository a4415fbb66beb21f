"""Moments merged in any way equal one pass in float64, and normalisation can be undone."""

import numpy as np
import pytest
from eupe_pipeline.storage.features.statistics import STD_FLOOR, Moments, Statistics
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray


def samples(seed: int, count: int, dim: int = 5) -> NDArray[np.float32]:
    random = np.random.default_rng(seed)
    return (random.normal(size=(count, dim)) * 10.0 ** np.arange(-2, dim - 2) + 100.0).astype(np.float32)


@given(st.integers(0, 10_000), st.lists(st.integers(0, 40), min_size=1, max_size=8).filter(any))
def test_any_split_over_workers_gives_the_moments_of_one_pass(seed: int, parts: list[int]) -> None:
    values = samples(seed, sum(parts))
    merged = Moments(5)
    for part in np.split(values, np.cumsum(parts)[:-1]):
        worker = Moments(5)
        worker.update(part)
        merged.merge(worker)
    exact = values.astype(np.float64)
    assert merged.count == len(values)
    np.testing.assert_allclose(merged.mean, exact.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(merged.squares / merged.count, exact.var(axis=0), rtol=1e-9, atol=1e-18)


def test_tokens_of_any_leading_shape_count_as_samples() -> None:
    flat, shaped = Moments(5), Moments(5)
    flat.update(samples(1, 24))
    shaped.update(samples(1, 24).reshape(2, 3, 4, 5))
    assert flat.count == shaped.count == 24
    np.testing.assert_array_equal(flat.mean, shaped.mean)


def test_a_channel_that_hardly_moves_has_a_floor_under_its_deviation() -> None:
    moments = Moments(2)
    moments.update(np.array([[1.0, 3.0], [1.0, 5.0]], np.float32))
    mean, std = moments.finish()
    np.testing.assert_array_equal(mean, [1, 4])
    np.testing.assert_array_equal(std, np.array([STD_FLOOR, 1], np.float32))


def test_no_samples_have_no_statistics() -> None:
    with pytest.raises(ValueError, match="no samples"):
        Moments(3).finish()


def made(seed: int = 0) -> Statistics:
    cls, patch = Moments(5), Moments(5)
    cls.update(samples(seed, 50))
    patch.update(samples(seed + 1, 200))
    return Statistics.from_moments(cls, patch, 50)


def test_normalised_tokens_have_mean_zero_and_deviation_one_and_come_back() -> None:
    statistics, values = made(), samples(1, 200)
    normal = statistics.normalize_patch(values.reshape(2, 10, 10, 5))
    np.testing.assert_allclose(normal.reshape(-1, 5).mean(axis=0), 0, atol=1e-2)
    np.testing.assert_allclose(normal.reshape(-1, 5).std(axis=0), 1, atol=1e-2)
    np.testing.assert_allclose(statistics.denormalize_patch(normal).reshape(-1, 5), values, rtol=1e-5, atol=1e-4)
    cls = samples(0, 50)
    np.testing.assert_allclose(statistics.denormalize_cls(statistics.normalize_cls(cls)), cls, rtol=1e-5, atol=1e-4)


def test_the_digest_covers_every_value_and_the_count() -> None:
    one, other = made(), made()
    assert one.digest == other.digest
    changed = [
        Statistics(one.cls_mean, one.cls_std, one.patch_mean, one.patch_std, 51),
        Statistics(None, None, one.patch_mean, one.patch_std, 50),
        Statistics(one.cls_mean, one.cls_std, np.nextafter(one.patch_mean, np.float32(9)), one.patch_std, 50),
        Statistics(one.cls_std, one.cls_mean, one.patch_mean, one.patch_std, 50),
    ]
    assert len({one.digest, *(statistics.digest for statistics in changed)}) == 5
