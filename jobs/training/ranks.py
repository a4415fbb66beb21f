"""Training on several processes or machines: a group of ranks, in each of which the trainer of one process runs.

Every rank opens the store itself and builds its own span of each batch. The run's folder must be visible to all ranks; after a death the
group goes on from the newest checkpoint (`rank_group`).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...storage.core.events import OnEvent, ignore_event
from ...storage.core.urls import is_url
from ...student.data.sized import cached_sizes
from ...student.model.ranks import Ranks, rank_span
from ...student.model.recipe import TrainRecipe
from ..runs.upload import local_copy
from .data import open_parts
from .options import TrainOptions
from .rank_group import Group, run_group
from .train import train_in_process
from .versions import recorded_versions


def train_on_workers(options: TrainOptions, on_event: OnEvent = ignore_event) -> dict[str, Any]:
    """Train with `options.workers` ranks; returns and raises what `train_in_process` does, `EupeError` after too many deaths."""
    recipe, workers = options.recipe, options.workers
    rank_span(recipe.run.batch_size, 0, workers)  # raises BadInput when a rank would have nothing
    store, shares = options.open_store(), recipe.data.shares
    versions = recorded_versions(options, store, options.out)
    open_parts(
        store, options.features, options.data, shares, subsets=options.subsets, complete=options.complete, versions=versions,
        sizes_px=cached_sizes(recipe),
    )  # fmt: skip
    out = local_copy(str(options.out)) if is_url(options.out) else Path(options.out)
    scratch = out.parent / f".{out.name}.ray"
    advice = "smaller run.batch_size, or run.accumulate"
    return run_group(Group(_train, options, workers, _wants_cuda(recipe), scratch, advice, options.address), on_event)


def _wants_cuda(recipe: TrainRecipe) -> bool:
    from ...teachers.runtime.devices import choose_device

    return choose_device(recipe.device).value == "cuda"


def _train(options: TrainOptions, ranks: Ranks, on_event: OnEvent, stop_asked: Callable[[], bool]) -> dict[str, Any]:
    return train_in_process(options, on_event, ranks=ranks, stop_asked=stop_asked)
