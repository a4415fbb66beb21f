"""Which teacher runs on which of a worker's devices, and how busy those are.

A worker sees the GPUs that it was given as cuda:0, cuda:1, …. What the user placed goes there; the other teachers are dealt out over the
worker's GPUs in turn. Teachers on different GPUs compute one batch side by side, so a batch takes as long as the slowest GPU. Where a
teacher runs is no part of any identity: the canary says whether it is the same teacher there.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch

from ...storage.core.errors import BadInput, unknown_name


def place(names: Sequence[str], device: str, gpus: float, chosen: Mapping[str, str]) -> dict[str, str]:
    """Device of each teacher of one worker that has `gpus` GPUs (of kind `device`, "cuda" or "cpu").

    Raises `BadInput` for a teacher that is not there, and for a device that the worker does not have.
    """
    for name, wanted in chosen.items():
        if name not in names:
            raise unknown_name("teacher in --teacher-device", name, names)
        _check(name, wanted, device, gpus)
    count = max(1, math.floor(gpus)) if device == "cuda" else 0
    free = [name for name in names if name not in chosen]
    dealt = {name: f"cuda:{number % count}" if count > 1 else device for number, name in enumerate(free)}
    return {name: chosen.get(name) or dealt[name] for name in names}


def _check(name: str, wanted: str, device: str, gpus: float) -> None:
    try:
        asked = torch.device(wanted)
    except RuntimeError as error:
        raise BadInput(f"--teacher-device {name}={wanted}: devices are cpu, cuda:0, cuda:1, …") from error
    if asked.type not in ("cpu", "cuda"):
        raise BadInput(f"--teacher-device {name}={wanted}: devices are cpu, cuda:0, cuda:1, …")
    if asked.type == "cuda" and device != "cuda":
        raise BadInput(f"--teacher-device {name}={wanted}: this machine has no CUDA device")
    if asked.type == "cuda" and (asked.index or 0) >= math.ceil(gpus):
        raise BadInput(
            f"--teacher-device {name}={wanted}: a worker has {gpus:g} GPU; give it more with --num-gpus {(asked.index or 0) + 1}"
        )


def gpu_use(devices: Iterable[torch.device]) -> float | None:
    """Share of the last moment in which the GPUs computed, their mean; None on CPUs and where the driver's library does not say."""
    shares = []
    for device in {device for device in devices if device.type == "cuda"}:
        try:
            shares.append(torch.cuda.utilization(device) / 100)
        except (ModuleNotFoundError, RuntimeError, AttributeError):  # no nvidia-ml-py, or a driver that refuses to say
            return None
    return sum(shares) / len(shares) if shares else None
