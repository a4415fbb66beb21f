"""`report`: one HTML page; `evaluate table`: the paper's table with our figures beside."""

from pathlib import Path
from typing import Unpack

import click

from ...storage.core.choices import Device
from .evaluate import evaluate, evaluated
from .group import cli, run
from .options import DEVICE, DRY_RUN, FILE, FOLDER, JSON, MODELS, PATH, RANDOM, ModelsValues, options, store_url


@cli.command()
@click.argument("runs", nargs=-1, metavar="[RUN]...", type=FOLDER)
@options(
    click.option("--store", default=None, callback=store_url, metavar="URL",
                 help="Feature store: adds its health, neighbours, photos for the pictures."),
    click.option("--features", multiple=True, metavar="KEY", help="Feature set; repeatable; default: those the runs learnt from."),
    click.option("--verify", is_flag=True, help="Read every byte of the feature sets and report damage."),
    click.option("--image", "images", multiple=True, type=PATH, help="Photo for the pictures; repeatable."),
    click.option("--query", "queries", multiple=True, metavar="ID", help="Image whose neighbours are shown; repeatable."),
    click.option("--model", "models", multiple=True, metavar="NAME", help="Another encoder beside the runs; repeatable."),
    *MODELS[1:],
    click.option("--foreground", is_flag=True, help="Leave the pictures' background black; guessed from the tokens."),
    click.option("--out", type=FILE, required=True, help="Where the page goes."), JSON,
)  # fmt: skip
def report(
    as_json: bool, runs: tuple[Path, ...], store: str | None, features: tuple[str, ...], verify: bool, out: Path,
    images: tuple[Path, ...], queries: tuple[str, ...], foreground: bool, **models: Unpack[ModelsValues],
) -> None:  # fmt: skip
    """Write one HTML page about runs or feature sets. It needs no other file and no script."""
    from ..reports.page_contents import PictureChoice, ReportOptions
    from ..reports.page_contents import report as write

    pictures = PictureChoice(images=images, foreground=foreground, queries=queries, **models)
    request = ReportOptions(out, runs, store, features, verify, pictures)
    run(lambda on_event: write(request, on_event), as_json)


@evaluate.command()
@options(
    click.option("--models", multiple=True, metavar="[ROW=]MODEL",
                 help="Run, export, checkpoint or teacher; repeatable. Default: the paper's rivals whose weights are on disk."),
    click.option("--data", multiple=True, type=FOLDER, metavar="DIR",
                 help="ImageNet-1k, ADE20k, NYUv2, SPair-71k, or their parent; repeatable."),
    click.option("--text", multiple=True, metavar="[MODEL=]DIR", help="Text tower for zero-shot; repeatable."),
    click.option("--classes", type=FILE, default=None, metavar="TOML", help="Names of the classes, for zero-shot."),
    click.option("--table", type=click.Choice(["1", "2", "3", "5", "6", "7", "8", "9"]), default="1", show_default=True,
                 help="Of the paper."),
    click.option("--store", default=None, callback=store_url, metavar="URL", help="Feature store; default: the evaluations' own."),
    click.option("--steps", type=click.IntRange(2), default=None, help="Of heads, for a trial; default: the official schedule."),
    DEVICE, RANDOM, DRY_RUN, JSON,
)  # fmt: skip
def table(
    as_json: bool, models: tuple[str, ...], data: tuple[Path, ...], text: tuple[str, ...], classes: Path | None, table: str,
    store: str | None, steps: int | None, device: Device, allow_random_weights: bool, dry_run: bool,
) -> int:  # fmt: skip
    """Fill the paper's table for what is on disk, its figures beside. Records are reused; run again, it goes on."""
    from ..reports.paper_table import TableOptions, fill_table

    request = TableOptions(
        models=models, data=data, text=text, classes=classes, table=int(table), store=store, steps=steps, device=device,
        allow_random_weights=allow_random_weights, dry_run=dry_run,
    )  # fmt: skip
    return evaluated(lambda on_event: fill_table(request, on_event), as_json, hidden=("rows",))
