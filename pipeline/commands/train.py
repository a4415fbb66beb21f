"""`train`: one stage of distillation."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...storage.core.choices import (
    ON_MISS,
    RESIZE_ON,
    TARGET_SOURCES,
    TRACKERS,
    TRAINING_EVALUATIONS,
    LicenceUse,
    OnMiss,
    ResizeOn,
    TargetSource,
    Tracker,
    TrainingEvaluation,
)
from ...storage.core.errors import BadInput
from ...storage.core.events import OnEvent
from .group import cli, run
from .options import DRY_RUN, FOLDER, JSON, LAYER_WEIGHTS, LICENCES, RANDOM, SETTINGS, STORE, folder_or_url, options, share_held_out

if TYPE_CHECKING:
    from ...jobs.training.options import Watch


@cli.command()
@options(
    click.option("--stage", type=click.IntRange(1, 3), required=True, help="1: to the proxy, 2: to the student, 3: several sizes."),
    STORE,
    click.option("--data", multiple=True, metavar="NAME[=SHARE]", help="Dataset; several, each with its share of the batches, are mixed."),
    click.option("--subset", "subsets", multiple=True, metavar="NAME",
                 help="Train on these images alone (`features curate`); one a dataset."),
    click.option("--hold-out", default=None, callback=share_held_out, metavar="SHARE",
                 help="Never draw so many of the images, as 1% or 0.01; chosen by their ids. Default: recipe's, none."),
    click.option("--features", multiple=True, required=True, metavar="KEY", help="Feature set, by name or name@digest; repeatable."),
    click.option("--recipe", default=None, help="Recipe's name or TOML file; default: eupe-stageN."),
    SETTINGS,
    click.option("--out", required=True, callback=folder_or_url, metavar="FOLDER|URL", help="Run's folder; a run found there resumes."),
    click.option("--proxy", default=None, callback=folder_or_url, metavar="RUN|URL", help="Stage 3: the proxy's run, used live."),
    click.option("--targets", type=click.Choice(TARGET_SOURCES), default=None, help="Read targets or compute them; default: recipe's."),
    click.option("--teacher", "live_teachers", multiple=True, help="Live targets: the teacher of each --features; repeatable."),
    LAYER_WEIGHTS,
    click.option("--student", "students", multiple=True, metavar="NAME", help="Architecture; several train in one pass, to OUT/NAME."),
    click.option("--workers", type=click.IntRange(0), default=0, show_default=True, help="Ranks through Ray Train; 0: this process."),
    click.option("--address", default=None, help="Ray cluster for --workers; default: one is started on this machine."),
    click.option("--follow", "follow_minutes", type=click.FloatRange(0), is_flag=False, flag_value=30, default=None, metavar="[MINUTES]",
                 help="Wait for shards that are still being extracted; give up when none has come for so long (30)."),
    click.option("--on-miss", type=click.Choice(ON_MISS), default="refuse", show_default=True,
                 help="Shards that are not there: compute them first, by the set's teacher (or --teacher), for later runs as well."),
    click.option("--views", "new_views", type=click.IntRange(1), default=1, show_default=True, help="Of sets that --on-miss begins."),
    click.option("--shard-cache", type=FOLDER, default=None, help="Whole shards of a remote store are kept here; default: ~/.cache."),
    click.option("--evaluate", "evaluation", type=click.Choice(TRAINING_EVALUATIONS), default=None,
                 help="Measure the student while it trains: kNN on --evaluate-data, or agreement with the teachers on --hold-out."),
    click.option("--every", type=click.IntRange(1), default=2000, show_default=True, help="Steps between two of these."),
    click.option("--evaluate-data", default=None, metavar="NAME", help="Labelled dataset that is not trained on, for kNN."),
    click.option("--evaluate-images", type=click.IntRange(20), default=2000, show_default=True,
                 help="Of it, half of them neighbours; agreement: of held-out images, and as many trained ones."),
    click.option("--allow-overlap", is_flag=True, help="kNN on images that are trained on as well; say it instead of refusing."),
    click.option("--resize", type=click.Choice(RESIZE_ON), default="host", show_default=True,
                 help="Where views are resized, to the same bytes: by the reader threads, or in one batch on the device."),
    click.option("--track", multiple=True, type=click.Choice(TRACKERS), help="Show the run there, beside TensorBoard; repeatable."),
    *LICENCES, RANDOM, DRY_RUN, JSON,
)  # fmt: skip
def train(
    as_json: bool, stage: int, store: str, data: tuple[str, ...], subsets: tuple[str, ...], hold_out: float | None,
    features: tuple[str, ...],
    recipe: str | None, settings: tuple[str, ...],
    out: Path | str, proxy: Path | str | None, targets: TargetSource | None, live_teachers: tuple[str, ...],
    weight_of_layer: dict[str, float], students: tuple[str, ...],
    workers: int, address: str | None, follow_minutes: float | None, on_miss: OnMiss, new_views: int, shard_cache: Path | None,
    evaluation: TrainingEvaluation | None, every: int, evaluate_data: str | None, evaluate_images: int, allow_overlap: bool,
    resize: ResizeOn, track: tuple[Tracker, ...], require_licence: LicenceUse | None, terms: dict[str, str], allow_random_weights: bool,
    dry_run: bool,
) -> None:  # fmt: skip
    """Distil cached tokens into a student. Run again with the same values, it resumes at the last checkpoint."""

    def work(on_event: OnEvent) -> Mapping[str, Any]:
        from ...jobs.training.options import TrainOptions
        from ..recipes.training import training_recipe

        resolved, dataset = training_recipe(
            stage, recipe, settings=settings, targets=targets, students=students, data=data, hold_out=hold_out,
            layer_weights=weight_of_layer,
        )  # fmt: skip
        options = TrainOptions(
            recipe=resolved.recipe, origins=resolved.origins, store=store, features=features, data=dataset, subsets=subsets, out=out,
            proxy=proxy, teachers=live_teachers, students=students, workers=workers, address=address, on_miss=on_miss, new_views=new_views,
            follow_s=None if follow_minutes is None else 60 * follow_minutes, shard_cache=shard_cache,
            watch=watch_of(evaluation, every, evaluate_data, evaluate_images, allow_overlap), allow_random_weights=allow_random_weights,
            resize=resize, track=track, require_licence=require_licence, terms=terms,
        )  # fmt: skip
        if dry_run:
            from ...jobs.estimates.training import plan_training

            return {**plan_training(options), "recipe": resolved.table()}
        from ...jobs.training.launch import train as train_job

        return train_job(options, on_event)

    run(work, as_json)


def watch_of(
    evaluation: TrainingEvaluation | None, every: int, data: str | None, images: int, allow_overlap: bool = False
) -> "Watch | None":
    """Return the evaluation during the training, None without one; raises BadInput where its name is missing, or its data."""
    from ...jobs.training.options import Watch

    if evaluation is None and data is not None:
        raise BadInput("--evaluate and --evaluate-data go together: say --evaluate knn as well")
    return None if evaluation is None else Watch(evaluation, every, data or "", images, allow_overlap)
