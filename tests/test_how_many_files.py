"""The exercises that add a thing stay possible in two source files; `make test-long` carries each out."""

import ast
import builtins
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
sys.path.insert(0, str(CHECKOUT))  # tools/ is in no package
from tools.how_many_files import MOST_FILES, ROOMS, Exercise, breaches, exercises  # noqa: E402

sys.path.remove(str(CHECKOUT))

ALL = exercises()


def unknown_names(source: str) -> set[str]:
    """The names that a file reads and neither binds anywhere nor imports."""
    read, bound = set[str](), set(dir(builtins)) | {"__name__", "__file__", "__package__"}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name):
            (read if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            bound.add(node.name)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            bound |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    return read - bound


@pytest.mark.parametrize("name", ALL)
def test_an_addition_touches_at_most_two_source_files_and_still_fits_the_source(name: str, tmp_path: Path) -> None:
    exercise = ALL[name]
    assert 1 <= len(exercise.files) <= MOST_FILES
    assert all(file.split("/")[0] in ROOMS for file in exercise.files)
    assert all((CHECKOUT / test).exists() for test in exercise.tests)
    for file in exercise.files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    exercise.undo(tmp_path)
    exercise.carry_out(tmp_path)
    for file in exercise.files:
        source = (tmp_path / file).read_text()
        compile(source, file, "exec")
        assert unknown_names(source) == set(), "the exercise uses a name that the source no longer has"


@pytest.mark.long
@pytest.mark.parametrize("name", ALL)
def test_with_all_files_the_tests_are_green_and_without_one_they_are_red(name: str) -> None:
    assert breaches(ALL[name], lambda line: None) == []


def test_a_text_that_no_longer_stands_where_an_exercise_expects_it_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\nx = 1\n")
    with pytest.raises(ValueError, match=r"a\.py has 'x = 1' 2 times, expected once"):
        Exercise("a thing", (), (("a.py", "x = 1", "2"),)).carry_out(tmp_path)
