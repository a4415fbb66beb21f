"""The group of all commands, and how a command's work is shown: progress to stderr, the result to stdout."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import click

from ...storage.core.cache_home import name_user
from ...storage.core.events import OnEvent
from ..console.known_holes import refuse_known_holes


def run(work: Callable[[OnEvent], Mapping[str, Any]], as_json: bool, hidden: tuple[str, ...] = ()) -> Mapping[str, Any]:
    """Run a command's work with its progress shown; prints the result as JSON (last line) or as readable text, and returns it.

    What `hidden` names stands in the JSON alone.
    """
    from ..console.plain_text import readable
    from ..console.progress import reporter

    name_user()
    with reporter(as_json=as_json) as on_event:
        result = {**work(on_event), "event": "result"}
    shown = {key: value for key, value in result.items() if key != "event"}
    if not as_json:
        shown = {key: value for key, value in shown.items() if key not in hidden}
    print(json.dumps(result, default=str) if as_json else readable(shown), flush=True)
    return result


def refuse_boundless(context: click.Context) -> None:
    """Raise click's usage error for an option that is nan, infinite, or a number beyond what is exact: ranges let those pass."""
    for option in context.command.params:
        value = context.params.get(str(option.name))
        if isinstance(value, (int, float)) and not abs(value) <= 2**53:
            raise click.BadParameter(f"{value} is not a number that can be counted with", context, option)


class CheckedCommand(click.Command):
    """A command whose numbers are checked before anything is imported or done."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; raises click's usage error for nan, infinite and inexact numbers, `BadInput` for libraries with known holes."""
        refuse_boundless(ctx)
        if self.name != "doctor":  # which lists them
            refuse_known_holes()
        return super().invoke(ctx)


class CheckedGroup(click.Group):
    """A group of such commands."""

    command_class = CheckedCommand


_ORDER = (
    "distill", "index", "extract-features", "plan", "train", "evaluate", "features", "runs", "recipe", "pictures", "report", "export",
    "import-weights", "convert-weights", "push", "pull", "cluster", "benchmark", "demo", "doctor",
)  # fmt: skip


class InOrder(CheckedGroup):
    """Commands are listed in the order in which they are used, not by the alphabet."""

    group_class = CheckedGroup

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in order of use; one that `_ORDER` does not know comes last."""
        return sorted(self.commands, key=lambda name: _ORDER.index(name) if name in _ORDER else len(_ORDER))


@click.group(cls=InOrder, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="eupe-pipeline")
def cli() -> None:
    """Run large frozen vision teachers once; share their features among any number of student runs."""
