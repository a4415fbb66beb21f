"""Choose device and precision of a run; each choice carries its reason.

`auto` means CUDA where it is available, and bf16 autocast where the hardware multiplies bf16 (CUDA capability 8.0, AVX512-BF16 or AMX on
x86). Requesting CUDA where there is none is an error, never a silent CPU. On a CPU, attention uses plain matrix products: torch's fused CPU
kernel is slower in its backward pass for the short sequences of small images (21 tokens, bf16: 355 against 513 images/s).
"""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple, cast

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...storage.core.choices import ComputePrecision
from ...storage.core.errors import BadInput

AUTOCAST: dict[ComputePrecision, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16}
"""What autocast computes in, by precision; None switches it off, an outer one too."""
_BF16_FLAGS = ("amx_bf16", "avx512_bf16")
_BF16_CAPABILITY = (8, 0)


class Choice(NamedTuple):
    """A resolved value and why it was chosen."""

    value: str
    why: str


def choose_device(requested: str) -> Choice:
    """Return `cpu` or `cuda`; raise `BadInput` when CUDA is requested and absent."""
    present = torch.cuda.is_available()
    if requested == "cuda" and not present:
        raise BadInput("device = 'cuda' was asked for, but torch sees no CUDA device; use device = 'cpu' or mend the driver")
    if requested != "auto":
        return Choice(requested, "asked for")
    if present:
        return Choice("cuda", f"auto: {torch.cuda.get_device_name()}")
    return Choice("cpu", "auto: torch sees no CUDA device")


def choose_precision(requested: str, device: str) -> Choice:
    """Return `bf16` or `fp32` for autocast on a device."""
    if requested != "auto":
        return Choice(requested, "asked for")
    if torch.device(device).type == "cuda":
        capability = torch.cuda.get_device_capability()
        fast = capability >= _BF16_CAPABILITY
        return Choice("bf16" if fast else "fp32", f"auto: CUDA capability {capability[0]}.{capability[1]}")
    flags = torch.cpu.get_capabilities()
    available = [flag for flag in _BF16_FLAGS if flags.get(flag)]
    return Choice("bf16", f"auto: the CPU has {available[0]}") if available else Choice("fp32", "auto: the CPU has no bf16 arithmetic")


def choose_devices(requested: str, students: int) -> list[Choice]:
    """Return a device for each student of one pass: CUDA devices in turn where there are several."""
    chosen = choose_device(requested)
    count = torch.cuda.device_count() if chosen.value == "cuda" else 1
    if students == 1 or count == 1:
        return [chosen] * students
    return [Choice(f"cuda:{number % count}", f"student {number + 1} of {students} on {count} devices") for number in range(students)]


def allow_tf32(device: str) -> None:
    """Let fp32 matrix products on CUDA use TF32: weights and losses stay fp32, products round to 10 bits."""
    if torch.device(device).type == "cuda":
        torch.set_float32_matmul_precision("high")


def mixed_precision(device: torch.device | str, precision: str) -> torch.autocast:
    """Return the autocast context of a precision on a device, disabled for fp32."""
    dtype = AUTOCAST[cast(ComputePrecision, precision)]
    return torch.autocast(torch.device(device).type, dtype or torch.bfloat16, enabled=dtype is not None)


@contextlib.contextmanager
def attention_kernel(device: str) -> Iterator[None]:
    """Select the attention kernel of a device for the block; a backward pass that recomputes activations must run under the same one."""
    with sdpa_kernel([SDPBackend.MATH]) if torch.device(device).type == "cpu" else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def autocast(device: str, precision: str) -> Iterator[None]:
    """Enable autocast and select the attention kernel for a forward pass."""
    with mixed_precision(device, precision), attention_kernel(device):
        yield
