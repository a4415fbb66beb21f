"""`train`: one stage of distillation."""

from typing import Any

import click

from ...storage.core.choices import ON_MISS, TARGET_SOURCES
from .group import cli, run
from .options import DRY_RUN, FOLDER, JSON, RANDOM, SETTINGS, STORE, folder_or_url, options


@cli.command()
@options(
    click.option("--stage", type=click.IntRange(1, 3), required=True, help="1: to the proxy, 2: to the student, 3: several sizes."),
    STORE,
    click.option("--data", multiple=True, metavar="NAME[=SHARE]", help="Dataset; several, each with its share of the batches, are mixed."),
    click.option("--features", multiple=True, required=True, metavar="KEY", help="Feature set, by name or name@digest; repeatable."),
    click.option("--recipe", default=None, help="Recipe's name or TOML file; default: eupe-stageN."),
    SETTINGS,
    click.option("--out", required=True, callback=folder_or_url, metavar="FOLDER|URL", help="Run's folder; a run found there resumes."),
    click.option("--proxy", default=None, callback=folder_or_url, metavar="RUN|URL", help="Stage 3: the proxy's run, used live."),
    click.option("--targets", type=click.Choice(TARGET_SOURCES), default=None, help="Read targets or compute them; default: recipe's."),
    click.option("--teacher", "live_teachers", multiple=True, help="Live targets: the teacher of each --features; repeatable."),
    click.option("--student", "students", multiple=True, metavar="NAME", help="Architecture; several train in one pass, to OUT/NAME."),
    click.option("--workers", type=click.IntRange(0), default=0, show_default=True, help="Ranks through Ray Train; 0: this process."),
    click.option("--address", default=None, help="Ray cluster for --workers; default: one is started on this machine."),
    click.option("--follow", "follow_minutes", type=click.FloatRange(0), is_flag=False, flag_value=30, default=None, metavar="[MINUTES]",
                 help="Wait for shards that are still being extracted; give up when none has come for so long (30)."),
    click.option("--on-miss", type=click.Choice(ON_MISS), default="refuse", show_default=True,
                 help="Shards that are not there: compute them first, by the set's teacher (or --teacher), for later runs as well."),
    click.option("--views", "new_views", type=click.IntRange(1), default=1, show_default=True, help="Of sets that --on-miss begins."),
    click.option("--shard-cache", type=FOLDER, default=None, help="Whole shards of a remote store are kept here; default: ~/.cache."),
    click.option("--evaluate", "evaluation", type=click.Choice(["knn"]), default=None, help="Measure the student while it trains."),
    click.option("--every", type=click.IntRange(1), default=2000, show_default=True, help="Steps between two of these."),
    click.option("--evaluate-data", default=None, metavar="NAME", help="Labelled dataset that is not trained on, for --evaluate."),
    click.option("--evaluate-images", type=click.IntRange(20), default=2000, show_default=True, help="Of it; half are the neighbours."),
    click.option("--allow-overlap", is_flag=True, help="Evaluate on images that are trained on as well; say it instead of refusing."),
    RANDOM, DRY_RUN, JSON,
)  # fmt: skip
def train(as_json: bool, **values: Any) -> None:
    """Distil cached tokens into a student. Run again with the same values, it resumes at the last checkpoint."""
    from . import training

    run(training.train, as_json, **values)
