"""Trainings of tests: a recipe, an open store and feature sets become one request, which runs in this process; and those of `train`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from eupe_pipeline.jobs.estimates.training import plan_training
from eupe_pipeline.jobs.training import launch
from eupe_pipeline.jobs.training.options import TrainOptions
from eupe_pipeline.jobs.training.train import train_in_process
from eupe_pipeline.pipeline.recipes.training import training_recipe
from eupe_pipeline.storage.core.events import OnEvent, ignore_event
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.student.model.ranks import ALONE, Ranks
from eupe_pipeline.student.model.recipe import TrainRecipe


def train(
    recipe: TrainRecipe,
    store: FeatureStore,
    features: Sequence[str],
    *,
    on_event: OnEvent = ignore_event,
    ranks: Ranks = ALONE,
    stop_asked: Callable[[], bool] = lambda: False,
    **values: Any,
) -> dict[str, Any]:
    """`values`: further fields of TrainOptions."""
    options = TrainOptions(recipe, store.url, tuple(features), **values)
    return train_in_process(options, on_event, ranks=ranks, stop_asked=stop_asked)


def train_command(
    *, store: str, out: Path | str, stage: int = 2, features: Sequence[str] = ("tiny-teacher",), data: Sequence[str] = ("photos",),
    recipe: str | None = None, settings: Sequence[str] = (), targets: Any = None, students: Sequence[str] = (), dry_run: bool = False,
    on_event: OnEvent = ignore_event, **values: Any,
) -> dict[str, Any]:  # fmt: skip
    """What `train` does with its words; `values`: further fields of TrainOptions."""
    resolved, dataset = training_recipe(stage, recipe, settings=settings, targets=targets, students=students, data=data)
    students = tuple(students)
    options = TrainOptions(resolved.recipe, store, tuple(features), out, dataset, resolved.origins, students=students, **values)
    return {**plan_training(options), "recipe": resolved.table()} if dry_run else launch.train(options, on_event)
