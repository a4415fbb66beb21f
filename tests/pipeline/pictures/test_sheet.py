"""A sheet holds its pictures where its columns say, tokens stay squares, and texts stay in their columns."""

import numpy as np
import pytest
from eupe_pipeline.pipeline.pictures.sheet import CELL_PX, GAP_PX, Cell, enlarged, fitted, sheet
from eupe_pipeline.storage.core.errors import BadInput
from PIL import Image, ImageDraw, ImageFont


def test_tokens_are_enlarged_without_smoothing() -> None:
    grid = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    found = np.asarray(enlarged(Cell(grid, tokens=True), 64))
    assert (found == grid.repeat(8, 0).repeat(8, 1)).all()


def test_a_marked_box_is_outlined_and_its_inside_is_left_alone() -> None:
    black = np.zeros((64, 64, 3), np.uint8)
    found = np.asarray(enlarged(Cell(black, box=(0.25, 0.5, 0.25, 0.25)), 64))
    assert found[16, 32].any()
    assert found[14, 40].tolist() == [255, 255, 255]
    assert not found[20:28, 36:44].any()


def test_the_sheet_has_a_place_for_every_picture() -> None:
    red, blue = (np.full((4, 4, 3), colour, np.uint8) for colour in ([255, 0, 0], [0, 0, 255]))
    page = sheet([("a", "x"), ("b", "y")], [[Cell(red), Cell(blue)], [Cell(blue), Cell(red)]])
    assert page.width == 2 * CELL_PX + 3 * GAP_PX
    middle = GAP_PX + CELL_PX // 2
    column = [page.getpixel((middle, y)) for y in (page.height - GAP_PX - CELL_PX // 2, page.height - GAP_PX * 2 - CELL_PX - CELL_PX // 2)]
    assert column == [(0, 0, 255), (255, 0, 0)]


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(BadInput, match="2 columns got rows of \\[1\\]"):
        sheet([("a", ""), ("b", "")], [[Cell(np.zeros((2, 2, 3), np.uint8))]])


def test_a_long_name_is_cut_in_its_middle() -> None:
    font = ImageFont.load_default(16)
    found = fitted("timm:vit_huge_plus_patch16_dinov3.lvd1689m", font, 120)
    assert ImageDraw.Draw(Image.new("L", (1, 1))).textlength(found, font) <= 120
    assert found.startswith("timm:")
    assert found.endswith("89m")
    assert fitted("short", font, 120) == "short"


def test_a_box_lies_on_an_oblong_picture_where_it_lies_in_it() -> None:
    black = np.zeros((32, 64, 3), np.uint8)
    found = np.asarray(enlarged(Cell(black, box=(0.0, 0.5, 0.5, 0.25)), 64))
    assert (found[:14] == 255).all()  # white above and below: the picture has rows 16 to 47
    marked = np.argwhere((found == [255, 90, 54]).all(axis=-1))
    assert marked.min(axis=0).tolist() == [16, 32]
    assert marked.max(axis=0).tolist() == [31, 47]
