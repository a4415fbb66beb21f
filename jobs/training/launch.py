"""`train`: compute missing shards where the user asked for it, then train in this process or on several ranks."""

from pathlib import Path
from typing import Any

from ...storage.core.errors import BadInput
from ...storage.core.events import OnEvent, ignore_event
from ...student.training.trackers import require_clients
from .fill_missing import fill_missing
from .options import TrainOptions, check_teachers_given
from .ranks import train_on_workers
from .start_checks import report_training_terms
from .train import student_runs, train_in_process
from .versions import recorded_versions


def train(options: TrainOptions, on_event: OnEvent = ignore_event) -> dict[str, Any]:
    """Run or resume one stage of distillation; returns its summary, with `already: True` and at once when that run is finished.

    Raises BadInput and CacheMismatch before any step.
    """
    check_teachers_given(options)
    if options.address is not None and not options.workers:
        raise BadInput("--address is a Ray cluster's, and without --workers the training runs in this process; give --workers as well")
    if options.address is None:  # ranks of a cluster have an environment of their own
        require_clients(options.track)
    starts = [recipe.student.init_from for recipe, _ in student_runs(options.recipe, options.students, Path()).values()]
    report_training_terms(options, starts, on_event)
    if options.on_miss == "compute":
        store = options.open_store()
        versions = recorded_versions(options, store, options.out)
        fill_missing(
            store, options.features, [versions.get(name, name) for name in options.datasets],
            teachers=() if options.live_teachers else options.teachers, views_per_image=options.new_views,
            views=options.recipe.views.spec(), allow_random_weights=options.allow_random_weights, terms=options.terms,
            on_event=on_event,
        )  # fmt: skip
    return train_on_workers(options, on_event) if options.workers else train_in_process(options, on_event)
