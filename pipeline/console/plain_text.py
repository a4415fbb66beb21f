"""Format a command's result as readable text: nested tables become indented lines, lists of like tables become columns, under their
names where they hold figures; what is empty is none.

For people only; scripts take --json. Recipes print three aligned columns: key, value, origin.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any


def readable(result: Mapping[str, Any]) -> str:
    """Return the lines of a result, without the last line's end."""
    return "\n".join(line for key, value in result.items() for line in entry(key, value, 0))


def entry(key: str, value: Any, depth: int) -> list[str]:
    """Return the lines of one entry at an indentation depth."""
    pad = "  " * depth
    if isinstance(value, Mapping) and value:
        alike = [inner for inner in value.values() if isinstance(inner, Mapping)]
        if len(alike) == len(value) and len({tuple(inner) for inner in alike}) == 1 and alike[0] and all(map(flat, alike)):
            figures = any(isinstance(cell, (int, float)) for inner in alike for cell in inner.values())
            heads = [("", *map(str, alike[0]))] if figures and tuple(alike[0]) != ("value", "origin") else []
            return [f"{pad}{key}", *columns([*heads, *((name, *map(word, inner.values())) for name, inner in value.items())], pad + "  ")]
        return [f"{pad}{key}", *(line for name, inner in value.items() for line in entry(str(name), inner, depth + 1))]
    if isinstance(value, (list, tuple)) and value and not all(isinstance(inner, (int, float)) for inner in value):
        return [f"{pad}{key}", *(f"{pad}  {word(inner)}" for inner in value)]
    return [f"{pad}{key}: {word(value)}"]


def flat(table: Mapping[str, Any]) -> bool:
    """Return whether no value of the table is a non-empty table."""
    return not any(isinstance(inner, Mapping) and inner for inner in table.values())


def word(value: Any) -> str:
    """Return one value as a reader expects it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, (Mapping, Sequence)) and not isinstance(value, str):
        if not value:
            return "none"
        return json.dumps(value, default=str)
    return str(value)


def columns(rows: Sequence[Sequence[str]], pad: str) -> list[str]:
    """Return rows as left-aligned columns."""
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    return [pad + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
