"""Entry points add rows to our tables: by name, one at a time, and a broken or a second one is named by the command that wants it."""

import sys
from pathlib import Path

import pytest
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.core.plugins import Table

GROUP = "eupe_pipeline.teachers"


def install(folder: Path, group: str, points: dict[str, str], source: str = "", name: str = "their_rows") -> None:
    """What `pip install` leaves: a module and the metadata of a distribution beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.py").write_text(source)
    info = folder / f"{name}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    lines = [f"{point} = {value}" for point, value in points.items()]
    (info / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines, ""]))


@pytest.fixture
def table() -> Table[int]:
    return Table("number", GROUP, int, {"one": 1, "two": 2}, "ours (numbers.py)")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    for name in ("their_rows", "other_rows"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path / "site"


def test_an_installed_row_is_found_by_its_name_after_ours(table: Table[int], installed: Path) -> None:
    install(installed, GROUP, {"seven": "their_rows:SEVEN"}, "SEVEN = 7")
    assert list(table) == ["one", "two", "seven"]
    assert (len(table), "seven" in table, table["seven"], table["one"]) == (3, True, 7, 1)
    assert table.plugins() == {"seven": "the plug-in their_rows 1.2 (their_rows:SEVEN)"}


def test_a_name_that_nobody_has_is_a_plain_key_error(table: Table[int]) -> None:
    with pytest.raises(KeyError):
        table["nine"]
    assert "nine" not in table


def test_a_row_of_our_name_is_refused_with_both_named_and_hinders_no_other(table: Table[int], installed: Path) -> None:
    install(installed, GROUP, {"two": "their_rows:TWO"}, "TWO = 22")
    with pytest.raises(BadInput, match=r"'two' has several rows: ours \(numbers.py\) and the plug-in their_rows 1.2 \(their_rows:TWO\)"):
        table["two"]
    assert table["one"] == 1


def test_two_plug_ins_of_one_name_are_refused_with_both_named(table: Table[int], installed: Path) -> None:
    install(installed, GROUP, {"seven": "their_rows:SEVEN"}, "SEVEN = 7")
    install(installed, GROUP, {"seven": "other_rows:SEVEN"}, "SEVEN = 7", name="other_rows")
    with pytest.raises(BadInput, match=r"their_rows 1\.2 .* and .*other_rows 1\.2|other_rows 1\.2 .* and .*their_rows 1\.2"):
        table["seven"]


@pytest.mark.parametrize(("source", "why"), [
    ("raise OSError('no licence')", "OSError: no licence"),
    ("import a_library_that_is_not_there", "ModuleNotFoundError"),
    ("SIX = 6", "AttributeError"),
    ("SEVEN = (", "SyntaxError"),
    ("raise SystemExit(3)", "SystemExit: 3"),
    ("SEVEN = 'seven'", "is a str, expected a row of type builtins.int"),
])  # fmt: skip
def test_a_broken_plug_in_is_named_when_it_is_asked_for_and_hinders_no_other(
    table: Table[int], installed: Path, source: str, why: str
) -> None:
    install(installed, GROUP, {"seven": "their_rows:SEVEN"}, source)
    assert table["one"] == 1
    assert list(table) == ["one", "two", "seven"]
    with pytest.raises(BadInput, match=r"'seven'.*the plug-in their_rows 1\.2") as caught:
        table["seven"]
    assert why in str(caught.value)
    assert why in table.plugins()["seven"]
