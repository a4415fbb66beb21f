"""`features`: list, show, verify, repair and copy what a store holds."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from ...storage.core.errors import BadInput
from .group import cli, run
from .options import (
    DRY_RUN,
    FILE,
    JSON,
    SEED,
    STORE,
    TEACHER,
    WEIGHTS_FILE,
    cosine_or_auto,
    count_or_share,
    options,
    store_url,
)

if TYPE_CHECKING:
    from ...jobs.extraction.options import TeacherRequest


@cli.group()
def features() -> None:
    """Look at what a store holds."""


@features.command("ls")
@options(STORE, JSON)
def features_ls(as_json: bool, store: str) -> None:
    """List datasets, views, feature sets and subsets."""
    from ..reports.catalog import list_store

    run(lambda on_event: list_store(store=store, on_event=on_event), as_json)


@features.command("show")
@click.argument("key")
@options(STORE, click.option("--html", type=FILE, default=None, help="Write a page to look at."), JSON)
def features_show(as_json: bool, key: str, store: str, html: Path | None) -> None:
    """Show one feature set. Rows, bytes, what is missing, its statistics, its identity; --html: its views and tokens as well."""
    from ..reports.catalog import show_features

    run(lambda on_event: show_features(key=key, store=store, html=html, on_event=on_event), as_json)


ANY_KEY = click.argument("key", required=False, default=None)


@features.command("curate")
@click.argument("key")
@options(
    STORE,
    click.option("--name", default=None, help="Name of the subset; not needed with --dry-run."),
    click.option("--near-duplicates", callback=cosine_or_auto, default=None, metavar="COSINE|auto",
                 help="Of images this alike, one stays."),
    click.option("--against", default=None, metavar="KEY", help="A test set's features by this teacher: images like its images leave."),
    click.option("--balance", callback=count_or_share, default=None, metavar="N|SHARE",
                 help="Draw N images, or a share, evenly over clusters."),
    click.option("--list", "listed", type=click.IntRange(0), default=20, show_default=True, help="Groups and leaks to name."),
    SEED, DRY_RUN, JSON,
)  # fmt: skip
def features_curate(
    as_json: bool, key: str, store: str, name: str | None, near_duplicates: float | Literal["auto"] | None, against: str | None,
    balance: float | None, listed: int, seed: int, dry_run: bool,
) -> None:  # fmt: skip
    """Choose images by KEY's tokens: near duplicates, leaks, balance. The subset is recorded for `train --subset`."""
    from ...jobs.curation.curate import curate_features
    from ...jobs.curation.options import CurateOptions

    threshold = None if near_duplicates == "auto" else near_duplicates
    request = CurateOptions(
        key, store, name, threshold, near_duplicates == "auto", against, balance, seed=seed, listed=listed, dry_run=dry_run
    )
    run(lambda on_event: curate_features(request, on_event), as_json)


@features.command("verify")
@ANY_KEY
@options(STORE, click.option("--subset", default="1/1", show_default=True, metavar="K/N", help="Check the K-th of N parts."), JSON)
def features_verify(as_json: bool, key: str | None, store: str, subset: str) -> int:
    """Check every byte of a store, or of what KEY needs. All damage is listed, with what helps; exit status 1 when there is any."""
    from ..reports.catalog import verify_features

    result = run(lambda on_event: verify_features(key=key, store=store, subset=subset, on_event=on_event), as_json)
    return 1 if result["findings"] else 0


@features.command("repair")
@ANY_KEY
@options(STORE, TEACHER, WEIGHTS_FILE, DRY_RUN, JSON)
def features_repair(as_json: bool, key: str | None, store: str, teacher: str | None, weights: Path | None, dry_run: bool) -> int:
    """Repair a store, or what KEY needs. Nothing intact is touched; exit status 1 when something cannot be repaired, which is reported."""
    from ...jobs.repair.repair import RepairOptions, repair_features

    request = RepairOptions(store, key, teacher_of_set(teacher, weights), dry_run)
    return 1 if run(lambda on_event: repair_features(request, on_event), as_json)["left"] else 0


def teacher_of_set(teacher: str | None, weights: Path | None) -> "TeacherRequest | None":
    """Return the teacher that is said to have made a feature set, None where it is found by the set's name; raises BadInput."""
    from ...jobs.extraction.options import TeacherRequest

    if weights is not None and teacher is None:
        raise BadInput("--weights needs --teacher: which teacher's weights are they?")
    return None if teacher is None else TeacherRequest(teacher, weights)


@features.command("fidelity")
@click.argument("key")
@options(STORE, TEACHER, WEIGHTS_FILE, click.option("--sample", type=click.IntRange(1), default=64, show_default=True), JSON)
def features_fidelity(as_json: bool, key: str, store: str, teacher: str | None, weights: Path | None, sample: int) -> None:
    """Compare stored tokens with fresh ones. A sample of views: mean, 1st percentile and least cosine."""
    from ...jobs.repair.repair import FidelityOptions, fidelity

    request = FidelityOptions(store, key, teacher_of_set(teacher, weights), sample)
    run(lambda on_event: fidelity(request, on_event), as_json)


@features.command("prune")
@click.argument("key")
@options(STORE, DRY_RUN, JSON)
def features_prune(as_json: bool, key: str, store: str, dry_run: bool) -> None:
    """Delete one feature set, KEY with its digest, or one subset. Refused while a run reads it."""
    from ..reports.catalog import prune_features

    run(lambda on_event: prune_features(key=key, store=store, dry_run=dry_run, on_event=on_event), as_json)


@features.command("cp")
@click.argument("key")
@options(
    STORE, click.option("--to", "target", required=True, callback=store_url, metavar="URL", help="The other store, made when absent."), JSON
)
def features_cp(as_json: bool, key: str, store: str, target: str) -> None:
    """Copy a feature set to another store. With its views and dataset index; verified and resumable."""
    from ..reports.catalog import copy_feature_set

    run(lambda on_event: copy_feature_set(key=key, store=store, target=target, on_event=on_event), as_json)


@features.command("compact")
@click.argument("key")
@options(STORE, JSON)
def features_compact(as_json: bool, key: str, store: str) -> None:
    """Put commit records into ledgers. A set of millions of shards then opens in seconds."""
    from ..reports.catalog import compact_features

    run(lambda on_event: compact_features(key=key, store=store, on_event=on_event), as_json)
