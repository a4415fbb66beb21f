"""The ranks that train one student together, and the few collectives outside of the model's own gradients.

A single process is `ALONE`: nothing is sent. With more, the caller has opened torch's process group (gloo on a CPU, nccl on CUDA). Each
rank takes its span of every batch; sums over ranks keep decisions (stop, not finite) equal everywhere, or ranks would wait for each other
for ever.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from ...storage.core.errors import BadInput
from ...teachers.runtime.copy_streams import HostValues


@dataclass(frozen=True)
class Ranks:
    """This process is number `number` of `count`."""

    number: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Return whether this rank writes files and reports."""
        return self.number == 0

    def span(self, batch_size: int) -> tuple[int, int]:
        """Return [start, stop) of this rank in a batch; raises `BadInput` when a rank would have nothing."""
        return rank_span(batch_size, self.number, self.count)

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of a small tensor over all ranks; collective."""
        if self.count > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def any(self, flag: bool, device: str = "cpu") -> bool:
        """Return whether the flag is set on at least one rank; collective."""
        return flag if self.count == 1 else bool(self.sum(torch.tensor([float(flag)], device=device)).item())

    def any_later(self, flag: bool, device: str) -> "AnyLater":
        """Ask the same without waiting for the answer; collective."""
        return AnyLater(self.sum(torch.full((1,), float(flag), device=device)))

    def barrier(self) -> None:
        """Wait until all ranks are here; collective."""
        if self.count > 1:
            dist.barrier()


class AnyLater:
    """Whether a flag is set on at least one rank, once the device knows."""

    def __init__(self, count: Tensor) -> None:
        self._count = HostValues(count)

    def wait(self) -> bool:
        """Return the answer, the same on every rank."""
        return self._count.wait()[0] > 0


ALONE = Ranks()


def rank_span(batch_size: int, rank: int, ranks: int) -> tuple[int, int]:
    """Return [start, stop) of a batch that one rank takes: the spans of all ranks tile it, their sizes differ by one at most.

    Raises `BadInput` when a rank would have nothing.
    """
    if batch_size < ranks:
        raise BadInput(f"a batch of {batch_size} cannot be shared by {ranks} ranks; raise run.batch_size or use fewer workers")
    return batch_size * rank // ranks, batch_size * (rank + 1) // ranks
