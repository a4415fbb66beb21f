"""The work order of an extraction's workers, their number, and the device of each teacher within a worker.

A worker sees the GPUs that Ray gave it as cuda:0, cuda:1, …. A teacher goes to the device that the user chose; the others are assigned to
the worker's GPUs round robin. Teachers on different GPUs compute one batch in parallel, so a batch takes as long as the slowest GPU. The
device is no part of any identity: the canary says whether it is the same teacher there.
"""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from ...storage.core.choices import ResizeOn
from ...storage.core.errors import BadInput, unknown_name
from ...storage.store import FeatureStore
from ...storage.views.view_set import ViewSet
from ...teachers.registry.spec import TeacherSpec
from ..ray_session import cluster_address
from .options import ExtractOptions


@dataclass(frozen=True)
class WorkOrder:
    """What a worker needs to know, small enough to be sent to any machine that sees the store and the weights."""

    store_url: str
    view_set: str  # key
    teachers: tuple[TeacherSpec, ...]
    device: str
    threads: int
    batch_size: int | None  # views in one forward; None: found by each worker
    render_threads: int = 1
    gpus: float = 1.0  # of one worker, where the device is one
    normalisation: str = "mean-std"  # or "phi-s": what `measure` measures
    devices: Mapping[str, str] = field(default_factory=dict)  # of teachers that are elsewhere than on `device`
    compile: bool = False
    layers: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # by teacher: blocks whose tokens are stored beside the final ones
    resize: ResizeOn = "host"
    kept_run: str | None = None  # whose forwards are kept from `measure_shard` to `do_shard`; None: nobody's


_MOST_RENDER_THREADS = 8  # of one GPU's worker: a resize gives some 500 views a second and thread


def work_order(
    store: FeatureStore, views: ViewSet, specs: dict[str, TeacherSpec], options: ExtractOptions, chosen: Mapping[str, str]
) -> WorkOrder:
    """Return what each worker is told; `chosen`: devices that the user gave teachers. Raises `BadInput` for a device that is not there."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    threads = torch.get_num_threads() if options.workers == 0 else 1
    share = (os.cpu_count() or 1) // max(1, torch.cuda.device_count())
    rendering = max(1, min(_MOST_RENDER_THREADS, share - 1)) if device == "cuda" else 1
    return WorkOrder(
        store.url,
        views.key,
        tuple(specs.values()),
        device,
        threads,
        options.batch_size,
        render_threads=rendering,
        gpus=options.num_gpus,
        normalisation=options.normalisation,
        devices=assign_devices(
            list(specs), device, options.num_gpus, {name: device_name for name, device_name in chosen.items() if name in specs}
        ),
        compile=options.compile,
        resize=options.resize,
    )


def worker_count(order: WorkOrder, options: ExtractOptions) -> int | None:
    """Return one worker a GPU; on CPUs one a core, because single-threaded teachers in parallel beat threads inside one; None on a
    cluster.
    """
    if options.workers is not None or cluster_address(options.address) is not None:
        return options.workers
    return int(torch.cuda.device_count() / order.gpus) if order.device == "cuda" else torch.get_num_threads()


def assign_devices(names: Sequence[str], device: str, gpus: float, chosen: Mapping[str, str]) -> dict[str, str]:
    """Return the device of each teacher of one worker that has `gpus` GPUs (of kind `device`, "cuda" or "cpu").

    Raises `BadInput` for a teacher that is not there, and for a device that the worker does not have.
    """
    for name, requested in chosen.items():
        if name not in names:
            raise unknown_name("teacher in --teacher-device", name, names)
        _check(name, requested, device, gpus)
    count = max(1, math.floor(gpus)) if device == "cuda" else 0
    free = [name for name in names if name not in chosen]
    assigned = {name: f"cuda:{number % count}" if count > 1 else device for number, name in enumerate(free)}
    return {name: chosen.get(name) or assigned[name] for name in names}


def _check(name: str, requested: str, device: str, gpus: float) -> None:
    try:
        asked = torch.device(requested)
    except RuntimeError as error:
        raise BadInput(f"--teacher-device {name}={requested}: devices are cpu, cuda:0, cuda:1, …") from error
    if asked.type not in ("cpu", "cuda"):
        raise BadInput(f"--teacher-device {name}={requested}: devices are cpu, cuda:0, cuda:1, …")
    if asked.type == "cuda" and device != "cuda":
        raise BadInput(f"--teacher-device {name}={requested}: this machine has no CUDA device")
    if asked.type == "cuda" and (asked.index or 0) >= math.ceil(gpus):
        raise BadInput(
            f"--teacher-device {name}={requested}: a worker has {gpus:g} GPU; give it more with --num-gpus {(asked.index or 0) + 1}"
        )


def gpu_use(devices: Iterable[torch.device]) -> float | None:
    """Return the share of the last moment in which the GPUs computed, their mean; None on CPUs and where the driver does not say."""
    shares = []
    for device in {device for device in devices if device.type == "cuda"}:
        try:
            shares.append(torch.cuda.utilization(device) / 100)
        except (ModuleNotFoundError, RuntimeError, AttributeError):  # no nvidia-ml-py, or a driver that refuses to say
            return None
    return sum(shares) / len(shares) if shares else None
