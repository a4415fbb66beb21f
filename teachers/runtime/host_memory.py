"""Keep the memory of freed tensors while a CPU computes, instead of fetching it from the kernel anew for every operator.

glibc's allocator takes blocks of more than some megabytes from the kernel and gives them back when they are freed, so that the kernel
clears the same pages again and again: a step of a small student (6.6 million parameters, 32 photos of 64 px) made 13,000 page faults, a
forward pass of a ViT-B over 32 photos of 128 px up to 285,000. Kept, they make next to none (docs/decisions/0069 says more). A process
still gives back what lies free at the end of its heap beyond `KEPT_BYTES`. Elsewhere (macOS, musl), and where the environment sets
glibc's limits itself, nothing changes.
Source: mallopt(3).
"""

import ctypes
import os
from functools import cache

import torch

KEPT_BYTES = 1 << 30
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_SET_BY_USER = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_")


def keep_freed_memory(device: torch.device | str) -> None:
    """Have this process keep its freed memory, where `device` is the CPU; once is enough."""
    if torch.device(device).type == "cpu":
        _set_limits()


@cache
def _set_limits() -> bool:
    """Set both limits of glibc; return whether they hold."""
    if any(name in os.environ for name in _SET_BY_USER) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all([mallopt(_M_MMAP_THRESHOLD, KEPT_BYTES), mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)])
