"""What the paper states, from `paper.toml`: of which values a recipe may say "paper", and the figures of its tables.

A claim holds where the file has the key, the stage and the very value; a value that the paper does not state cannot be called the paper's,
in a shipped recipe or in a user's. Read once a process.
"""

import tomllib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from ...storage.core.errors import BadInput

FILE = Path(__file__).with_name("paper.toml")
PAPER = "arXiv 2603.22387"


class PaperValue(NamedTuple):
    """One value of the paper's recipe."""

    key: str
    stages: tuple[int | str, ...]
    """Stages of a training, or `vlm`, the evaluation by a language model."""
    any_of: tuple[Any, ...]
    at: str
    """Section or table."""


class PaperTable(NamedTuple):
    """The figures of one table: a number, or the paper's words for none (`no cls`, `no txt`)."""

    title: str
    columns: tuple[str, ...]
    rows: dict[str, dict[str, float | str]]


@lru_cache(maxsize=1)
def _document() -> dict[str, Any]:
    return tomllib.loads(FILE.read_text(encoding="utf-8"))


@lru_cache(maxsize=1)
def paper_values() -> tuple[PaperValue, ...]:
    """Return all values that the file holds."""
    return tuple(
        PaperValue(entry["key"], tuple(entry["stages"]), tuple(entry.get("any_of", [entry.get("value")])), entry["at"])
        for entry in _document()["value"]
    )


def paper_table(number: int) -> PaperTable:
    """Return the figures of a table; raises BadInput for one that the file does not hold."""
    tables = _document()["tables"]
    if str(number) not in tables:
        raise BadInput(f"figures of Table {number} of {PAPER} are not at hand; those of Tables {', '.join(tables)} are")
    table = tables[str(number)]
    rows = {name: dict(zip(table["columns"], figures, strict=True)) for name, figures in table["rows"].items()}
    return PaperTable(table["title"], tuple(table["columns"]), rows)


def stated_at(stage: int | str, key: str, value: object) -> list[str]:
    """Return where the paper states this value of this stage; empty where it does not."""
    return [entry.at for entry in paper_values() if entry.key == key and stage in entry.stages and _holds(entry.any_of, value)]


def _holds(any_of: Iterable[Any], value: object) -> bool:
    """Return whether the value is among the stated ones; lists of names mean sets, 1 and true differ."""
    return any(_comparable(stated) == _comparable(value) and isinstance(stated, bool) == isinstance(value, bool) for stated in any_of)


def _comparable(value: object) -> object:
    names = isinstance(value, list | tuple) and all(isinstance(part, str) for part in value)
    return sorted(value) if names else value  # type: ignore[call-overload]


def check_claims(name: str, stage: int | str, values: Mapping[str, object], origins: Mapping[str, str]) -> None:
    """Raise BadInput where a recipe says "paper" of a value that the paper does not state for this stage."""
    for key, value in values.items():
        if origins[key] != "paper" or stated_at(stage, key, value):
            continue
        stated = [
            f"{' or '.join(map(repr, entry.any_of))} ({entry.at})" for entry in paper_values() if entry.key == key and stage in entry.stages
        ]
        says = (
            f"the paper has {'; '.join(stated)}"
            if stated
            else f"{PAPER} states no {key} for {stage if isinstance(stage, str) else f'stage {stage}'}"
        )
        raise BadInput(
            f'recipe {name}: the origin of {key} = {value!r} is "paper", but {says} (pipeline/recipes/paper.toml); write "ours: the reason"'
        )
