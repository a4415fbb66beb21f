"""The linear probe against Newton's method in float64, and the way its C is chosen."""

import numpy as np
import pytest
import torch
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.student.probes.linear import POWERS, fit, hold_out, sweep
from torch import Tensor
from torch.nn import functional


def blobs(count: int, classes: int = 3, noise: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    centres = torch.randn(classes, 6, generator=torch.Generator().manual_seed(9)) * 2
    return (centres[labels] + noise * torch.randn(count, 6, generator=generator)).double(), labels


def newton(x: Tensor, y: Tensor, c: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """The two-class solution: w₁ − w₀ of a softmax with ‖W‖²/2C is a logistic regression with ‖w‖²/4C."""
    design, target = np.hstack([x.numpy(), np.ones((len(x), 1))]), y.numpy()
    penalty = np.diag([1 / (2 * c)] * x.shape[1] + [0.0])
    w = np.zeros(design.shape[1])
    for _ in range(50):
        p = 1 / (1 + np.exp(-design @ w))
        hessian = design.T @ (design * (p * (1 - p))[:, None]) + penalty
        w -= np.linalg.solve(hessian, design.T @ (p - target) + penalty @ w)
    return w


@pytest.mark.parametrize("c", [1e-3, 1.0, 100.0])
def test_the_solution_is_newtons(c: float) -> None:
    x, y = blobs(120, classes=2, noise=3.0)
    probe = fit(x, y, 2, c)
    found = torch.cat([probe.weight_KD[1] - probe.weight_KD[0], (probe.bias_K[1] - probe.bias_K[0])[None]])
    np.testing.assert_allclose(found.numpy(), newton(x, y, c), rtol=2e-3, atol=2e-4)


def test_where_it_starts_does_not_matter() -> None:
    x, y = blobs(200, noise=2.0)
    cold, warm = sweep(x, y, 3, powers=(0.0,)), sweep(x, y, 3, powers=(-2.0, -1.0, 0.0))
    assert cold.accuracies["0"] == warm.accuracies["0"]


@pytest.mark.parametrize("c", [1e-4, 1.0, 1e4])
def test_the_gradient_vanishes_for_features_of_very_different_lengths(c: float) -> None:
    x, y = blobs(150, noise=2.0)
    x = torch.cat([x * torch.tensor([1e-3, 1e-2, 0.1, 1.0, 10.0, 50.0]), x[:, :1] * 2], dim=1)  # two channels say the same
    probe = fit(x, y, 3, c)
    weight, bias = probe.weight_KD.clone().requires_grad_(), probe.bias_K.clone().requires_grad_()
    loss = functional.cross_entropy(x @ weight.t() + bias, y) + weight.square().sum() / (2 * c * 150)
    gradients = torch.autograd.grad(loss, (weight, bias))
    assert max(one.abs().max().item() for one in gradients) < 1e-4


def test_a_tenth_is_held_out_always_the_same_and_never_fitted() -> None:
    fitted, validation = hold_out(50)
    assert (len(fitted), len(validation)) == (45, 5)
    assert sorted([*fitted.tolist(), *validation.tolist()]) == list(range(50))
    assert torch.equal(validation, hold_out(50)[1])
    assert not torch.equal(validation, hold_out(50, seed=1)[1])
    with pytest.raises(BadInput, match="too few"):
        hold_out(9)


def test_the_sweep_takes_the_best_on_held_out_images() -> None:
    x, y = blobs(200, noise=1.5)
    found = sweep(x, y, 3, powers=(-6.0, -1.0, 3.0))
    assert found.accuracies[f"{found.power:g}"] == max(found.accuracies.values())
    assert fit(x, y, 3, 10**found.power).percent_right(*blobs(300, noise=1.5, seed=4)) > 80


def test_random_labels_cannot_be_learnt() -> None:
    x, y = blobs(300)
    permuted = y[torch.randperm(300, generator=torch.Generator().manual_seed(1))]
    found = sweep(x, permuted, 3, powers=(-2.0, 0.0))
    assert max(found.accuracies.values()) < 60


def test_a_stopped_sweep_goes_on_where_it_was() -> None:
    x, y = blobs(100, noise=2.0)
    heard: list[int] = []
    whole = sweep(x, y, 3, powers=(-2.0, 0.0, 2.0))
    again = sweep(x, y, 3, powers=(-2.0, 0.0, 2.0), known={"-2": whole.accuracies["-2"]}, on_value=lambda known: heard.append(len(known)))
    assert again == whole
    assert heard == [2, 3]


def test_the_published_grid_has_45_powers_from_minus_6_to_5() -> None:
    assert (len(POWERS), POWERS[0], POWERS[-1], POWERS[4]) == (45, -6.0, 5.0, -5.0)
