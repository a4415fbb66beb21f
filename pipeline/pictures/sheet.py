"""Draw a sheet of pictures as one PNG: columns under their names, each picture with a caption, on white, for papers and slides.

Token grids are enlarged without smoothing, so that a token stays a square; photos are resampled. Only Pillow's own typeface is used, which
has Latin letters; other letters show as boxes. Limits: one picture height for the whole sheet.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from ...storage.core.errors import BadInput
from ...storage.objects.atomic_files import write_atomically
from .inline_images import Rgb

CELL_PX = 256
GAP_PX = 16
_INK, _SOFT, _MARK = "#16181d", "#5c626e", "#ff5a36"
_TITLE_PX, _CAPTION_PX, _LINE = 19, 16, 1.35


@dataclass(frozen=True)
class Cell:
    """A picture and what stands under it; `tokens`: enlarge without smoothing. `box`: (top, left, height, width) as shares to mark."""

    image: Rgb
    caption: str = ""
    tokens: bool = False
    box: tuple[float, float, float, float] | None = None


def sheet(columns: Sequence[tuple[str, str]], rows: Sequence[Sequence[Cell]], *, cell_px: int = CELL_PX, heading: str = "") -> Image.Image:
    """Return the sheet: `columns` are (name, what it is), each row has a cell a column; raises BadInput for rows of another length."""
    if not rows or any(len(row) != len(columns) for row in rows):
        raise BadInput(f"a sheet of {len(columns)} columns got rows of {sorted({len(row) for row in rows})} pictures")
    top_px = GAP_PX + round(_TITLE_PX * _LINE) if heading else GAP_PX // 2
    head_px = top_px + round((_TITLE_PX + _CAPTION_PX) * _LINE) + GAP_PX
    caption_px = round(_CAPTION_PX * _LINE) + GAP_PX // 2 if any(cell.caption for row in rows for cell in row) else 0
    row_px = cell_px + caption_px + GAP_PX
    page = Image.new("RGB", (GAP_PX + len(columns) * (cell_px + GAP_PX), head_px + len(rows) * row_px), "white")
    pen = ImageDraw.Draw(page)
    title, small = ImageFont.load_default(_TITLE_PX), ImageFont.load_default(_CAPTION_PX)
    pen.text((GAP_PX, GAP_PX), heading, _INK, title)
    for number, (name, what) in enumerate(columns):
        left = GAP_PX + number * (cell_px + GAP_PX)
        pen.text((left, top_px + GAP_PX // 2), fitted(name, title, cell_px), _INK, title)
        pen.text((left, top_px + GAP_PX // 2 + _TITLE_PX * _LINE), fitted(what, small, cell_px), _SOFT, small)
        for row_number, row in enumerate(rows):
            corner = left, head_px + row_number * row_px
            page.paste(enlarged(row[number], cell_px), corner)
            pen.text((left, corner[1] + cell_px + GAP_PX // 4), fitted(row[number].caption, small, cell_px), _SOFT, small)
    return page


def fitted(text: str, font: "ImageFont.FreeTypeFont | ImageFont.ImageFont", width_px: int) -> str:
    """Return the text, cut in its middle with an ellipsis until it is no wider than `width_px`."""
    if font.getlength(text) <= width_px:
        return text
    for kept in range(len(text) - 1, 1, -1):
        short = f"{text[: (kept + 1) // 2]}…{text[len(text) - kept // 2 :]}"
        if font.getlength(short) <= width_px:
            return short
    return "…"


def enlarged(cell: Cell, cell_px: int) -> Image.Image:
    """Return the cell's picture at `cell_px` a side, its marked box outlined."""
    small = max(cell.image.shape[:2]) <= cell_px // 2
    method = Image.Resampling.NEAREST if cell.tokens or small else Image.Resampling.LANCZOS
    image = Image.fromarray(np.ascontiguousarray(cell.image))
    square = cell.image.shape[0] == cell.image.shape[1]
    image = image.resize((cell_px, cell_px), method) if square else ImageOps.pad(image, (cell_px, cell_px), method, color="white")
    if cell.box is not None:
        rows, columns = cell.image.shape[:2]
        shown_h, shown_w = (cell_px * side / max(rows, columns) for side in (rows, columns))
        top, left, height, width = (
            round(share * side + before)
            for share, side, before in zip(
                cell.box, (shown_h, shown_w) * 2, ((cell_px - shown_h) / 2, (cell_px - shown_w) / 2, 0, 0), strict=True
            )
        )
        pen = ImageDraw.Draw(image)
        pen.rectangle((left - 2, top - 2, left + width + 1, top + height + 1), outline="white", width=2)
        pen.rectangle((left, top, left + width - 1, top + height - 1), outline=_MARK, width=3)
    return image


def write_png(image: Image.Image, out: Path) -> dict[str, object]:
    """Write the picture as a PNG; returns where, its size in pixels and bytes. Raises StoreUnavailable when it cannot be written."""
    data = io.BytesIO()
    image.save(data, "PNG", optimize=True)
    write_atomically(out, data.getvalue())
    return {"picture": str(out), "width_px": image.width, "height_px": image.height, "bytes": len(data.getvalue())}
