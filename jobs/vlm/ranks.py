"""Both stages of a language model on several ranks, which share its weights, gradients and moments out (FSDP), through Ray Train.

Each rank opens the request itself; the tokens are in the store before. The answers are made afterwards, by one process.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ...storage.core.events import OnEvent
from ...student.model.ranks import Ranks, rank_span
from ..training.rank_group import Group, run_group
from .options import VlmOptions
from .stages import VlmTraining, open_training, train_stages

_ADVICE = "a smaller --micro-batch, or more --workers"


def train_on_workers(training: VlmTraining, on_event: OnEvent) -> None:
    """Train what is not trained with `options.workers` ranks; raises `EupeError` after too many deaths."""
    options = training.options
    for stage in training.stages.values():
        rank_span(stage.recipe.batch_size, 0, options.workers)  # raises BadInput when a rank would have nothing
    scratch = training.model.folder / f".{training.file('instruct').stem}.ray"
    request = replace(options, out=training.model.folder)
    run_group(Group(_train, request, options.workers, training.device == "cuda", scratch, _ADVICE, options.address), on_event)


def _train(options: VlmOptions, ranks: Ranks, on_event: OnEvent, stop_asked: Callable[[], bool]) -> dict[str, Any]:
    train_stages(open_training(options, on_event if ranks.first else lambda event: None), ranks)
    return {}
