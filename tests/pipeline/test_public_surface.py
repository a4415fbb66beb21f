"""What users build on is frozen: the public Python names with their signatures, and the command line.

A change of it is made on purpose: write the golden file anew and read the difference before it is committed.

    .venv/bin/python -m tests.pipeline.test_public_surface
"""

import ast
import dataclasses
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from eupe_pipeline import pipeline
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


def parameters(command: click.Command) -> list[click.Parameter]:
    """Those of a command, also of one that reads them from a row when it is asked."""
    return [one for one in command.get_params(click.Context(command)) if "--help" not in one.opts]


def command_line() -> dict[str, Any]:
    """Command → help and parameters in the order in which they are shown."""
    return {
        name: {"help": command.help, "parameters": {str(one.name): parameter(one) for one in parameters(command)}}
        for name, command in commands(cli)
    }


def plain(text: object) -> str:
    """A type or a signature without the modules of its names."""
    named = re.sub(r"<function (\w+) at 0x[0-9a-f]+>", r"\1", str(text).replace("<class '", "").replace("'>", ""))
    return re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Za-z_])", "", named)


def default(field: "dataclasses.Field[Any]") -> str:
    if field.default_factory is not dataclasses.MISSING:
        return f" = {plain(field.default_factory)}()"
    return "" if field.default is dataclasses.MISSING else f" = {field.default!r}"


def public(value: object) -> Any:
    """What a user relies on: fields with types and defaults, or signatures."""
    if dataclasses.is_dataclass(value):
        words = {field.name: f"{plain(field.type)}{default(field)}" for field in dataclasses.fields(value)}
        return {"fields": words, "methods": methods(value)}
    if isinstance(value, type) and issubclass(value, Exception):
        return f"class of {', '.join(base.__name__ for base in value.__bases__)}"
    if isinstance(value, type):
        return {"methods": {"__init__": plain(inspect.signature(value)), **methods(value)}}
    return plain(inspect.signature(value)) if inspect.isfunction(value) else plain(value)


def methods(value: Any) -> dict[str, str]:
    found = {name: getattr(value, name) for name in vars(value) if not name.startswith("_")}
    return {name: plain(inspect.signature(one)) for name, one in found.items() if inspect.isroutine(one)}


def python_names() -> dict[str, Any]:
    """Public name → its signature."""
    return {name: public(getattr(pipeline, name)) for name in pipeline.__all__}


def surface() -> dict[str, Any]:
    """All that is frozen."""
    return {"command_line": command_line(), "python": python_names()}


@pytest.mark.parametrize(("part", "now"), [("command_line", command_line), ("python", python_names)])
def test_the_surface_is_the_one_that_is_frozen(part: str, now: Any) -> None:
    frozen, found = json.loads(GOLDEN.read_text(encoding="utf-8"))[part], now()
    assert list(found) == list(frozen)
    for name, one in found.items():
        assert one == frozen[name], f"{name} has changed; write the golden file anew if that is meant (see the top of this file)"


def test_type_checkers_and_python_see_the_same_names() -> None:
    (block,) = [node for node in ast.parse(Path(pipeline.__file__).read_text()).body if isinstance(node, ast.If)]
    seen = {
        alias.name: f"{'.' * node.level}{node.module}" for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert seen == pipeline._MODULES
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = pipeline.trian
    assert set(pipeline.__all__) < set(dir(pipeline))


def test_importing_the_surface_costs_no_torch() -> None:
    code = "import sys; from eupe_pipeline.pipeline import BadInput, __all__; print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not [name for name in ("torch", "numpy", "ray", "timm", "zarr", "click") if f"'{name}'" in done.stdout]


def test_every_request_is_frozen() -> None:
    requests: list[Any] = [getattr(pipeline, name) for name in pipeline.__all__ if name.endswith("Options")]
    assert len(requests) > 10
    assert all(one.__dataclass_params__.frozen for one in requests)


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(surface(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
