"""A recipe that is written reads back to the same values, whatever its names and texts hold."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from eupe_pipeline.pipeline.recipes.save import nested, save_recipe, toml_table, toml_value
from hypothesis import given, settings
from hypothesis import strategies as st

PLAIN = st.one_of(
    st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=["Cs"])),
)  # fmt: skip


def read(folder: Path, tables: dict[str, tuple[dict[str, Any], dict[str, str]]]) -> dict[str, Any]:
    save_recipe(folder / "new" / "mine.toml", tables, "First line.\nSecond line.")
    text = (folder / "new" / "mine.toml").read_text(encoding="utf-8")
    assert text.startswith("# First line.\n# Second line.\n")
    return tomllib.loads(text)


@settings(max_examples=40)
@given(st.one_of(PLAIN, st.lists(PLAIN, max_size=4)))
def test_every_value_reads_back(value: object) -> None:
    assert tomllib.loads(f"value = {toml_value(value)}")["value"] == value


@settings(max_examples=40)
@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), PLAIN, max_size=4))
def test_every_key_reads_back(table: dict[str, object]) -> None:
    assert tomllib.loads("\n".join(toml_table("a", table))) == {"a": table}


def test_nested_tables_and_origins_read_back(tmp_path: Path) -> None:
    values = {"seed": 1, "optimizer.learning_rate": 1e-5, "student.sizes_px": (64, 96), "student.options.layer_scale": 1.0}
    origins = {"optimizer.learning_rate": 'ours: "√" of it'}
    assert read(tmp_path, {"stage2": (values, origins), "extract": ({"sizes": {"dinov3-h+": 256}}, {})}) == {
        "stage2": {
            "seed": 1, "optimizer": {"learning_rate": 1e-5}, "student": {"sizes_px": [64, 96], "options": {"layer_scale": 1.0}},
            "origins": {"optimizer": {"learning_rate": 'ours: "√" of it'}},
        },
        "extract": {"sizes": {"dinov3-h+": 256}},
    }  # fmt: skip


def test_an_empty_table_stays_one(tmp_path: Path) -> None:
    assert read(tmp_path, {"stage2": ({"student.options": {}}, {})}) == {"stage2": {"student": {"options": {}}}}


@pytest.mark.parametrize(("dotted", "table"), [({"a.b.c": 1, "a.d": 2}, {"a": {"b": {"c": 1}, "d": 2}}), ({}, {})])
def test_dotted_keys_become_tables(dotted: dict[str, int], table: dict[str, Any]) -> None:
    assert nested(dotted) == table
