"""Runs a function on several ranks of a gloo process group on this machine, one process each.

A file is the meeting place, not a port, so that tests run side by side. The processes are forked from a server that has imported torch and
timm once, which saves some eight seconds a test.
"""

import itertools
import multiprocessing
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from eupe_pipeline.student.model.ranks import Ranks
from torch.multiprocessing.spawn import start_processes

_meetings = itertools.count()


def _rank(number: int, count: int, meeting: str, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=number, world_size=count)
    try:
        work(Ranks(number, count), *arguments)
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        dist.destroy_process_group()


def on_ranks(count: int, folder: Path, work: Callable[..., None], *arguments: Any) -> None:
    """Call `work(ranks, *arguments)` on each rank and wait; raises when one of them raised."""
    meeting = folder / f"meeting-{next(_meetings)}"
    multiprocessing.get_context("forkserver").set_forkserver_preload(["eupe_pipeline.jobs.training.train"])
    start_processes(_rank, (count, str(meeting), work, arguments), nprocs=count, start_method="forkserver")  # type: ignore[no-untyped-call]
