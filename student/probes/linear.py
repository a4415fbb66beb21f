"""The linear probe: multinomial logistic regression on frozen features, its regularisation chosen on held-out training images.

The protocol of DINOv3's published logistic regression (L-BFGS, float64): minimise Σ cross-entropy + ‖W‖² / 2C, the bias free, for C =
10^p with 45 values of p from −6 to 5; the C that is best on a random tenth of the training images is fitted again on all of them, and
only then the test images are looked at. Features are not standardised. Everything is float64: the problem is convex, so what an fp64
solver finds is *the* answer and any other solver's too. That freedom is used for speed: the solver works in the features' principal axes,
each scaled by its curvature, where it needs tens of steps instead of a thousand, and starts at the neighbouring C's solution. Price: the
features are held twice in float64, and one eigenvalue problem of D × D. Axes: N images, D channels, K classes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ...storage.core.errors import BadInput
from ..data.order import KeyedPermutation

POWERS = tuple(round(-6 + 11 * step / 44, 4) for step in range(45))
VALIDATION_SHARE = 0.1
MAX_ITERATIONS = 1000
_GRADIENT_TOLERANCE = 1e-7


class Probe(NamedTuple):
    """A linear classifier: logits = x Wᵀ + b."""

    weight_KD: Tensor
    bias_K: Tensor

    def percent_right(self, features_ND: Tensor, labels_N: Tensor) -> float:
        """Return top-1 accuracy in percent."""
        predicted = (features_ND @ self.weight_KD.t() + self.bias_K).argmax(dim=1)
        return 100.0 * float((predicted == labels_N).double().mean())


class Sweep(NamedTuple):
    """The C that was chosen, and validation accuracy in percent by power of ten."""

    power: float
    accuracies: dict[str, float]


class _Axes(NamedTuple):
    """Features in their principal axes: z = (x − mean) basis; the penalty ‖W‖² is the same there."""

    z_ND: Tensor
    mean_D: Tensor
    basis_DD: Tensor
    variance_D: Tensor

    @classmethod
    def of(cls, features_ND: Tensor) -> "_Axes":
        """Return features (N, D), float64, in their principal axes."""
        mean_D = features_ND.mean(dim=0)
        centred_ND = features_ND - mean_D
        variance_D, basis_DD = torch.linalg.eigh(centred_ND.t() @ centred_ND / len(features_ND))
        return cls(centred_ND @ basis_DD, mean_D, basis_DD, variance_D.clamp_min(0))

    def back(self, weight_KD: Tensor, bias_K: Tensor) -> Probe:
        """Return a classifier of z as one of x."""
        original_KD = weight_KD @ self.basis_DD.t()
        return Probe(original_KD, bias_K - original_KD @ self.mean_D)


def fit(features_ND: Tensor, labels_N: Tensor, classes: int, c: float, *, max_iterations: int = MAX_ITERATIONS) -> Probe:
    """Return the minimiser of Σ cross-entropy + ‖W‖² / 2C over float64 features (N, D)."""
    axes = _Axes.of(features_ND)
    return axes.back(*_fit(axes, labels_N, classes, c, None, max_iterations))


def _fit(axes: _Axes, labels_N: Tensor, classes: int, c: float, start: Probe | None, max_iterations: int = MAX_ITERATIONS) -> Probe:
    """Return the solution for z, from `start` or from zero."""
    count, dim = axes.z_ND.shape
    # Along an axis the loss curves by about its variance / K, the penalty by 1 / CN: scaled by that, all directions curve alike.
    scale_D = (axes.variance_D / classes + 1 / (c * count)).sqrt()
    options = {"dtype": torch.float64, "device": axes.z_ND.device}
    scaled = (torch.zeros(classes, dim, **options) if start is None else start.weight_KD * scale_D).requires_grad_()  # type: ignore[call-overload]
    bias = (torch.zeros(classes, **options) if start is None else start.bias_K.clone()).requires_grad_()  # type: ignore[call-overload]
    solver = torch.optim.LBFGS(
        [scaled, bias], max_iter=max_iterations, tolerance_grad=_GRADIENT_TOLERANCE, tolerance_change=1e-12, history_size=10,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def objective() -> Tensor:
        solver.zero_grad()
        weight_KD = scaled / scale_D
        # Divided by N: the same minimiser, and tolerances that mean the same for any N.
        loss = functional.cross_entropy(axes.z_ND @ weight_KD.t() + bias, labels_N) + weight_KD.square().sum() / (2 * c * count)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    solver.step(objective)  # type: ignore[no-untyped-call]
    return Probe((scaled / scale_D).detach(), bias.detach())


def hold_out(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return indexes (fitted, validation) of `count` images, a keyed random tenth for validation; raises `BadInput` below ten."""
    held_out = int(count * VALIDATION_SHARE)
    if held_out < 1:
        raise BadInput(f"a linear probe holds out a tenth of its training images, and {count} are too few; give at least 10")
    order = torch.from_numpy(KeyedPermutation(count, seed, "linear validation", 0)(torch.arange(count).numpy()))
    return order[held_out:].sort().values, order[:held_out].sort().values


def sweep(
    features_ND: Tensor,
    labels_N: Tensor,
    classes: int,
    *,
    powers: Sequence[float] = POWERS,
    seed: int = 0,
    known: Mapping[str, float] | None = None,
    on_value: Callable[[dict[str, float]], None] = lambda accuracies: None,
) -> Sweep:
    """Return the best power of C by validation accuracy, and the accuracies; of equally good powers the smallest, the most regularised.

    `known` powers are not computed again; `on_value` is called after each fit with all that are known.
    """
    fitted, validation = hold_out(len(labels_N), seed)
    test_ND, test_labels = features_ND[validation].double(), labels_N[validation]
    axes, accuracies, probe = _Axes.of(features_ND[fitted].double()), dict(known or {}), None
    for power in sorted(powers):
        if f"{power:g}" not in accuracies:
            probe = _fit(axes, labels_N[fitted], classes, 10.0**power, probe)
            accuracies[f"{power:g}"] = axes.back(*probe).percent_right(test_ND, test_labels)
            on_value(accuracies)
    return Sweep(max(sorted(powers), key=lambda power: accuracies[f"{power:g}"]), accuracies)
