"""A closed list stands once: no file of the package writes one again, whole or in part."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from eupe_pipeline.storage.core import choices

CHECKOUT = Path(__file__).parents[3]
ROOMS = ("pipeline", "jobs", "student", "teachers", "storage")
LISTS: dict[str, tuple[str, ...]] = {name: value for name, value in vars(choices).items() if name.isupper() and isinstance(value, tuple)}


def written(tree: ast.AST) -> Iterator[tuple[int, set[str]]]:
    """Yield (line, words) of each tuple, list, set or Literal of two words and more."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Tuple, ast.List, ast.Set)) and len(node.elts) > 1:
            words = [one.value for one in node.elts if isinstance(one, ast.Constant) and isinstance(one.value, str)]
            if len(words) == len(node.elts):
                yield node.lineno, set(words)


def again(source: str) -> list[tuple[int, str]]:
    """Return (line, name of the list) where a list of `choices` is written again, or three and more of its words."""
    lists = {name: set(known) for name, known in LISTS.items()}
    parts = list(written(ast.parse(source)))
    return [(line, name) for line, words in parts for name, known in lists.items() if words == known or (len(words) > 2 and words <= known)]


def test_no_list_of_choices_is_written_again() -> None:
    files = [path for room in ROOMS for path in (CHECKOUT / room).rglob("*.py") if path.name != "choices.py"]
    assert len(files) > 200
    found = [f"{path.relative_to(CHECKOUT)}:{line}: {name}" for path in files for line, name in again(path.read_text())]
    assert found == []


@pytest.mark.parametrize(
    "source", ['x: Literal["fp32", "fp16", "int8"]', 'MODES = ("none", "teacher_same", "student_only")', 'Choice(["adamw", "lamb"])']
)
def test_a_list_that_is_written_again_is_found(source: str) -> None:
    assert again(source)


def test_no_list_names_a_thing_twice() -> None:
    assert len(LISTS) >= 10
    for name, known in LISTS.items():
        assert len(set(known)) == len(known), name
