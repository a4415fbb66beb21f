"""The functions of the `pictures` commands: from photos or a feature set to one PNG, callable from a notebook.

The same functions draw the report; here they make a sheet for a paper or a slide.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...storage.core.errors import BadInput
from ...storage.core.events import OnEvent, ignore_event
from ...storage.store import FeatureStore
from ...storage.views.input_size import SizePx
from .neighbours import example_queries, galleries, query_images
from .patch_tokens import Encoders, patch_tokens, read_photos
from .pca import pictures
from .sheet import Cell, sheet, write_png
from .similarity import named_maps


def _columns(tokens: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [("", ""), *((label, f"{patch.shape[1]} by {patch.shape[2]} tokens") for label, patch in tokens.items())]


def draw_pca(
    *, images: Sequence[Path], models: Sequence[str], size_px: SizePx | None, model_sizes: Mapping[str, SizePx], weights: Mapping[str, str],
    foreground: bool, out: Path, on_event: OnEvent = ignore_event,
) -> dict[str, Any]:  # fmt: skip
    """Write patch tokens as colours, a photo a row and an encoder a column; returns the picture's path and each encoder's grid."""
    photos = read_photos(images)
    images_shown, tokens = patch_tokens(Encoders(models, size_px, model_sizes, weights), photos, on_event)
    drawn = pictures([photo.label for photo in photos], images_shown, tokens, foreground_only=foreground)
    rows = [[Cell(picture.image, picture.label), *(Cell(rgb, tokens=True) for rgb in picture.tokens.values())] for picture in drawn]
    return {**write_png(sheet(_columns(tokens), rows), out), "grids": {label: list(patch.shape[1:3]) for label, patch in tokens.items()}}


def draw_similarity(
    *, images: Sequence[Path], models: Sequence[str], size_px: SizePx | None, model_sizes: Mapping[str, SizePx], weights: Mapping[str, str],
    patch: tuple[int, int], out: Path, on_event: OnEvent = ignore_event,
) -> dict[str, Any]:  # fmt: skip
    """Write cosine similarity with one patch (row, column of the first encoder's grid), a photo a row and an encoder a column."""
    photos = read_photos(images)
    images_shown, tokens = patch_tokens(Encoders(models, size_px, model_sizes, weights), photos, on_event)
    height, width = next(iter(tokens.values())).shape[1:3]
    box = patch[0] / height, patch[1] / width, 1 / height, 1 / width
    rows = []
    for n, photo in enumerate(photos):
        maps = named_maps(tokens, n, patch)
        cells = [Cell(rgb, f"cosine {low:.2f} to 1", tokens=True, box=box) for rgb, low in maps.values()]
        rows.append([Cell(images_shown[n], photo.label, box=box), *cells])
    return {**write_png(sheet(_columns(tokens), rows), out), "patch": list(patch)}


def draw_neighbours(
    *, key: str, store: str, queries: Sequence[str], count: int, out: Path, on_event: OnEvent = ignore_event
) -> dict[str, Any]:
    """Write images of a feature set with their nearest neighbours by class token; returns ids and cosine distances too."""
    reader = FeatureStore.open(store).features(key)
    if reader.cls_dim is None:
        raise BadInput(f"{reader.key} has no class tokens: its teacher has none; take a feature set of a teacher that has")
    chosen = query_images(reader, queries) if queries else example_queries(reader)
    drawn = galleries(reader, chosen, count, on_event)
    columns = [("query", "label"), *((str(n), "distance") for n in range(1, count + 1))]
    rows = [
        [
            Cell(gallery.query.image, gallery.query.label or gallery.query.id),
            *(Cell(other.image, _caption(other)) for other in gallery.neighbours),
        ]
        for gallery in drawn
    ]
    listed = {gallery.query.id: {other.id: round(other.distance, 6) for other in gallery.neighbours} for gallery in drawn}
    return {
        **write_png(sheet(columns, rows, cell_px=128, heading=f"{reader.key}: nearest by class token, cosine distance"), out),
        "features": reader.key,
        "neighbours": listed,
    }


def _caption(other: Any) -> str:
    return f"{other.distance:.3f} {other.label}".rstrip()
