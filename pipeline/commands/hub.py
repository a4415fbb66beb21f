"""`push` and `pull`: exports, runs and feature sets on the Hugging Face hub."""

from pathlib import Path

import click

from .group import cli, run
from .options import DRY_RUN, FOLDER, JSON, options, store_url


@cli.command()
@click.argument("what", metavar="FOLDER|KEY")
@options(
    click.option("--to", required=True, metavar="hub:OWNER/NAME", help="For a feature set hub:datasets/OWNER/NAME; made when absent."),
    click.option("--store", default=None, callback=store_url, metavar="URL", help="Store of the feature set KEY."),
    click.option("--private", is_flag=True, help="Make a new repository a private one."),
    DRY_RUN, JSON,
)  # fmt: skip
def push(as_json: bool, what: str, to: str, store: str | None, private: bool, dry_run: bool) -> None:
    """Send an export, run or feature set to a hub. Verified; run again, it sends what is missing. Your token is the one
    of `hf auth login`, or HF_TOKEN."""
    from ...jobs.hub.push import PushOptions
    from ...jobs.hub.push import push as send

    request = PushOptions(what, to, store, private, dry_run)
    run(lambda on_event: send(request, on_event), as_json)


@cli.command()
@click.argument("address", metavar="hub:OWNER/NAME@COMMIT")
@options(
    click.option("--out", type=FOLDER, default=None, help="Folder of an export or of a run."),
    click.option("--store", default=None, callback=store_url, metavar="URL", help="Store that gets a feature set, made when absent."),
    DRY_RUN, JSON,
)  # fmt: skip
def pull(as_json: bool, address: str, out: Path | None, store: str | None, dry_run: bool) -> None:
    """Fetch what `push` has sent. Every file is verified; run again, it fetches what is missing."""
    from ...jobs.hub.pull import PullOptions
    from ...jobs.hub.pull import pull as fetch

    request = PullOptions(address, out, store, dry_run)
    run(lambda on_event: fetch(request, on_event), as_json)
