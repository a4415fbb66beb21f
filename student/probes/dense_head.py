"""The linear head of the dense evaluations: batch norm and one linear layer on every patch token, and the schedules that train it.

Segmentation and depth share it (paper, section 4; constants from the official evaluation configs of EUPE, which are DINOv3's): dropout of
whole channels (segmentation only), batch norm, 1 × 1 convolution with weights from N(0, 0.01). The learning rate warms up and falls as the
official code's does: segmentation rises over 1,500 steps against a line that falls to the end, then follows a cosine; depth rises over a
third of the run, with AdamW's first beta 0 meanwhile, and then 0.85 to 0.95. Its off-by-one steps are kept, because they are part of the
numbers that are compared. Axes: B images, H × W grid, D channels, K outputs.
"""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ...storage.core.errors import BadInput

_START_DIVISOR = 25.0  # torch's OneCycleLR: the cosine's end is max / 25 / final_divisor
_BETA_RANGE = (0.85, 0.95)


class DenseHead(nn.Module):
    """Patch tokens (B, H, W, D) → (B, K, H, W)."""

    def __init__(self, dim: int, outputs: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout, self.norm = nn.Dropout2d(dropout), nn.BatchNorm2d(dim)
        self.linear = nn.Conv2d(dim, outputs, kernel_size=1)
        nn.init.normal_(self.linear.weight, std=0.01)
        with torch.no_grad():
            self.linear.bias.zero_()  # type: ignore[union-attr]

    def forward(self, patch_BHWD: Tensor) -> Tensor:
        """Return logits at the grid's resolution."""
        logits_BKHW: Tensor = self.linear(self.norm(self.dropout(patch_BHWD.permute(0, 3, 1, 2))))
        return logits_BKHW


@dataclass(frozen=True)
class HeadRecipe:
    """How a head is trained; raises BadInput on values that cannot be."""

    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    warmup_steps: int
    beta2: float
    clip_norm: float = math.inf
    warmup_ratio: float = 0.0
    """Share of the rate at which a linear warm-up begins; 0 for depth's warm-up, which begins at rate / final_divisor."""
    final_divisor: float = math.inf
    cycled_beta1: bool = False
    """Whether AdamW's first beta follows the schedule instead of staying 0.9."""
    schedule_lag: int = 0
    """Steps by which the schedule lags behind (the official segmentation loop leaves its first call out)."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1 or self.learning_rate <= 0 or not 0 <= self.warmup_steps < max(2, self.steps):
            raise BadInput("a head needs steps, batch_size and learning_rate above 0, and a warm-up shorter than its steps")

    def at(self, step: int) -> tuple[float, float]:
        """Return the learning rate and first beta of a step."""
        scheduled, peak, total, warmup = max(0, step - self.schedule_lag), self.learning_rate, self.steps, self.warmup_steps
        if scheduled >= warmup:
            beta1 = _cosine(*_BETA_RANGE, (scheduled - warmup) / (total - warmup))
            end = peak / _START_DIVISOR / self.final_divisor
            return _cosine(peak, end, min(1.0, (scheduled + 1) / total)), beta1 if self.cycled_beta1 else 0.9
        if self.warmup_ratio:
            rise = 1 - (1 - scheduled / warmup) * (1 - self.warmup_ratio)
            return peak * rise * (1 - scheduled / total), 0.9
        return peak / self.final_divisor + _cosine(peak, 0.0, scheduled / total) * scheduled / warmup, 0.0 if self.cycled_beta1 else 0.9

    def identity(self) -> dict[str, Any]:
        """Return every field as JSON-able data; an infinite limit as text."""
        return {name: str(value) if value == math.inf else value for name, value in asdict(self).items()}

    def shortened(self, steps: int) -> "HeadRecipe":
        """Return the same schedule over another number of steps, its warm-up in proportion."""
        return replace(self, steps=steps, warmup_steps=self.warmup_steps * steps // self.steps)


def _cosine(start: float, end: float, share: float) -> float:
    """Return the value at `share` in [0, 1] of half a cosine from `start` to `end`."""
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))


ADE20K_RECIPE = HeadRecipe(
    40_000, 16, 1e-3, 1e-3, warmup_steps=1500, beta2=0.999, warmup_ratio=1e-6, schedule_lag=1,
)  # fmt: skip
NYU_RECIPE = HeadRecipe(38_400, 16, 3e-4, 1e-3, warmup_steps=12_800, beta2=0.99, clip_norm=35.0, final_divisor=1000.0, cycled_beta1=True)


def build_optimizer(head: nn.Module, recipe: HeadRecipe) -> torch.optim.Optimizer:
    """Return AdamW over all parameters of a head."""
    return torch.optim.AdamW(head.parameters(), lr=recipe.learning_rate, betas=(0.9, recipe.beta2), weight_decay=recipe.weight_decay)


def set_schedule(optimizer: torch.optim.Optimizer, recipe: HeadRecipe, step: int) -> None:
    """Set the optimiser's learning rate and first beta for a step; a group of parameters may have its share of the rate."""
    rate, beta1 = recipe.at(step)
    for group in optimizer.param_groups:
        group["lr"], group["betas"] = rate * group.get("rate_share", 1.0), (beta1, group["betas"][1])
