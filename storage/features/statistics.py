"""Per-coordinate mean and standard deviation of a teacher's tokens, and the normalisation that they define (paper, section 3.3).

Class and patch tokens are measured apart, in float64, and merged with Chan's formula, so that any split over workers gives the same moments
up to rounding. Frozen statistics are part of a feature set's identity, and a row of `NORMALISATIONS` says what is measured for each way to
normalise and what is recorded of it. Each intermediate layer (`layers`) has statistics of its own. A channel that hardly moves keeps a
floor under its standard deviation (1e-3, ours), or its noise would be blown up to the size of a signal. PHI-S (`phis`) is the alternative:
a matrix in the place of the division.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..core import choices
from .layers import layer_of_array, patch_array
from .phis import Covariance, inverse

STD_FLOOR = 1e-3

Float32s = NDArray[np.float32]


@dataclass
class Moments:
    """Running count, mean and sum of squared deviations of (n, D) samples, in float64."""

    dim: int
    count: int = 0
    mean: NDArray[np.float64] = field(init=False)
    squares: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        self.mean, self.squares = np.zeros(self.dim), np.zeros(self.dim)

    def update(self, samples: NDArray[np.floating]) -> None:
        """Add samples of shape (…, D)."""
        flat = samples.reshape(-1, self.dim).astype(np.float64)
        part = Moments(self.dim)
        part.count = len(flat)
        if part.count:
            part.mean = flat.mean(axis=0)
            part.squares = np.square(flat - part.mean).sum(axis=0)
            self.merge(part)

    def merge(self, other: "Moments") -> None:
        """Add the samples of `other` (Chan, Golub and LeVeque's parallel formula)."""
        total = self.count + other.count
        if not total:
            return
        delta = other.mean - self.mean
        self.squares = self.squares + other.squares + delta**2 * (self.count * other.count / total)
        self.mean = self.mean + delta * (other.count / total)
        self.count = total

    def finish(self, floor: float = STD_FLOOR) -> tuple[Float32s, Float32s]:
        """Return mean and floored population standard deviation, both (D,) fp32; raise ValueError before any sample."""
        if not self.count:
            raise ValueError("no samples were measured")
        std = np.maximum(np.sqrt(self.squares / self.count), floor)
        return self.mean.astype(np.float32), std.astype(np.float32)


@dataclass(frozen=True)
class Statistics:
    """Frozen mean and std of class tokens (None when the teacher has none) and patch tokens, each (D,) fp32."""

    cls_mean: Float32s | None
    cls_std: Float32s | None
    patch_mean: Float32s
    patch_std: Float32s
    count: int  # views that were measured
    cls_matrix: Float32s | None = None  # PHI-S: (D, D), in the place of a division by the deviations
    patch_matrix: Float32s | None = None
    layers: Mapping[int, "Statistics"] = field(default_factory=dict, kw_only=True)
    """By block: of the patch tokens of intermediate layers."""

    @classmethod
    def from_moments(cls, cls_moments: Moments | None, patch_moments: Moments, views: int) -> "Statistics":
        """Return statistics from measured moments."""
        cls_mean, cls_std = cls_moments.finish() if cls_moments is not None else (None, None)
        return cls(cls_mean, cls_std, *patch_moments.finish(), views)

    @classmethod
    def from_covariances(cls, cls_covariance: Covariance | None, patch_covariance: Covariance, views: int) -> "Statistics":
        """Return PHI-S statistics from measured covariances; the deviations are kept as well, for reports."""
        cls_mean, cls_matrix = (None, None) if cls_covariance is None else cls_covariance.finish()
        cls_std = None if cls_covariance is None else _deviations(cls_covariance)
        patch_mean, patch_matrix = patch_covariance.finish()
        return cls(cls_mean, cls_std, patch_mean, _deviations(patch_covariance), views, cls_matrix, patch_matrix)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Float32s], count: int) -> "Statistics":
        """Return statistics from `arrays`, matrices flat or shaped; raise KeyError or ValueError for an incomplete set."""
        of_layer: dict[int, dict[str, Float32s]] = {}
        for name, values in arrays.items():
            if (layer := layer_of_array(name)) is not None:
                of_layer.setdefault(layer, {})[name.replace(patch_array(layer), "patch", 1)] = values
        layers = {layer: cls.from_arrays(of_layer[layer], count) for layer in sorted(of_layer)}
        shaped = {name: values.reshape(math.isqrt(values.size), -1) for name, values in arrays.items() if name.endswith("_matrix")}
        matrices = shaped.get("cls_matrix"), shaped.get("patch_matrix")
        return cls(
            arrays.get("cls_mean"), arrays.get("cls_std"), arrays["patch_mean"], arrays["patch_std"], count, *matrices, layers=layers
        )

    @property
    def normalisation(self) -> "TokenNormalisation":
        """The row of `NORMALISATIONS` that these statistics belong to."""
        with_matrix = self.patch_matrix is not None
        return next(row for row in NORMALISATIONS.values() if row.with_matrix == with_matrix)

    @property
    def method(self) -> str:
        """Name of the normalisation in identities."""
        return self.normalisation.method

    def only(self, layers: Iterable[int]) -> "Statistics":
        """Return the same with some of the layers alone; raise KeyError for one that was not measured."""
        return replace(self, layers={layer: self.layers[layer] for layer in layers})

    def described(self) -> dict[str, Any]:
        """Return what an identity says of the values: digests of the final tokens' statistics, and of each layer's where there are any."""
        layers = {str(layer): statistics.digest for layer, statistics in self.layers.items()}
        return {"method": self.method, "digest": self.digest, "count": self.count, **({"layers": layers} if layers else {})}

    def are_those_of(self, described: Mapping[str, Any]) -> bool:
        """Return whether an identity describes these values."""
        return all(self.described().get(key) == described.get(key) for key in ("digest", "layers"))

    def arrays(self) -> dict[str, Float32s]:
        """Return the arrays by the names under which they are stored, those of the layers included."""
        named = self._own_arrays()
        for layer, statistics in self.layers.items():
            named |= {name.replace("patch", patch_array(layer), 1): values for name, values in statistics._own_arrays().items()}
        return named

    def _own_arrays(self) -> dict[str, Float32s]:
        named = {"patch_mean": self.patch_mean, "patch_std": self.patch_std}
        if self.cls_mean is not None and self.cls_std is not None:
            named |= {"cls_mean": self.cls_mean, "cls_std": self.cls_std}
        if self.patch_matrix is not None:
            named["patch_matrix"] = self.patch_matrix
        if self.cls_matrix is not None:
            named["cls_matrix"] = self.cls_matrix
        return named

    @property
    def digest(self) -> str:
        """sha256 over the arrays' names and little-endian bytes and the count, of the final tokens alone."""
        hasher = hashlib.sha256(str(self.count).encode())
        for name, values in sorted(self._own_arrays().items()):
            hasher.update(name.encode())
            hasher.update(values.astype("<f4").tobytes())
        return hasher.hexdigest()

    def normalize_cls(self, cls_nD: Float32s) -> Float32s:
        """Return (x − mean) / std, or W (x − mean), for class tokens; the teacher must have them."""
        assert self.cls_mean is not None
        assert self.cls_std is not None
        return _normalised(cls_nD, self.cls_mean, self.cls_std, self.cls_matrix)

    def normalize_patch(self, patch_nHWD: Float32s) -> Float32s:
        """Return (x − mean) / std, or W (x − mean), for patch tokens of any leading shape."""
        return _normalised(patch_nHWD, self.patch_mean, self.patch_std, self.patch_matrix)

    def denormalize_cls(self, cls_nD: Float32s) -> Float32s:
        """Return the teacher's own class tokens from normalised ones."""
        assert self.cls_mean is not None
        assert self.cls_std is not None
        return _restored(cls_nD, self.cls_mean, self.cls_std, self.cls_matrix)

    def denormalize_patch(self, patch_nHWD: Float32s) -> Float32s:
        """Return the teacher's own patch tokens from normalised ones."""
        return _restored(patch_nHWD, self.patch_mean, self.patch_std, self.patch_matrix)


