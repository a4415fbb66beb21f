"""Write a recipe file: values by dotted key and why each is what it is, as the TOML that `load` reads back to the same recipe.

Only what recipes hold: text, numbers, booleans, lists, nested tables. A file is written whole or not at all.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...storage.objects.atomic_files import write_atomically

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return {"a.b": value} as {"a": {"b": value}}."""
    table: dict[str, Any] = {}
    for dotted, value in values.items():
        *tables, key = dotted.split(".")
        inner = table
        for name in tables:
            inner = inner.setdefault(name, {})
        inner[key] = value
    return table


def save_recipe(path: Path, tables: Mapping[str, tuple[Mapping[str, Any], Mapping[str, str]]], comment: str) -> None:
    """Write tables of (values, origins) by name under a comment; the folder is made."""
    lines = [f"# {line}" for line in comment.splitlines()]
    for name, (values, origins) in tables.items():
        lines += ["", *toml_table(name, nested(values))]
        if origins:
            lines += ["", f"[{name}.origins]", *(f"{key} = {toml_value(origin)}" for key, origin in origins.items())]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, ("\n".join(lines) + "\n").encode())


def toml_table(name: str, table: Mapping[str, Any]) -> list[str]:
    """Return the lines of a table: its plain values, then its tables."""
    plain = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
    lines = [f"[{name}]", *(f"{toml_key(key)} = {toml_value(value)}" for key, value in plain.items())] if plain or not table else []
    for key, inner in table.items():
        if isinstance(inner, Mapping):
            lines += [*([""] if lines else []), *toml_table(f"{name}.{toml_key(key)}", inner)]
    return lines


def toml_key(key: str) -> str:
    """Return a key, quoted where TOML needs it: names with dots or plus signs."""
    return key if _BARE_KEY.fullmatch(key) else toml_text(key)


def toml_value(value: Any) -> str:
    """Return a value as TOML has it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return toml_text(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(toml_value, value))}]"
    return repr(value)


def toml_text(text: str) -> str:
    """Return text quoted as in JSON, which TOML reads but for one character that it wants escaped."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
