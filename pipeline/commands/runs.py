"""`runs` and `recipe`: looking at runs and recipes."""

from typing import Any

import click

from .group import cli, run
from .options import JSON, SETTINGS, folder_or_url, folders_or_urls, options


@cli.group()
def runs() -> None:
    """Look at training runs, and compare them."""


@runs.command("ls")
@click.argument("folder", callback=folder_or_url, metavar="FOLDER|URL")
@options(JSON)
def runs_ls(as_json: bool, **values: Any) -> None:
    """List the training runs at or below a folder or a URL."""
    from ..reports import runs as training_runs

    run(training_runs.list_runs, as_json, **values)


@runs.command("show")
@click.argument("out", callback=folder_or_url, metavar="RUN|URL")
@options(JSON)
def runs_show(as_json: bool, **values: Any) -> None:
    """Show one run. How far it is, its losses, what it learns from, its recipe."""
    from ..reports import runs as training_runs

    run(training_runs.show_run, as_json, **values)


@runs.command("compare")
@click.argument("outs", nargs=-1, required=True, callback=folders_or_urls, metavar="RUN|URL...")
@options(JSON)
def runs_compare(as_json: bool, **values: Any) -> None:
    """Compare runs side by side. Their results, and the recipe values in which they differ."""
    from ..reports import runs as training_runs

    run(training_runs.compare_runs, as_json, **values)


@cli.group()
def recipe() -> None:
    """Look at the recipes."""


@recipe.command("ls")
@options(JSON)
def recipe_ls(as_json: bool) -> None:
    """List the recipes that come with the package."""
    from . import actions

    run(actions.list_recipe_names, as_json)


@recipe.command("show")
@click.argument("name")
@options(click.option("--stage", type=click.IntRange(1, 3), default=None, help="One stage of a recipe that holds several."), SETTINGS, JSON)
def recipe_show(as_json: bool, **values: Any) -> None:
    """Print each value of a recipe with its origin. NAME or a TOML file; the paper's, ours and why, a file, --set, default."""
    from . import actions

    run(actions.show_recipe, as_json, **values)
