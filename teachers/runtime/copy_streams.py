"""CUDA streams for copies between host and device, and values that are read on the host after the device has gone on.

A device copies in each direction while it computes. A copy from pageable memory makes the host wait for all queued work, so memory is
pinned. On a CPU nothing is queued: values are there at once.
"""

from functools import cache
from typing import Literal

import torch
from torch import Tensor


@cache
def copy_stream(device: torch.device, direction: Literal["in", "out"]) -> torch.cuda.Stream:
    """Return the CUDA stream of a device and direction, one a process: a device copies both ways at once."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class HostValues:
    """A small tensor (n,) that is on its way to the host since this was made."""

    def __init__(self, values: Tensor) -> None:
        self._arrived: torch.cuda.Event | None = None
        if not values.is_cuda:
            self._host = values.detach().clone()
            return
        self._host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        self._host.copy_(values.detach(), non_blocking=True)
        self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._arrived.record(torch.cuda.current_stream(values.device))  # which need not be the current device

    def wait(self) -> list[float]:
        """Return the values, as soon as the device has computed and sent them."""
        if self._arrived is not None:
            self._arrived.synchronize()
        numbers: list[float] = self._host.numpy().tolist()  # by numpy: `Tensor.item` of a device's tensor is what must not be called
        return numbers
