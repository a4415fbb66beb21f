"""Hadamard matrices are exact, and PHI-S is a rotation with one scale that gives every coordinate variance 1."""

import numpy as np
import pytest
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.features.phis import Covariance, hadamard, inverse
from eupe_pipeline.storage.features.statistics import Statistics
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

WIDTHS = [96, 128, 192, 384, 768, 1024, 1152, 1280, 1408, 1536]


@pytest.mark.parametrize("order", [1, 2, 4, 8, 12, 20, 24, 28, 36, 44, 60, 72, 104, *WIDTHS])
def test_hadamard_matrices_are_exact(order: int) -> None:
    found = hadamard(order)
    assert set(np.unique(found).tolist()) <= {-1, 1}
    product = found.astype(np.float32) @ found.T.astype(np.float32)  # sums of ±1 below 2²⁴ are exact in fp32
    np.testing.assert_array_equal(product, order * np.eye(order, dtype=np.float32))


def test_the_widest_teacher_has_one() -> None:
    found = hadamard(4096).astype(np.float32)
    rows = np.random.default_rng(0).integers(0, 4096, 64)
    np.testing.assert_array_equal(found[rows] @ found.T, 4096 * np.eye(4096, dtype=np.float32)[rows])


@pytest.mark.parametrize("order", [0, -4, 3, 5, 6, 30, 1002])
def test_widths_without_a_matrix_are_refused(order: int) -> None:
    with pytest.raises(BadInput, match="use mean and std"):
        hadamard(order)


def samples(count: int, dim: int, seed: int = 0) -> NDArray[np.float32]:
    random = np.random.default_rng(seed)
    mix = random.normal(size=(dim, dim)) * 10.0 ** random.uniform(-2, 1, dim)
    return (random.normal(size=(count, dim)) @ mix + random.normal(size=dim) * 5).astype(np.float32)


@settings(max_examples=50)
@given(st.integers(0, 1000), st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(lambda parts: sum(parts) > 1))
def test_any_split_over_workers_gives_the_covariance_of_one_pass(seed: int, parts: list[int]) -> None:
    values = samples(sum(parts), 4, seed)
    merged = Covariance(4)
    for part in np.split(values, np.cumsum(parts)[:-1]):
        worker = Covariance(4)
        worker.update(part)
        merged.merge(worker)
    exact = np.cov(values.astype(np.float64), rowvar=False, bias=True)
    np.testing.assert_allclose(merged.scatter / merged.count, exact, rtol=1e-9, atol=1e-9 * np.abs(exact).max())
    np.testing.assert_allclose(merged.mean, values.astype(np.float64).mean(axis=0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dim", [12, 96, 128])
def test_every_coordinate_has_variance_one_and_the_map_is_a_rotation(dim: int) -> None:
    covariance, values = Covariance(dim), samples(3000, dim)
    covariance.update(values)
    mean, matrix = covariance.finish()
    normal = (values.astype(np.float64) - mean) @ matrix.T
    np.testing.assert_allclose(normal.var(axis=0), 1, rtol=1e-4)
    np.testing.assert_allclose(normal.mean(axis=0), 0, atol=1e-4)
    gram = matrix.astype(np.float64) @ matrix.T
    np.testing.assert_allclose(gram, np.eye(dim) * gram[0, 0], atol=1e-5 * gram[0, 0])
    np.testing.assert_allclose(inverse(matrix) @ matrix, np.eye(dim), atol=1e-4)


def test_statistics_made_this_way_normalise_and_come_back() -> None:
    cls, patch = Covariance(12), Covariance(16)
    cls.update(samples(400, 12))
    patch.update(samples(900, 16))
    statistics = Statistics.from_covariances(cls, patch, 400)
    assert statistics.method == "PHI-S"
    tokens = samples(8, 16, seed=0).reshape(2, 2, 2, 16)
    back = statistics.denormalize_patch(statistics.normalize_patch(tokens))
    np.testing.assert_allclose(back, tokens, rtol=1e-3, atol=1e-3 * np.abs(tokens).max())
    classes = samples(5, 12)
    back = statistics.denormalize_cls(statistics.normalize_cls(classes))
    np.testing.assert_allclose(back, classes, rtol=1e-3, atol=1e-3 * np.abs(classes).max())


def test_samples_that_do_not_vary_are_refused() -> None:
    covariance = Covariance(4)
    with pytest.raises(ValueError, match="vary"):
        covariance.finish()
    covariance.update(np.ones((9, 4), np.float32))
    with pytest.raises(ValueError, match="vary"):
        covariance.finish()
