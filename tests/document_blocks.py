"""The command blocks of the documents, and what each says about being run.

A block is four spaces deep, or fenced as console, bash or sh. One that no comment precedes is run by tests/test_document_commands.py. Else

    <!-- not run: why not -->              the next block is parsed alone: commands, options, choices and ranges exist
    <!-- run by: tests/file.py -->         the next block is run by that test
    <!-- page not run: why not -->         all blocks of the page that say nothing themselves
    <!-- page run by: tests/file.py -->
"""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click
from eupe_pipeline.pipeline.commands.main import cli

CHECKOUT = Path(__file__).parents[1]
DOCUMENTS = sorted([*CHECKOUT.glob("*.md"), *(CHECKOUT / "docs").rglob("*.md")])
PROGRAMS = {
    "eupe-pipeline", "make", "docker", "podman", "buildah", "ray", "pip", "python", "pytest", "nice", "export", "kubectl", "sbatch", "srun",
    "wandb", "mlflow", "mkdir", ".venv/bin/python",
}  # fmt: skip
_SHELL = {"console", "bash", "sh", "shell"}
_SAYS = re.compile(r"^<!-- (page )?(not run|run by): (.+) -->$")


class Block(NamedTuple):
    """A command block: where it is, its lines, and what is said of it: "" (it is run here), "not run" or "run by", and why or by what."""

    page: Path
    line: int
    lines: list[str]
    said: str
    why: str

    @property
    def name(self) -> str:
        """Return the page and the line, for a test's name."""
        return f"{self.page.relative_to(CHECKOUT).as_posix()}:{self.line}"


def joined(lines: list[str]) -> list[str]:
    """Return command lines with those that end in a backslash joined to the next, without prompts."""
    text = "\n".join(line.removeprefix("$ ") for line in lines)
    return [line for line in re.sub(r"\\\n\s*", " ", text).splitlines() if line.strip()]


def command_lines(block: Block) -> list[list[str]]:
    """Return the words behind `eupe-pipeline` of each of its lines that calls it; comments are left out, an ellipsis stays."""
    return [shlex.split(line, comments=True)[1:] for line in block.lines if line.startswith("eupe-pipeline ")]


def _raw(text: str) -> Iterator[tuple[int, str, list[str]]]:
    """Yield (line, kind, lines) of indented and fenced blocks and of comments, in order; kind is "indented", a language or "comment"."""
    fence, start, held = None, 0, list[str]()
    for number, line in enumerate([*text.splitlines(), ""], start=1):
        if fence is None and line.startswith("    ") and (held or not text.splitlines()[number - 2].strip()):
            start, held = start if held else number, [*held, line[4:]]
            continue
        if fence is None and held:
            yield start, "indented", held
            held = []
        if line.startswith("```"):
            if fence is not None:
                yield start, fence, held
                fence, held = None, []
            else:
                fence, start = line.strip("`").strip() or "text", number + 1
        elif fence is not None:
            held.append(line)
        elif _SAYS.match(line):
            yield number, "comment", [line]
        elif line.strip():
            yield number, "prose", [line]


def blocks(page: Path) -> list[Block]:
    """Return the command blocks of a page."""
    found: list[Block] = []
    of_page, of_next = ("", ""), ("", "")
    for line, kind, lines in _raw(page.read_text(encoding="utf-8")):
        if kind == "comment":
            match = _SAYS.match(lines[0])
            assert match is not None
            if match[1]:
                of_page = match[2], match[3]
            else:
                of_next = match[2], match[3]
            continue
        commands = joined(lines) if kind in {"indented", *_SHELL} else []
        if commands and (kind in _SHELL or commands[0].split()[0] in PROGRAMS):
            said = of_next if of_next[0] else of_page
            found.append(Block(page, line, commands, *said))
        of_next = "", ""
    return found


ALL = [block for page in DOCUMENTS for block in blocks(page)]


def command_of(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that a line calls, and the words behind its name."""
    command: click.Command = cli
    while isinstance(command, click.Group) and words:
        found = command.get_command(click.Context(command), words[0])
        assert found is not None, f"`{words[0]}` is no command of `{command.name}`"
        command, words = found, words[1:]
    return command, words
