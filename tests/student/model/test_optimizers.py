"""LAMB against its formula in float64, AdamW by the recipe, and which parameters decay."""

from typing import Any

import numpy as np
import pytest
import torch
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.student.model.optimizers import BUILDERS, Lamb, build_optimizer, parameter_groups, set_learning_rate
from eupe_pipeline.student.model.recipe import OptimizerConfig
from eupe_pipeline.teachers.runtime.timm_import import import_timm
from numpy.typing import NDArray
from torch import nn

Floats = NDArray[np.float64]


def lamb_step(weight: Floats, gradient: Floats, mean: Floats, square: Floats, count: int, rate: float, decay: float) -> Floats:
    """One step of algorithm 2 of arXiv 1904.00962 in float64 (φ is the identity); `mean` and `square` are updated in place."""
    mean[:] = 0.9 * mean + 0.1 * gradient
    square[:] = 0.99 * square + 0.01 * gradient**2
    ratio = (mean / (1 - 0.9**count)) / (np.sqrt(square / (1 - 0.99**count)) + 1e-6) + decay * weight
    scale = np.linalg.norm(weight) / np.linalg.norm(ratio)
    return weight - rate * scale * ratio


def test_lamb_follows_its_formula_over_five_steps() -> None:
    generator = np.random.default_rng(3)
    weight = generator.normal(size=(4, 3))
    parameter = nn.Parameter(torch.from_numpy(weight.copy()))
    optimizer = Lamb([{"params": [parameter], "weight_decay": 0.02}], lr=0.1, betas=(0.9, 0.99), eps=1e-6)
    mean, square = np.zeros_like(weight), np.zeros_like(weight)
    for count in range(1, 6):
        gradient = generator.normal(size=weight.shape)
        parameter.grad = torch.from_numpy(gradient.copy())
        optimizer.step()
        weight = lamb_step(weight, gradient, mean, square, count, 0.1, 0.02)
        np.testing.assert_allclose(parameter.detach().numpy(), weight, rtol=1e-9)


def test_lamb_agrees_with_timms_where_that_adapts_every_tensor_and_clips_nothing() -> None:
    """timm's own defaults clip the gradient to 1 and leave tensors without decay unscaled."""
    import_timm()
    from timm.optim import Lamb as TimmLamb

    def groups() -> list[dict[str, Any]]:
        torch.manual_seed(0)
        tensors = [nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in ((4, 3), (3, 2, 2, 2), (5,), (1, 2, 3))]
        return [{"params": tensors[:2], "weight_decay": 0.02}, {"params": tensors[2:], "weight_decay": 0.0}]

    values: Any = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-6}
    ours, theirs = Lamb(groups(), **values), TimmLamb(groups(), max_grad_norm=None, always_adapt=True, **values)
    for step in range(20):
        for optimizer in (ours, theirs):
            torch.manual_seed(step)
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = 10 * torch.randn_like(parameter)
            set_learning_rate(optimizer, 0.1 * (1 - step / 20))
            optimizer.step()
    for mine, other in zip(ours.param_groups, theirs.param_groups, strict=True):
        for a, b in zip(mine["params"], other["params"], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_lamb_moves_a_zero_tensor_with_ratio_one() -> None:
    parameter = nn.Parameter(torch.zeros(3))
    optimizer = Lamb([{"params": [parameter]}], lr=0.1, betas=(0.9, 0.99), eps=0.0)
    parameter.grad = torch.tensor([1.0, -2.0, 4.0])
    optimizer.step()
    torch.testing.assert_close(parameter.detach(), torch.tensor([-0.1, 0.1, -0.1]))


def test_lamb_leaves_parameters_without_a_gradient_alone() -> None:
    parameter = nn.Parameter(torch.ones(3))
    Lamb([{"params": [parameter]}], lr=0.1, betas=(0.9, 0.99), eps=1e-6).step()
    assert torch.equal(parameter.detach(), torch.ones(3))


def test_matrices_decay_and_vectors_do_not() -> None:
    module = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))
    decayed, kept = parameter_groups(module, 0.1)
    assert [tuple(parameter.shape) for parameter in decayed["params"]] == [(3, 4)]
    assert decayed["weight_decay"] == 0.1
    assert len(kept["params"]) == 3
    assert kept["weight_decay"] == 0.0


def test_frozen_parameters_are_in_no_group() -> None:
    module = nn.Linear(4, 3, bias=False).requires_grad_(False)
    assert parameter_groups(module, 0.1) == []


@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_every_optimizer_learns_a_linear_map(name: str) -> None:
    torch.manual_seed(0)
    module, target = nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False)
    optimizer = build_optimizer(module, OptimizerConfig(name=name, learning_rate=0.1, weight_decay=0.0))
    x = torch.randn(64, 16)
    wanted, losses = target(x).detach(), []
    for step in range(200):
        set_learning_rate(optimizer, 0.1 * (1 - step / 200))
        optimizer.zero_grad()
        loss = (module(x) - wanted).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.02 * losses[0]


def test_the_recipes_values_reach_adamw() -> None:
    config = OptimizerConfig(learning_rate=0.5, beta1=0.8, beta2=0.95, eps=1e-7, weight_decay=0.3)
    optimizer = build_optimizer(nn.Linear(2, 2), config)
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.95)
    assert optimizer.param_groups[0]["eps"] == 1e-7
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]


def test_an_unknown_optimizer_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(BadInput, match="adamw"):
        OptimizerConfig(name="adam")
