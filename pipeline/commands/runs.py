"""`runs`, `recipe`, `report` and `evaluate table`: looking at runs, recipes and results."""

from pathlib import Path
from typing import Unpack

import click

from ...storage.core.choices import Device
from .evaluate import evaluate, evaluated
from .group import cli, run
from .options import (
    DEVICE,
    DRY_RUN,
    FILE,
    FOLDER,
    JSON,
    MODELS,
    PATH,
    RANDOM,
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
    """List the recipes that come with the package. Each with the table or section of the paper that it is."""
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
    """Fill the paper's table for what is on disk. Its figures stand beside; records are reused; run again, it goes on."""
    from ..reports.paper_table import TableOptions, fill_table

    request = TableOptions(
        models=models, data=data, text=text, classes=classes, table=int(table), store=store, steps=steps, device=device,
        allow_random_weights=allow_random_weights, dry_run=dry_run,
    )  # fmt: skip
    return evaluated(lambda on_event: fill_table(request, on_event), as_json, hidden=("rows",))
