"""`runs` and `recipe`: looking at runs and recipes."""

from pathlib import Path

import click

from ...storage.core.choices import Device
from .group import cli, run
from .options import FOLDER, JSON, SETTINGS, STAGE, folder_or_url, folders_or_urls, options


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
