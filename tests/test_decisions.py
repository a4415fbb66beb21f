"""Decisions are numbered without gaps, share one shape, and whatever refers to one finds it."""

import re
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
FOLDER = CHECKOUT / "docs" / "decisions"
NOTES = sorted(path for path in FOLDER.glob("*.md") if path.name != "README.md")
SECTIONS = ["Problem", "Decision", "Alternatives refused", "Consequences"]
HEAD = re.compile(r"# (\d{4}) (.+)\n\n- Date: (\d{4}-\d\d-\d\d)\n- Status: (.+)\n\n")
STATUS = re.compile(r"Accepted|(?:Accepted, amended|Superseded) by \[(\d{4})\]\(\1-[a-z0-9-]+\.md\)")
SEARCHED = ("pipeline", "jobs", "student", "teachers", "storage", "tests", "tools", "benchmarks", "docs")
TEXTS = {".py", ".md", ".toml", ".j2", ".css", ".sh"}


def head(path: Path) -> re.Match[str]:
    found = HEAD.match(path.read_text())
    assert found is not None, f"{path.name} does not begin with `# NNNN Title`, `- Date: YYYY-MM-DD` and `- Status: …`"
    return found


def slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower().replace("'", "")).strip("-")


def texts() -> Iterator[Path]:
    yield from CHECKOUT.glob("*.md")
    for name in SEARCHED:
        yield from (path for path in (CHECKOUT / name).rglob("*") if path.suffix in TEXTS)


def references(text: str) -> Iterator[str]:
    """The start of the file name of each decision that the text refers to: its number, with the rest of the name where it is given."""
    yield from re.findall(r"decisions/(\d{4}(?:-[a-z0-9-]+\.md)?)", text)
    yield from (f"{int(number):04}" for number in re.findall(r"\b[Dd]ecisions? \[?(\d{1,4})\b(?!-)", text))


def test_decisions_are_numbered_from_one_without_gaps() -> None:
    assert [path.name[:4] for path in NOTES] == [f"{n:04}" for n in range(1, len(NOTES) + 1)]


@pytest.mark.parametrize("path", NOTES, ids=lambda path: path.name[:4])
def test_a_decision_has_title_date_status_and_the_four_sections(path: Path) -> None:
    number, title, day, status = head(path).groups()
    assert path.name == f"{number}-{slug(title)}.md"
    date.fromisoformat(day)
    by = STATUS.fullmatch(status)
    assert by is not None, status
    assert by[1] is None or by[1] > number, "only a later decision can replace an earlier one"
    text = path.read_text()
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == SECTIONS
    assert all(part.strip() for part in re.split(r"^## .+$", text, flags=re.MULTILINE)[1:])


def test_the_index_lists_every_decision_with_its_title_date_and_status() -> None:
    rows = []
    for path in NOTES:
        number, title, day, status = head(path).groups()
        plain = re.sub(r"\[(\d+)\].*", r"\1", status)
        rows.append(f"| [{number}]({path.name}) | {title} | {day} | {plain} |")
    index = (FOLDER / "README.md").read_text()
    assert [line for line in index.splitlines() if line.startswith("| [")] == rows


def test_every_reference_to_a_decision_finds_one() -> None:
    names = {path.name for path in NOTES} | {path.name[:4] for path in NOTES}
    found = {(path.relative_to(CHECKOUT).as_posix(), name) for path in texts() for name in references(path.read_text())}
    assert {(where, name) for where, name in found if name not in names} == set()
    assert {"storage/", "docs/"} <= {where.partition("/")[0] + "/" for where, _ in found}  # the search sees both code and documents


@pytest.mark.parametrize(("text", "name"), [
    ("see docs/decisions/" + "0099", "0099"),
    ("[99](decisions/" + "0099-a-title.md)", "0099-a-title.md"),
    ("decision " + "[99](x.md)", "0099"),
    ("as decision " + "99 says", "0099"),
])  # fmt: skip
def test_a_reference_is_seen_in_every_form(text: str, name: str) -> None:
    assert name in set(references(text))
