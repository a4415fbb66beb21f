"""`report`: one HTML page."""

from pathlib import Path
from typing import Unpack

import click

from .group import cli, run
from .options import FILE, FOLDER, JSON, MODELS, PATH, ModelsValues, options, store_url


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
