"""Optimisers by name: torch's fused AdamW, and LAMB (You et al., arXiv 1904.00962) for stage 1's large batches.

LAMB is ours because torch has none, and timm's counts steps by group, which checkpoints of state by parameter would lose. It is Adam's
update with bias correction plus decoupled decay, scaled per tensor by ‖w‖ / ‖update‖ (1 where either is 0), without the paper's clipping
of the ratio. `is_decayed` alone decides what decays: the weights of linear layers and
convolutions, which is ours. Both keep their state per parameter as tensors, in the order of the groups: that is what a checkpoint stores.
"""

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor, nn

from ...storage.core.errors import unknown_name
from .recipe import OptimizerConfig


class Lamb(torch.optim.Optimizer):
    """LAMB; `lr`, `betas`, `eps` and `weight_decay` by parameter group. It knows `found_inf`, as torch's fused optimisers do."""

    found_inf: Tensor | None = None

    def __init__(self, params: Iterable[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient; closures are not supported."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return None

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] += 1
        count, (beta1, beta2) = int(state["step"]), group["betas"]
        mean, square = state["exp_avg"], state["exp_avg_sq"]
        refused = None if self.found_inf is None else self.found_inf != 0
        before = [tensor.clone() for tensor in (parameter, mean, square)] if refused is not None else []
        mean.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        denominator = (square / (1 - beta2**count)).sqrt_().add_(group["eps"])
        update = (mean / (1 - beta1**count)).div_(denominator).add_(parameter, alpha=group["weight_decay"])
        parameter.sub_(update.mul_(_trust_ratio(parameter, update) * group["lr"]))
        if refused is not None:
            for tensor, old in zip((parameter, mean, square), before, strict=True):
                tensor.copy_(torch.where(refused, old, tensor))

    def take_back_a_step(self) -> None:
        """Count the last step, which `found_inf` made void on the device, as not taken; the counters are the host's."""
        for state in self.state.values():
            state["step"] -= 1


def _trust_ratio(parameter: Tensor, update: Tensor) -> Tensor:
    """Return ‖w‖ / ‖update‖, 1 where either is 0."""
    weight_norm, update_norm = parameter.norm(), update.norm()
    usable = (weight_norm > 0) & (update_norm > 0)
    return torch.where(usable, weight_norm / update_norm.clamp_min(1e-30), torch.ones_like(weight_norm))


def is_decayed(name: str, parameter: Tensor, decayed: str = "weights") -> bool:
    """Return whether weight decay covers a parameter: the weights of linear layers and convolutions.

    Norms, biases, layer scales, class, register and mask tokens, position embeddings and tables have none. torch and timm call
    `weight` (or `in_proj_weight`) what a layer multiplies by, and give tokens, embeddings and scales names of their own, whatever their
    shape. With `decayed = "matrices"` the shape decides instead, tokens of shape (1, n, D) included: how runs were trained before.
    """
    return parameter.ndim >= 2 and (decayed == "matrices" or name.rpartition(".")[2].endswith("weight"))


def parameter_groups(module: nn.Module, weight_decay: float, decayed: str = "weights") -> list[dict[str, Any]]:
    """Return two groups of trainable parameters: those that decay, and the others; an empty one is left out."""
    by_decay: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            by_decay[is_decayed(name, parameter, decayed)].append(parameter)
    return [
        {"params": parameters, "weight_decay": weight_decay if decays else 0.0} for decays, parameters in by_decay.items() if parameters
    ]


def _adamw(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.Optimizer:
    betas = (config.beta1, config.beta2)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, eps=config.eps, fused=True)


def _lamb(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.Optimizer:
    return Lamb(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), eps=config.eps)


BUILDERS: dict[str, Callable[[list[dict[str, Any]], OptimizerConfig], torch.optim.Optimizer]] = {"adamw": _adamw, "lamb": _lamb}
"""An optimiser over parameter groups by name; a name that recipes may give stands in `storage.core.choices`."""


def build_optimizer(module: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Return the recipe's optimiser over the module's trainable parameters; raises `BadInput` for an unknown name."""
    if config.name not in BUILDERS:
        raise unknown_name("optimizer", config.name, BUILDERS)
    return BUILDERS[config.name](parameter_groups(module, config.weight_decay, config.decayed), config)


def guard_next_step(optimizer: torch.optim.Optimizer, refused: Tensor) -> None:
    """Have the next step change neither weights nor state where `refused`, a scalar on the device, is 1; the host need not know it."""
    optimizer.found_inf = refused  # type: ignore[attr-defined]  # as `torch.amp.GradScaler` gives it


def take_back_guarded_step(optimizer: torch.optim.Optimizer, *, is_first: bool) -> None:
    """Undo what is left of a step that turned out to be refused: the host's counters, and after the first one the zeros of a new state."""
    if is_first:
        optimizer.state.clear()
    elif isinstance(optimizer, Lamb):
        optimizer.take_back_a_step()


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = rate
