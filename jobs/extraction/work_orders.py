"""What each worker of an extraction is told, and how many workers there are: the user's options and this machine's devices."""

import os
from collections.abc import Mapping

import torch

from ...storage.store import FeatureStore
from ...storage.views.view_set import ViewSet
from ...teachers.registry.spec import TeacherSpec
from ..ray_session import cluster_address
from .options import ExtractOptions
from .placement import place
from .shard_worker import WorkOrder

_MOST_RENDER_THREADS = 8  # of one GPU's worker: a resize gives some 500 views a second and thread


def work_order(
    store: FeatureStore, views: ViewSet, specs: dict[str, TeacherSpec], options: ExtractOptions, chosen: Mapping[str, str]
) -> WorkOrder:
    """What each worker is told; `chosen` are the devices that the user placed teachers on. Raises `BadInput` for one that is not there."""
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
        devices=place(list(specs), device, options.num_gpus, {name: where for name, where in chosen.items() if name in specs}),
        compile=options.compile,
    )


def worker_count(order: WorkOrder, options: ExtractOptions) -> int | None:
    """One worker a GPU; on CPUs one a core, because single-threaded teachers side by side beat threads inside one; None on a cluster."""
    if options.workers is not None or cluster_address(options.address) is not None:
        return options.workers
    return int(torch.cuda.device_count() / order.gpus) if order.device == "cuda" else torch.get_num_threads()
