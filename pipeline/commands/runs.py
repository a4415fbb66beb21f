"""`runs`, `recipe` and `report`: looking at runs and recipes."""

from pathlib import Path
from typing import Unpack

import click

from ...storage.core.choices import Device
from .group import cli, run
from .options import (
    FILE,
    FOLDER,
    JSON,
    MODELS,
    PATH,
    SETTINGS,
    STAGE,
    ModelsValues,
    folder_or_url,
    folders_or_urls,
    options,
    store_url,
)  # fmt: skip


@cli.group()
def runs() -> None:
    """Look at training runs, and compare them."""


@runs.command("ls")
@click.argument("folder", callback=folder_or_url, metavar="FOLDER|URL")
@options(JSON)
def runs_ls(as_json: bool, folder: Path | str) -> None:
    """List the training runs at or below a folder or a URL."""
    from ..reports.runs import list_runs

    run(lambda on_event: list_runs(folder=folder, on_event=on_event), as_json)


@runs.command("show")
@click.argument("out", callback=folder_or_url, metavar="RUN|URL")
@options(JSON)
def runs_show(as_json: bool, out: Path | str) -> None:
    """Show one run. How far it is, its losses, what it learns from, its recipe."""
    from ..reports.runs import show_run

    run(lambda on_event: show_run(out=out, on_event=on_event), as_json)


@runs.command("compare")
@click.argument("outs", nargs=-1, required=True, callback=folders_or_urls, metavar="RUN|URL...")
@options(JSON)
def runs_compare(as_json: bool, outs: list[Path | str]) -> None:
    """Compare runs side by side. Their results, and the recipe values in which they differ."""
    from ..reports.runs import compare_runs

    run(lambda on_event: compare_runs(outs=outs, on_event=on_event), as_json)


@runs.command("replay")
@click.argument("folder", type=FOLDER, metavar="RUN/nonfinite/step-N")
@options(
    click.option("--device", type=click.Choice(("cpu", "cuda")), default=None, help="Compute there; default: where the run did."),
    JSON,
)
def runs_replay(as_json: bool, folder: Path, device: Device | None) -> None:
    """Compute the step that was not finite again. Its losses, and the first module that gave nan or infinity."""
    from ..reports.replay import replay_step

    run(lambda on_event: replay_step(folder=folder, device=device, on_event=on_event), as_json)


@cli.group()
def recipe() -> None:
    """Look at the recipes."""


@recipe.command("ls")
@options(JSON)
def recipe_ls(as_json: bool) -> None:
    """List the recipes that come with the package, and which table or section of the paper each is."""
    from ..recipes import load

    run(lambda on_event: {"recipes": load.list_recipes(), "cites": load.cited_tables()}, as_json)


@recipe.command("show")
@click.argument("name")
@options(STAGE, SETTINGS, JSON)
def recipe_show(as_json: bool, name: str, stage: int | None, settings: tuple[str, ...]) -> None:
    """Print each value of a recipe with its origin. NAME or a TOML file; the paper's, ours and why, a file, --set, default."""
    from ..recipes import load

    run(lambda on_event: load.show_recipe(name, stage=stage, settings=settings), as_json)


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
