"""`index`, `extract-features`, `plan`: from images to feature sets."""

from typing import Any

import click

from ...storage.core.choices import NORMALISATIONS, ORIENTATIONS, PHOTOMETRIC_MODES, VIEW_KINDS
from .group import cli, run
from .options import BAD_SHARE, DATA, DRY_RUN, JSON, PIXELS, STORE, TEACHERS, options, pairs


@cli.command()
@click.argument("source")
@options(
    STORE,
    click.option("--name", required=True, help="What the dataset is called."),
    click.option("--verify", is_flag=True, help="Only compare the source with the index that is there, image by image."),
    click.option("--dense-targets", is_flag=True, help="Take files such as 1.seg.png or 1.depth.png beside 1.jpg as images too."),
    click.option("--orientation", type=click.Choice(ORIENTATIONS), default=None,
                 help="Turn images as their EXIF orientation asks for, or leave them; default: upright."),
    BAD_SHARE, JSON,
)  # fmt: skip
def index(as_json: bool, **values: Any) -> None:
    """Index images where they lie. SOURCE is a folder tree, WebDataset tars, or Parquet files with image bytes."""
    from . import actions

    run(actions.index, as_json, **values)


@cli.command("extract-features")
@options(
    STORE, DATA, *TEACHERS, PIXELS,
    click.option("--photometric", type=click.Choice(PHOTOMETRIC_MODES), default=None,
                 help="Who sees colour jitter, blur, solarisation: nobody, both, the student; default: the recipe's, or none."),
    click.option("--view-kind", type=click.Choice(VIEW_KINDS), default=None,
                 help="Default: the recipe's, or random_resized_crop."),
    click.option("--seed", type=int, default=None, help="Seed of the views; default: the recipe's, or 0."),
    click.option("--statistics-batches", type=click.IntRange(1), default=500, show_default=True, help="Of 32 views, for mean and std."),
    click.option("--normalisation", type=click.Choice(NORMALISATIONS), default="mean-std", show_default=True, help="Of tokens."),
    click.option("--statistics-from", multiple=True, metavar="KEY", help="Use a feature set's statistics again; repeatable."),
    click.option("--workers", type=click.IntRange(0), default=None, help="Extracting actors; default: one a GPU or core; 0: none."),
    click.option("--num-gpus", type=click.FloatRange(0, min_open=True), default=1.0, show_default=True, help="GPUs of one worker."),
    click.option("--teacher-device", "teacher_devices", multiple=True, metavar="TEACHER=cuda:1", callback=pairs, help="Of a worker's."),
    click.option("--compile", is_flag=True, help="Teachers through torch.compile; a canary says whether tokens are the same."),
    click.option("--teachers-at-once", type=click.IntRange(1), default=None, help="Loaded at the same time; default: all."),
    click.option("--address", default=None, help="Ray cluster; default: one is started on this machine."),
    BAD_SHARE, DRY_RUN, JSON,
)  # fmt: skip
def extract_features(as_json: bool, **values: Any) -> None:
    """Run teachers once and keep their tokens. Run again, it does only what is missing."""
    from . import actions

    run(actions.extract, as_json, **values)


PRICE = click.FloatRange(0)


EXTRACTION = ("codec", "tokens_per_view", "grid", "images_per_shard", "batch_size", "precision", "constants", "allow_random_weights")


@cli.command()
@options(
    STORE, DATA, *TEACHERS, PIXELS,
    click.option("--student", default="eupe_vitt16", show_default=True, help="Architecture that will be trained."),
    click.option("--student-rate", "student_images_per_s", type=float, default=None, help="Its images a second; default: measured here."),
    click.option("--epochs", "epochs_of_a_run", type=float, default=100.0, show_default=True, help="Epochs of one student's run."),
    click.option("--device-hour", type=PRICE, default=0.0, metavar="MONEY", help="Price of a device for an hour."),
    click.option("--gigabyte-month", type=PRICE, default=0.0, metavar="MONEY", help="Price of storage."),
    click.option("--months", type=PRICE, default=12.0, show_default=True, help="How long the store is kept."),
    JSON,
)  # fmt: skip
def plan(as_json: bool, **values: Any) -> None:
    """Say what an extraction costs, and when it pays. Bytes, device hours and money, from a few measured batches."""
    from . import actions

    extraction = {name: values.pop(name) for name in EXTRACTION}
    run(actions.plan, as_json, extraction=extraction, **values)
