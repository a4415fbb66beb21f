"""docs/troubleshooting.md: each message is one that the code raises, what it says to run exists, and its statuses are the program's."""

import ast
import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from eupe_pipeline.pipeline.commands.main import main

from .test_document_commands import parse

CHECKOUT = Path(__file__).parents[1]
PAGE = CHECKOUT / "docs" / "troubleshooting.md"
ROW = re.compile(r"^\| `(.+?)` \| (.+?) \| (.+) \|$", re.MULTILINE)
ROWS = [match for match in ROW.findall(PAGE.read_text(encoding="utf-8")) if match[0] != "message"]


def _shown(node: ast.AST) -> str:
    """A string of the source, with … for each value that is put into it."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    parts = node.values if isinstance(node, ast.JoinedStr) else []
    return "".join(part.value if isinstance(part, ast.Constant) and isinstance(part.value, str) else "…" for part in parts)


@cache
def texts() -> list[str]:
    """Every string of the source."""
    rooms = ("pipeline", "jobs", "student", "teachers", "storage")
    trees = (ast.parse(path.read_text(encoding="utf-8")) for room in rooms for path in (CHECKOUT / room).rglob("*.py"))
    return [text for tree in trees for node in ast.walk(tree) if isinstance(node, (ast.Constant, ast.JoinedStr)) and (text := _shown(node))]


def is_said(message: str) -> bool:
    """Whether the constant parts of a message stand in one string of the source, in their order."""
    wanted = re.compile(".*".join(re.escape(part.strip()) for part in message.split("…") if part.strip()), re.DOTALL)
    return any(wanted.search(text) for text in texts())


def test_the_page_has_enough_messages() -> None:
    assert len(ROWS) >= 35
    assert not is_said("this text … is nowhere in the source")


@pytest.mark.parametrize("message", [row[0] for row in ROWS])
def test_a_message_is_one_of_ours(message: str) -> None:
    assert is_said(message), message


def test_every_command_that_is_advised_exists() -> None:
    advised = re.findall(r"`eupe-pipeline ([^`]+)`", PAGE.read_text(encoding="utf-8"))
    assert len(advised) >= 3
    for command in advised:
        parse(shlex.split(command))


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("features ls --store {tmp}/nothing", "is not a feature store: "),
        ("index {tmp} --store {tmp}/file --name x", "is a file"),
        ("index {tmp}/empty --store {tmp}/new --name x", "no image was found in"),
        ("features show tiny-teacherr --store {store}", "did you mean"),
        ("index s3://key:secret@bucket/x --store {store} --name x", "URL holds credentials; leave them out"),
        ("plan --store {store} --data photos --teacher {tmp}/none.py", "names no function of a Python file"),
        ("runs show {tmp}/empty", "is not the folder of a training run"),
        ("extract-features --store {store} --data photos --teacher {teacher} --address 203.0.113.7:6379", "listens beyond this machine"),
        ("export {tmp}/empty --format timm --out {tmp}/export", "finish that run first"),
    ],
)
def test_it_ends_with_status_2(
    command: str, said: str, tiny_store: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    words = shlex.split(command.format(tmp=tmp_path, store=tiny_store.store.url, teacher=tiny_store.teacher_run))
    assert main(words) == 2
    assert said in capsys.readouterr().err
