"""`features`: what a store holds, and keeping it whole."""

from typing import Any

import click

from .group import cli, run
from .options import DRY_RUN, FILE, JSON, STORE, TEACHER, WEIGHTS_FILE, options, store_url


@cli.group()
def features() -> None:
    """Look at what a store holds."""


@features.command("ls")
@options(STORE, JSON)
def features_ls(as_json: bool, **values: Any) -> None:
    """List datasets, views and feature sets."""
    from ..reports import catalog

    run(catalog.list_store, as_json, **values)


@features.command("show")
@click.argument("key")
@options(STORE, click.option("--html", type=FILE, default=None, help="Write a page to look at."), JSON)
def features_show(as_json: bool, **values: Any) -> None:
    """Show one feature set. Rows, bytes, what is missing, its statistics, its identity; --html: its views and tokens as well."""
    from ..reports import catalog

    run(catalog.show_features, as_json, **values)


ANY_KEY = click.argument("key", required=False, default=None)


@features.command("verify")
@ANY_KEY
@options(STORE, click.option("--subset", default="1/1", show_default=True, metavar="K/N", help="Check the K-th of N parts."), JSON)
def features_verify(as_json: bool, **values: Any) -> int:
    """Check every byte of a store, or of what KEY needs. All damage is listed, with what helps; exit status 1 when there is any."""
    from ..reports import catalog

    return 1 if run(catalog.verify_features, as_json, **values)["findings"] else 0


@features.command("repair")
@ANY_KEY
@options(STORE, TEACHER, WEIGHTS_FILE, DRY_RUN, JSON)
def features_repair(as_json: bool, **values: Any) -> int:
    """Mend a store, or what KEY needs. Nothing whole is touched; exit status 1 when something cannot be mended, which is said."""
    from . import actions

    return 1 if run(actions.repair, as_json, **values)["left"] else 0


@features.command("fidelity")
@click.argument("key")
@options(STORE, TEACHER, WEIGHTS_FILE, click.option("--sample", type=click.IntRange(1), default=64, show_default=True), JSON)
def features_fidelity(as_json: bool, **values: Any) -> None:
    """Compare stored tokens with fresh ones. A sample of views: mean, 1st percentile and least cosine."""
    from . import actions

    run(actions.fidelity, as_json, **values)


@features.command("prune")
@click.argument("key")
@options(STORE, DRY_RUN, JSON)
def features_prune(as_json: bool, **values: Any) -> None:
    """Delete one feature set, KEY with its digest. Refused while a run reads it."""
    from ..reports import catalog

    run(catalog.prune_features, as_json, **values)


@features.command("cp")
@click.argument("key")
@options(
    STORE, click.option("--to", "target", required=True, callback=store_url, metavar="URL", help="The other store, made when absent."), JSON
)
def features_cp(as_json: bool, **values: Any) -> None:
    """Copy a feature set to another store. With its views and dataset index; verified and resumable."""
    from ..reports import catalog

    run(catalog.copy_feature_set, as_json, **values)


@features.command("compact")
@click.argument("key")
@options(STORE, JSON)
def features_compact(as_json: bool, **values: Any) -> None:
    """Put commit records into ledgers. A set of millions of shards then opens in seconds."""
    from ..reports import catalog

    run(catalog.compact_features, as_json, **values)
