"""The picture sections of a page: strips of one photo and its encoders, maps to pick from, galleries; images as data URIs.

A reader picks a patch without a script: each patch of the photo is a radio button, and the style sheet moves the chosen tile of each sheet
of maps into view.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..pictures.inline_images import Rgb, palette_data_uri, photo_data_uri, png_data_uri
from ..pictures.neighbours import Gallery, Seen
from ..pictures.pca import PcaPicture
from ..pictures.similarity import PALETTE, SimilarityPicture

_GALLERY_PX = 112


def picture_strips(pictures: Sequence[PcaPicture]) -> dict[str, Any]:
    """Return {encoders: [(name, grid)], rows: [(label, photo, [(encoder, picture)])]}."""
    encoders = list(pictures[0].tokens) if pictures else []
    grids = [f"{pictures[0].tokens[e].shape[0]} × {pictures[0].tokens[e].shape[1]}" for e in encoders]
    rows = [
        (picture.label, photo_data_uri(picture.image), [(e, png_data_uri(picture.tokens[e])) for e in encoders]) for picture in pictures
    ]
    return {"encoders": list(zip(encoders, grids, strict=True)), "rows": rows, "shape": _shape(pictures[0].image) if pictures else 1}


def similarity_strips(pictures: Sequence[SimilarityPicture]) -> dict[str, Any]:
    """Return {pictures: what the template shows of each, rows, columns: the largest grid to pick from, palette: CSS colours}."""
    shown = [
        {
            "label": picture.label,
            "photo": photo_data_uri(picture.image),
            "shape": _shape(picture.image),
            "rows": picture.picked_from[0],
            "columns": picture.picked_from[1],
            "chosen": picture.chosen,
            "maps": [
                {"encoder": encoder, "tiles": palette_data_uri(sheet.codes, PALETTE), "low": f"{sheet.low:.2f}".replace("-", "−")}
                for encoder, sheet in picture.sheets.items()
            ],
        }
        for picture in pictures
    ]
    return {
        "pictures": shown,
        "rows": max((picture.picked_from[0] for picture in pictures), default=0),
        "columns": max((picture.picked_from[1] for picture in pictures), default=0),
        "palette": [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in PALETTE[np.linspace(0, len(PALETTE) - 1, 7).astype(int)].tolist()],
    }


def _shape(image: Rgb) -> float:
    """Return width over height, for the style sheet."""
    height, width = image.shape[:2]
    return round(int(width) / int(height), 4)


def gallery_rows(galleries: Sequence[Gallery]) -> list[dict[str, Any]]:
    """Return [{query, neighbours}], each picture as {image, id, label, distance, same}: same says that the labels agree."""
    return [
        {"query": _picture(gallery.query, ""), "neighbours": [_picture(other, gallery.query.label) for other in gallery.neighbours]}
        for gallery in galleries
    ]


def _picture(seen: Seen, query_label: str) -> dict[str, Any]:
    image = photo_data_uri(seen.image, longest_px=_GALLERY_PX)
    same = None if not (query_label and seen.label) else seen.label == query_label
    return {"image": image, "id": seen.id, "label": seen.label, "distance": f"{seen.distance:.3f}", "same": same}
