"""`demo` and `doctor`: a first look at the whole, and at this machine."""

from pathlib import Path

import click

from ...storage.core.errors import BadInput
from .group import cli, run
from .options import FOLDER, JSON, options, store_url


@cli.command()
@options(
    click.option("--out", type=FOLDER, default=Path("runs/demo"), show_default=True),
    click.option("--store", default=None, callback=store_url, metavar="URL", help="Feature store; default: OUT/store."),
    click.option("--fetch-only", is_flag=True, help="Fetch and verify the photos and weights, then stop."),
    JSON,
)
def demo(as_json: bool, out: Path, store: str | None, fetch_only: bool) -> None:
    """Go from photos and teachers to a report, in minutes."""
    from . import actions

    run(actions.demo, as_json, out=out, store=store or str(out / "store"), fetch_only=fetch_only)


@cli.command()
@options(click.option("--folder", type=FOLDER, default=Path(), help="Where the disk is measured."), JSON)
def doctor(as_json: bool, folder: Path) -> None:
    """Print versions, devices, weights, traps and cures."""
    from ..console import doctor as examination

    if not folder.is_dir():
        raise BadInput(f"{folder} is not a folder; --folder names an existing one whose disk is to be measured")
    run(examination.examine, as_json, folder=folder)
