"""CI installs its lock: the pins of constraints.txt and no other, each with the sha256 of its files, torch in its CPU build."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]


def test_the_lock_has_every_pin_with_its_hashes_and_no_other_line() -> None:
    text = (CHECKOUT / "requirements-ci.lock").read_text()
    entries = re.findall(r"^([\w.-]+)==([\w.+]+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", text, re.MULTILINE)
    assert text == text.splitlines()[0] + "\n" + "".join(f"{name}=={version}{hashes}\n" for name, version, hashes in entries)
    pinned = re.findall(r"^([\w.-]+)==(\S+)$", (CHECKOUT / "constraints.txt").read_text(), re.MULTILINE)
    assert {name: version.removesuffix("+cpu") for name, version, _ in entries} == dict(pinned), "run `make locks` after `make pins`"
    assert [name for name, version, _ in entries if "+" in version] == ["torch"]


def test_the_target_installs_nothing_without_its_hash() -> None:
    recipe = re.search(r"^venv-locked:.*\n((?:\t.+\n)+)", (CHECKOUT / "Makefile").read_text(), re.MULTILINE)
    assert recipe is not None
    assert "--require-hashes --no-deps -r requirements-ci.lock" in recipe[1]


# Says what it is asked for; the locked environment is left half made, and fails where it is told to.
MAKE = """#!/bin/sh
echo "$1" >>made
case $1 in venv-locked) mkdir .venv; touch .venv/from-the-lock; exit "$LOCK_STATUS";; venv) mkdir .venv;; test) exit "$TEST_STATUS";; esac
"""


@pytest.mark.parametrize(
    ("there", "lock", "test", "made", "left"),
    [
        (False, 0, 0, ["venv-locked", "check", "test"], ["from-the-lock"]),
        (False, 2, 0, ["venv-locked", "venv", "check", "test"], []),
        (False, 2, 1, ["venv-locked", "venv", "check", "test"], []),
        (True, 0, 0, ["check", "test"], ["mine"]),
    ],
    ids=["by the lock", "the lock is refused", "and a test fails", "an environment is there"],
)
def test_ci_installs_the_lock_or_says_loudly_that_it_did_not(
    tmp_path: Path, there: bool, lock: int, test: int, made: list[str], left: list[str]
) -> None:
    (tmp_path / ".ci").mkdir()
    shutil.copy(CHECKOUT / ".ci" / "run", tmp_path / ".ci" / "run")
    (tmp_path / "make").write_text(MAKE)
    (tmp_path / "make").chmod(0o755)
    if there:
        (tmp_path / ".venv").mkdir()
        (tmp_path / ".venv" / "mine").touch()
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "LOCK_STATUS": str(lock), "TEST_STATUS": str(test)}
    done = subprocess.run([tmp_path / ".ci" / "run"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == test, done.stderr
    assert (tmp_path / "made").read_text().split() == made
    assert [path.name for path in (tmp_path / ".venv").iterdir()] == left
    assert ("NOT INSTALLED FROM requirements-ci.lock" in done.stderr) == ("venv" in made)
