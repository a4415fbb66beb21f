"""Show that a thing is added in at most two source files, and that forgetting one of them is a red test.

Each `tools/exercises/<name>.toml` adds one thing, such as a codec, to a copy of this checkout below the temporary folder:

    title = "a codec"
    tests = ["tests/…"]                     the tests that must be green with the whole addition, and red without one of its files
    prints = [["COMMAND", "--help", "text"], …]    optional: the command line of the copy then says so
    [[add]]                                 repeated; all `add` of one file are one change
    file = "storage/core/choices.py"        made where there is none
    after = "…"                             stands exactly once in the file; `text` goes behind it (an addition never removes anything)
    text = "…"

The tests run first in the copy as it is, then with everything, then with each file left out in turn. Exits 1 when one of these is not as it
should be, or when more than two files are touched.

    .venv/bin/python tools/how_many_files.py [NAME …]        default: all exercises
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[1]
ROOMS = ("pipeline", "jobs", "student", "teachers", "storage")
COPIED = (*ROOMS, "tests", "pyproject.toml")
MOST_FILES = 2
_GREEN, _RED = 0, 1  # pytest's exit status; an import error while tests are collected is 2
_COLLECTION_FAILED = 2


@dataclass(frozen=True)
class Exercise:
    """One addition: text for files, and the tests that must notice when a part of it is missing."""

    title: str
    tests: tuple[str, ...]
    additions: tuple[tuple[str, str, str], ...]
    """(file, the text that it goes behind, the text)."""
    prints: tuple[tuple[str, ...], ...] = ()
    """Words of a command, the last one what it must print."""

    @classmethod
    def read(cls, path: Path) -> "Exercise":
        """Return the exercise of a TOML file; raise KeyError for a missing key."""
        table: dict[str, Any] = tomllib.loads(path.read_text())
        additions = tuple((one["file"], one.get("after", ""), one["text"]) for one in table["add"])
        return cls(table["title"], tuple(table["tests"]), additions, tuple(map(tuple, table.get("prints", []))))

    @property
    def files(self) -> list[str]:
        """The source files that it touches."""
        return list(dict.fromkeys(file for file, _, _ in self.additions))

    def undo(self, folder: Path) -> None:
        """Put its files in a copy of the checkout back as they are here."""
        for file in self.files:
            if (CHECKOUT / file).exists():
                shutil.copy2(CHECKOUT / file, folder / file)
            else:
                (folder / file).unlink(missing_ok=True)

    def carry_out(self, folder: Path, without: str | None = None) -> None:
        """Make the additions in a copy of the checkout, but for one file; raise ValueError for a text that does not stand there once."""
        for file, after, text in self.additions:
            path = folder / file
            if file == without:
                continue
            before = path.read_text() if path.exists() else ""
            if after and before.count(after) != 1:
                raise ValueError(f"{file} has {after!r} {before.count(after)} times, expected once; mend the exercise {self.title!r}")
            path.write_text(before.replace(after, after + text) if after else before + text)


def exercises(names: Sequence[str] = ()) -> dict[str, Exercise]:
    """Return the exercises by name: those that are named, or all."""
    found = {path.stem: Exercise.read(path) for path in sorted((CHECKOUT / "tools" / "exercises").glob("*.toml"))}
    unknown = [name for name in names if name not in found]
    if unknown:
        sys.exit(f"no exercise is called {unknown[0]!r}; there are {', '.join(found)}")
    return {name: found[name] for name in names or found}


def copy_checkout(folder: Path) -> dict[str, str]:
    """Copy what the tests need, and return the environment in which the package is the copy."""
    for name in COPIED:
        source = CHECKOUT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        else:
            shutil.copy2(source, folder / name)
    package = folder / "package" / "eupe_pipeline"
    package.mkdir(parents=True)
    for room in ROOMS:
        (package / room).symlink_to(folder / room)
    environment = {**os.environ, "PYTHONPATH": str(package.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    where = [sys.executable, "-c", "import eupe_pipeline.storage.core as it; print(it.__file__)"]
    told = subprocess.run(where, env=environment, capture_output=True, text=True, check=True).stdout
    assert told.startswith(str(folder)), f"the package is {told.strip()}, not the copy"
    return environment


def run_tests(exercise: Exercise, folder: Path, environment: dict[str, str]) -> tuple[int, str]:
    """Return pytest's exit status in the copy, and the line that says why or how many."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *exercise.tests]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    failed = next((line for line in lines if line.startswith(("FAILED", "ERROR"))), "")
    return done.returncode, (failed or (lines[-1] if lines else done.stderr.strip()))[:200]


def missing_words(exercise: Exercise, environment: dict[str, str]) -> list[str]:
    """Return what the copy's command line should print and does not."""
    main = "import sys; from eupe_pipeline.pipeline.commands.main import main; sys.exit(main())"
    missing = []
    for *words, wanted in exercise.prints:
        done = subprocess.run([sys.executable, "-c", main, *words], env=environment, capture_output=True, text=True, check=False)
        if wanted not in re.sub(r"\s+", " ", done.stdout):
            missing.append(f"`eupe-pipeline {' '.join(words)}` does not print {wanted!r}")
    return missing


def breaches(exercise: Exercise, say: Callable[[str], None] = print) -> list[str]:
    """Return what is not as it should be, and say each step's result."""
    say(f"{exercise.title}: {len(exercise.files)} source files: {', '.join(exercise.files)}")
    found = [] if len(exercise.files) <= MOST_FILES else [f"{len(exercise.files)} files are touched, at most {MOST_FILES} should be"]
    left_out = exercise.files if len(exercise.files) > 1 else []
    steps: list[tuple[str, str | None, bool, bool]] = [("as it is", None, True, False), ("with the addition", None, True, True)]
    steps += [(f"without {file}", file, False, True) for file in left_out]
    with tempfile.TemporaryDirectory(prefix="eupe-exercise-") as made:
        folder = Path(made)
        environment = copy_checkout(folder)
        for what, without, should_be_green, adding in steps:
            exercise.undo(folder)
            if adding:
                exercise.carry_out(folder, without)
            status, line = run_tests(exercise, folder, environment)
            right = status == _GREEN if should_be_green else status in (_RED, _COLLECTION_FAILED)
            if not right:
                found.append(f"{what}: the tests should be {'green' if should_be_green else 'red'}: {line}")
            if adding and without is None:
                found += missing_words(exercise, environment)
            say(f"  {what}: {'green' if status == _GREEN else 'red'}: {line}")
    return found


def main(names: Sequence[str]) -> int:
    """Print each exercise's steps, and what is wrong at the end; return 1 when something is."""
    found = [f"{name}: {breach}" for name, exercise in exercises(names).items() for breach in breaches(exercise)]
    for line in found:
        print(line)
    print(f"additions: {len(found)} breaches")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