class TokenNormalisation(NamedTuple):
    """One way to normalise tokens: what is measured for it, and what is stored."""

    name: choices.Normalisation
    """As the command line has it."""
    method: str
    """As it stands in identities."""
    measure: type[Moments] | type[Covariance]
    """What sums up samples (…, D) of a width D."""
    freeze: Callable[[Any, Any, int], Statistics]
    """Statistics from what was measured of class tokens (or None) and patch tokens, and the number of views."""
    with_matrix: bool
    """Whether tokens go through a matrix instead of a division; what was frozen shows by this which row made it."""
    recorded: Mapping[str, str]
    """What it adds to the record of what statistics were measured on; nothing for the first, as stores of before have it."""


_ROWS = (
    TokenNormalisation("mean-std", "mean and std", Moments, Statistics.from_moments, with_matrix=False, recorded={}),
    TokenNormalisation("phi-s", "PHI-S", Covariance, Statistics.from_covariances, with_matrix=True, recorded={"method": "phi-s"}),
)
NORMALISATIONS: dict[str, TokenNormalisation] = {row.name: row for row in _ROWS}


def _deviations(covariance: Covariance) -> Float32s:
    return np.maximum(np.sqrt(np.diagonal(covariance.scatter) / covariance.count), STD_FLOOR).astype(np.float32)


def _normalised(tokens: Float32s, mean: Float32s, std: Float32s, matrix: Float32s | None) -> Float32s:
    centred = tokens - mean
    normalised: Float32s = np.divide(centred, std) if matrix is None else np.matmul(centred, matrix.T)
    return normalised


def _restored(tokens: Float32s, mean: Float32s, std: Float32s, matrix: Float32s | None) -> Float32s:
    plain = tokens.astype(np.float32)
    restored: Float32s = (plain * std if matrix is None else plain @ inverse(matrix).T) + mean
    return restored
