"""Every optimiser that recipes may name is built, learns, and goes on from its saved state as if it had not stopped."""

import copy

import pytest
import torch
from eupe_pipeline.storage.core import choices
from eupe_pipeline.student.model.optimizers import BUILDERS, build_optimizer
from eupe_pipeline.student.model.recipe import OptimizerConfig
from torch import nn


def test_the_table_has_the_optimizers_that_recipes_may_name() -> None:
    assert tuple(BUILDERS) == choices.OPTIMIZERS


def trained(module: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> nn.Module:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        optimizer.zero_grad()
        module(torch.randn(8, 4, generator=generator)).square().mean().backward()
        optimizer.step()
    return module


@pytest.mark.parametrize("name", BUILDERS)
def test_a_run_that_stopped_goes_on_to_the_same_bit(name: str) -> None:
    torch.manual_seed(0)
    config, first = OptimizerConfig(name=name, learning_rate=0.01, weight_decay=0.1), nn.Linear(4, 3)
    begun = copy.deepcopy(first)
    whole = trained(first, build_optimizer(first, config), range(4))
    before = build_optimizer(begun, config)
    trained(begun, before, range(2))
    states = before.state_dict()["state"]
    assert set(states) == {0, 1}
    assert all(isinstance(value, torch.Tensor) for state in states.values() for value in state.values())  # what a checkpoint can store
    again = copy.deepcopy(begun)
    after = build_optimizer(again, config)
    after.load_state_dict({"state": states, "param_groups": after.state_dict()["param_groups"]})
    trained(again, after, range(2, 4))
    for wanted, got in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(wanted, got)
