"""`demo` and `doctor`: run the whole pipeline once, and examine this machine."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ...storage.core.errors import BadInput
from ...storage.core.events import OnEvent
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

    def work(on_event: OnEvent) -> Mapping[str, Any]:
        if fetch_only:
            from ..demo.fetch import fetch_demo

            return {"fetched": {name: str(path) for name, path in fetch_demo(on_event).items()}}
        from ..demo.demo import run_demo

        return run_demo(out, store or str(out / "store"), on_event)

    run(work, as_json)


@cli.command()
@options(click.option("--folder", type=FOLDER, default=Path(), help="Where the disk is measured."), JSON)
def doctor(as_json: bool, folder: Path) -> None:
    """Print versions, devices, weights and known problems."""
    from ..console.doctor import examine

    if not folder.is_dir():
        raise BadInput(f"{folder} is not a folder; --folder names an existing one whose disk is to be measured")
    run(lambda on_event: examine(folder=folder, on_event=on_event), as_json)
