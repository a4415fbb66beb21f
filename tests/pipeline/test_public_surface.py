"""What users build on is frozen: the public Python names with their signatures, and the command line.

A change of it is made on purpose: write the golden file anew and read the difference before it is committed.

    .venv/bin/python -m tests.pipeline.test_public_surface
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from eupe_pipeline.pipeline.commands.main import cli

GOLDEN = Path(__file__).parent / "public_surface.json"
_NOTHING = ("None", "False", "[]", "()")


def commands(group: click.Group, *names: str) -> Iterator[tuple[str, click.Command]]:
    """Every command and group with its whole name."""
    for name, command in sorted(group.commands.items()):
        yield " ".join((*names, name)), command
        if isinstance(command, click.Group):
            yield from commands(command, *names, name)


def parameter(one: click.Parameter) -> str:
    """All that a user can say with an option or an argument, in one line."""
    info = one.to_info_dict()
    kept = ("opts", "secondary_opts", "required", "nargs", "multiple", "is_flag", "flag_value")
    said = {key: info.get(key) for key in kept} | {"metavar": one.metavar, "default": one.default}
    said |= {"shown": getattr(one, "show_default", None), "help": getattr(one, "help", None)}
    told = [f"{key}={value}" for key, value in said.items() if repr(value) not in _NOTHING and "UNSET" not in repr(value).upper()]
    kind = ", ".join(f"{key}={value}" for key, value in info["type"].items() if repr(value) not in _NOTHING)
    return "; ".join([*told, f"type: {kind}"])


def command_line() -> dict[str, Any]:
    """Command → help and parameters in the order in which they are shown."""
    return {
        name: {"help": command.help, "parameters": {str(one.name): parameter(one) for one in command.params}}
        for name, command in commands(cli)
    }


def surface() -> dict[str, Any]:
    """All that is frozen."""
    return {"command_line": command_line()}


def test_the_command_line_is_the_one_that_is_frozen() -> None:
    assert command_line() == json.loads(GOLDEN.read_text(encoding="utf-8"))["command_line"]


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(surface(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
