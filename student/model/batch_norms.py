"""Students with batch norm: whose statistics normalise a batch, and what becomes of the running ones.

Each rank normalises each part of its batch (`run.accumulate`) by that part's statistics, as DDP does without SyncBatchNorm, which torch has
for GPUs alone. After a step the running statistics are averaged over the ranks, so that every rank evaluates with what the first one
writes. The number of ranks and of parts therefore decides what is computed, and not its rounding alone: a run records both, and another
number does not go on with it. The moving average of the weights takes the running statistics with it, at its own decay. A step that
diverges puts them back, as its checkpoint is of the step before. A student without batch norm has no part in any of this.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...storage.core.errors import BadInput
from ...teachers.encoders.build import build_encoder
from .ranks import Ranks
from .recipe import RunConfig

_HOW = "each rank normalises each part of its batch by itself; running statistics are averaged over ranks after each step"


def running_statistics(module: nn.Module) -> list[Tensor]:
    """Return the running means and variances of a module's batch norms, in its own order."""
    norms = [child for child in module.modules() if isinstance(child, nn.modules.batchnorm._NormBase)]
    return [statistic for norm in norms for statistic in (norm.running_mean, norm.running_var) if statistic is not None]


def counters(module: nn.Module) -> list[Tensor]:
    """Return how many batches each batch norm has seen."""
    norms = [norm for norm in module.modules() if isinstance(norm, nn.modules.batchnorm._NormBase)]
    return [norm.num_batches_tracked for norm in norms if norm.num_batches_tracked is not None]


def average_over_ranks(module: nn.Module, ranks: Ranks) -> None:
    """Set the running statistics to their mean over all ranks; collective, nothing is sent without batch norm or with one rank."""
    statistics = running_statistics(module)
    if not statistics or ranks.count == 1:
        return
    together = ranks.sum(torch.cat([statistic.flatten() for statistic in statistics])) / ranks.count
    for statistic, mean in zip(statistics, torch.split(together, [statistic.numel() for statistic in statistics]), strict=True):
        statistic.copy_(mean.view_as(statistic))


class KeptStatistics:
    """The running statistics and counters as they were when this was made."""

    def __init__(self, module: nn.Module) -> None:
        self._kept = [(tensor, tensor.clone()) for tensor in (*running_statistics(module), *counters(module))]

    def put_back(self) -> None:
        """Undo what forward passes have done to them since."""
        for tensor, before in self._kept:
            tensor.copy_(before)


@torch.no_grad()
def follow(average: nn.Module, student: nn.Module, decay: float) -> None:
    """Move the average of the weights one step towards the student's."""
    torch._foreach_lerp_(list(average.parameters()), list(student.parameters()), 1 - decay)


@torch.no_grad()
def follow_statistics(average: nn.Module, student: nn.Module, decay: float, refused: Tensor | None = None) -> None:
    """Move the average's running statistics one step towards the student's and copy the counters; where `refused` is 1, leave them."""
    ours = running_statistics(average)
    if not ours:
        return
    kept = () if refused is None else tuple((tensor, tensor.clone()) for tensor in (*ours, *counters(average)))
    torch._foreach_lerp_(ours, running_statistics(student), 1 - decay)
    for counter, theirs in zip(counters(average), counters(student), strict=True):
        counter.copy_(theirs)
    for tensor, before in kept:
        assert refused is not None
        tensor.copy_(torch.where(refused != 0, before, tensor))


def batch_norm_identity(architecture: Mapping[str, Any], run: RunConfig, ranks: Ranks) -> dict[str, Any]:
    """Return what a run records of a student with batch norm, {} for any other; raise `BadInput` where a part would be one image."""
    with torch.device("meta"):
        if not running_statistics(build_encoder(architecture)):
            return {}
    of_a_rank = run.batch_size // ranks.count
    smallest = of_a_rank // min(of_a_rank, run.accumulate) if of_a_rank else 0
    if smallest < 2:
        raise BadInput(
            f"the student {architecture['name']} has batch norm, which needs two images, and gets parts of {smallest}: a batch of "
            f"{run.batch_size} over {ranks.count} ranks in {run.accumulate} parts. Raise run.batch_size, or lower run.accumulate"
        )
    return {"batch_norm": {"how": _HOW, "accumulate": run.accumulate, "ranks": ranks.count}}
