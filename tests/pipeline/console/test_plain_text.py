"""Results read as text: indented tables, aligned columns, plain numbers."""

import pytest
from eupe_pipeline.pipeline.console.plain_text import readable, word


def test_nested_tables_are_indented_and_like_tables_are_columns() -> None:
    text = readable({
        "store": "s3://bucket/store",
        "features": {"lite0@1": {"rows": 12000, "codec": "int8"}, "resnet@22": {"rows": 7, "codec": "fp16"}},
        "identity": {"views": "ab", "layout": {"grid": [4, 4]}},
    })  # fmt: skip
    assert text.splitlines() == [
        "store: s3://bucket/store",
        "features",
        "             rows    codec",
        "  lite0@1    12,000  int8",
        "  resnet@22  7       fp16",
        "identity",
        "  views: ab",
        "  layout",
        "    grid: [4, 4]",
    ]


def test_lists_of_words_stand_one_a_line_and_empty_ones_stay_visible() -> None:
    assert readable({"recipes": ["demo", "mine"], "traps": []}).splitlines() == ["recipes", "  demo", "  mine", "traps: none"]


@pytest.mark.parametrize(("value", "text"), [
    (None, "-"), (True, "yes"), (False, "no"), (1e-8, "1e-08"), (0.9, "0.9"), (600_000, "600,000"), (1024, "1024"), ({}, "none"),
    ("x", "x"),
])  # fmt: skip
def test_values_are_written_as_a_reader_expects(value: object, text: str) -> None:
    assert word(value) == text
