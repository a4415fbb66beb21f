"""docs/teachers.md lists every named teacher with what its row says."""

import re
from pathlib import Path

from eupe_pipeline.teachers.registry.table import ROWS

from ..encoders.test_frozen import RECIPE

PAGE = Path(__file__).parents[3] / "docs" / "teachers.md"


def test_the_page_has_one_line_for_each_row_and_says_the_same() -> None:
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.read_text().splitlines() if re.match(r"\| `\w", line)]
    by_name = {cells[0].strip("`"): cells[1:] for cells in lines if len(cells) == 7}
    assert list(by_name) == list(ROWS)
    for name, (px, stride, cls, channels, parameters, licence) in by_name.items():
        row = ROWS[name]
        assert (px, stride, cls) == (str(row.preprocessing.size_px), str(row.stride_px), row.architecture["cls"]), name
        assert channels == f"{row.cls_dim or '–'}, {row.width}", name
        if name in RECIPE:
            assert parameters == f"{RECIPE[name][0] / 1e6:,.1f} M", name
        assert licence.split(":")[0].split(",")[0] in row.terms.licence, name
        assert ("research" in licence) == bool(row.terms.non_commercial), name
