"""PHI-S: a normalisation that gives every coordinate variance 1 and distorts nothing (RADIOv2.5, arXiv 2410.01680).

With the covariance Σ = U Λ Uᵀ, φ = √mean(λ) and a normalised Hadamard matrix H (entries ±1/√C), the map is y' = φ⁻¹ H Uᵀ (y − μ). It is
a rotation and one scale, so errors in y' mean the same in every direction of y, where dividing each coordinate by its own deviation
weighs directions. Hadamard matrices are exact, from Sylvester's and both of Paley's constructions (over primes) and Kronecker products;
there is none for every width, and a width without one is refused rather than approximated. The price is a C × C matrix a teacher, and a
covariance in float64.
"""

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ..core.errors import BadInput

Signs = NDArray[np.int8]
Float64s = NDArray[np.float64]


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % factor for factor in range(2, int(number**0.5) + 1))


def _jacobsthal(prime: int) -> Signs:
    """Return Q with Q[i, j] = 1 where i − j is a non-zero square modulo `prime`, −1 where it is none, 0 on the diagonal."""
    character = np.full(prime, -1, np.int8)
    character[np.unique(np.arange(1, prime, dtype=np.int64) ** 2 % prime)] = 1
    character[0] = 0
    indices = np.arange(prime)
    matrix: Signs = character[(indices[:, None] - indices[None, :]) % prime]
    return matrix


def _bordered(core: Signs, sign: int) -> Signs:
    """Return `core` with a row and a column of ones before it; the column has the given sign."""
    order = len(core) + 1
    matrix = np.zeros((order, order), np.int8)
    matrix[0, 1:], matrix[1:, 0], matrix[1:, 1:] = 1, sign, core
    return matrix


def _paley_1(order: int) -> Signs:
    """Return a matrix of order q + 1 for a prime q ≡ 3 modulo 4."""
    return _bordered(_jacobsthal(order - 1), -1) + np.eye(order, dtype=np.int8)


def _paley_2(order: int) -> Signs:
    """Return a matrix of order 2 (q + 1) for a prime q ≡ 1 modulo 4."""
    conference = _bordered(_jacobsthal(order // 2 - 1), 1)
    zeros = np.eye(len(conference), dtype=np.int8)
    pair, single = np.array([[1, 1], [1, -1]], np.int8), np.array([[1, -1], [-1, -1]], np.int8)
    return np.kron(conference, pair) + np.kron(zeros, single)


@lru_cache(maxsize=64)
def _construct(order: int) -> Signs | None:
    if order in (1, 2):
        return np.array([[1]], np.int8) if order == 1 else np.array([[1, 1], [1, -1]], np.int8)
    if order % 4:
        return None
    if _is_prime(order - 1):
        return _paley_1(order)
    if _is_prime(order // 2 - 1) and (order // 2 - 1) % 4 == 1:
        return _paley_2(order)
    for factor in (2, *range(4, int(order**0.5) + 1, 4)):
        rest = _construct(order // factor) if order % factor == 0 else None
        base = _construct(factor) if rest is not None else None
        if rest is not None and base is not None:
            return np.kron(base, rest)
    return None


def hadamard(order: int) -> Signs:
    """Return an exact Hadamard matrix (order, order) of ±1 with H Hᵀ = order · I; raise `BadInput` where these constructions have none."""
    matrix = _construct(order) if order > 0 else None
    if matrix is None:
        raise BadInput(f"no Hadamard matrix of order {order} is known here, which PHI-S needs for {order} channels; use mean and std")
    return matrix


@dataclass
class Covariance:
    """Running count, mean and scatter matrix of (n, D) samples in float64; mergeable, as `statistics.Moments` is."""

    dim: int
    count: int = 0
    mean: Float64s = field(init=False)
    scatter: Float64s = field(init=False)

    def __post_init__(self) -> None:
        self.mean, self.scatter = np.zeros(self.dim), np.zeros((self.dim, self.dim))

    def update(self, samples: NDArray[np.floating]) -> None:
        """Add samples of shape (…, D)."""
        flat = samples.reshape(-1, self.dim).astype(np.float64)
        if len(flat):
            mean = flat.mean(axis=0)
            centred = flat - mean
            self._add(len(flat), mean, centred.T @ centred)

    def merge(self, other: "Covariance") -> None:
        """Add the samples of `other`."""
        if other.count:
            self._add(other.count, other.mean, other.scatter)

    def _add(self, count: int, mean: Float64s, scatter: Float64s) -> None:
        total, delta = self.count + count, mean - self.mean
        self.scatter += scatter + np.outer(delta, delta) * (self.count * count / total)
        self.mean = self.mean + delta * (count / total)
        self.count = total

    def axes(self) -> tuple[Float64s, Float64s]:
        """Return the variances (D,) along the principal axes, rising, and the axes as the columns of (D, D).

        From the D × D matrix, not by an SVD of all samples.
        """
        variances, axes_DD = np.linalg.eigh(self.scatter / self.count)
        return variances, axes_DD

    def finish(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the mean (D,) and the PHI-S matrix W (D, D), fp32; raise ValueError without samples or without any variance."""
        if self.count < 2 or not np.trace(self.scatter) > 0:
            raise ValueError("PHI-S needs samples that vary")
        eigenvalues, rotation = self.axes()
        phi = np.sqrt(max(float(eigenvalues.mean()), 0.0))
        matrix = hadamard(self.dim).astype(np.float64) / np.sqrt(self.dim) @ rotation.T / phi
        return self.mean.astype(np.float32), matrix.astype(np.float32)


def inverse(matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the inverse of a PHI-S matrix: φ² Wᵀ, because W is a rotation divided by φ."""
    exact = matrix.astype(np.float64)
    inverted: NDArray[np.float32] = (exact.T * (len(matrix) / np.square(exact).sum())).astype(np.float32)
    return inverted
