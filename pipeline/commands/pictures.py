"""`pictures`: what encoders see, as PNG."""

from pathlib import Path
from typing import Unpack

import click

from .group import cli, run
from .options import IMAGES, JSON, MODELS, PNG, STORE, ModelsValues, options, patch_cell


@cli.group()
def pictures() -> None:
    """Draw what encoders see, as PNG. `report` has the same in a page."""


@pictures.command("pca")
@IMAGES
@options(*MODELS, click.option("--foreground", is_flag=True, help="Leave the background black; guessed from the tokens."), PNG, JSON)
def pictures_pca(as_json: bool, images: tuple[Path, ...], foreground: bool, out: Path, **models: Unpack[ModelsValues]) -> None:
    """Draw patch tokens of several encoders as colours. Side by side: their three strongest directions as colours, one basis an encoder."""
    from ..pictures.pictures import draw_pca

    run(lambda on_event: draw_pca(images=images, foreground=foreground, out=out, on_event=on_event, **models), as_json)


@pictures.command("similarity")
@IMAGES
@options(
    *MODELS, click.option("--patch", callback=patch_cell, required=True, metavar="ROW,COL", help="In the first model's grid."), PNG, JSON
)
def pictures_similarity(as_json: bool, images: tuple[Path, ...], patch: tuple[int, int], out: Path, **models: Unpack[ModelsValues]) -> None:
    """Draw how similar every patch is to the named one. By cosine, for several encoders side by side."""
    from ..pictures.pictures import draw_similarity

    run(lambda on_event: draw_similarity(images=images, patch=patch, out=out, on_event=on_event, **models), as_json)


@pictures.command("neighbours")
@click.argument("key")
@options(
    STORE,
    click.option("--query", "queries", multiple=True, metavar="ID", help="Image id; repeatable; default: one of each of six labels."),
    click.option("--count", type=click.IntRange(1, 32), default=8, show_default=True, help="Neighbours of each."),
    PNG, JSON,
)  # fmt: skip
def pictures_neighbours(as_json: bool, key: str, store: str, queries: tuple[str, ...], count: int, out: Path) -> None:
    """Draw nearest neighbours by cached class tokens. Those of feature set KEY, with cosine distances."""
    from ..pictures.pictures import draw_neighbours

    run(lambda on_event: draw_neighbours(key=key, store=store, queries=queries, count=count, out=out, on_event=on_event), as_json)
