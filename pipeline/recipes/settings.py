"""Parse `--set KEY=VALUE` by the recipe's types: where in a key a teacher's or a dataset's name is, and what the value may be.

A name in a key is taken as it stands, dots and plus signs included (`teacher.weights.dinov3-h+.patch=2.0`, `data.shares.imagenet.v2=0.1`):
below a table whose keys are the user's own the last part is a field where the table holds fields, and all before it is the name. Quotes
around a part are TOML's and settle what dots or an `=` would leave open. Values are TOML; where the recipe wants a string, anything
printable is one, since quotes rarely survive a shell.
"""

import dataclasses
import re
import tomllib
import typing
from collections.abc import Mapping
from typing import Any

from ...storage.core.errors import BadInput, unknown_name
from ...student.model.recipe import TrainRecipe
from .typed_tables import issubclass_safely, without_none

_BARE_WORD = r"(?:[A-Za-z_~/]|\.\.?/)[\w./:@~=+-]*"
_TOML_WORDS = ("true", "false", "inf", "nan")


def parse_setting(text: str, shape: type = TrainRecipe) -> dict[str, Any]:
    """Return "a.b=value" as the nested table {"a": {"b": value}} of the dataclass `shape`; raises BadInput.

    A key that the shape does not have is split at its dots, for the error that names the nearest.
    """
    key, value = split_at_equals(text)
    parts = key_parts(key)
    if parts is None or not parts or not value or not value.isprintable():
        raise BadInput(f"--set {text!r} is not KEY=VALUE, as in --set optimizer.learning_rate=3e-4")
    path, kind = typed_path(parts, shape, is_table=value.startswith("{"))
    if kind is None and not all(re.fullmatch(r"[\w-]+", part) for part in path):
        raise BadInput(f"--set {text!r} is not KEY=VALUE, as in --set optimizer.learning_rate=3e-4")
    table: Any = parse_value(key, value, kind)
    for part in reversed(path):
        table = {part: table}
    return dict(table)


def split_at_equals(text: str) -> tuple[str, str]:
    """Return key and value, parted at the first `=` that no quoted part of the key holds."""
    match = re.match(r"""((?:[^"'=]|(?<=[.])"(?:[^"\\]|\\.)*"(?=\s*[.=])|(?<=[.])'[^']*'(?=\s*[.=])|["'])*)=(.*)$""", text, re.DOTALL)
    return (match[1].strip(), match[2].strip()) if match else ("", "")


def key_parts(key: str) -> list[str] | None:
    """Return the parts of a dotted key, quotes taken off; None for an empty part. A quote inside a bare part is a character of it."""
    parts = []
    while True:
        quoted = re.match(r"""\s*("(?:[^"\\]|\\.)*"|'[^']*')\s*(?=\.|$)""", key)
        taken = quoted[0] if quoted else key.partition(".")[0]
        part = _toml(quoted[1]) if quoted else taken.strip()
        if not isinstance(part, str) or not part or (quoted is None and part[0] in "\"'"):  # or a quote that nothing closes
            return None
        parts.append(part)
        if len(taken) == len(key):
            return parts
        key = key[len(taken) + 1 :]


def typed_path(parts: list[str], shape: type, *, is_table: bool) -> tuple[list[str], Any]:
    """Return the keys from `shape` to the value, a name in one piece, and the value's type; None where the shape has no such key.

    `is_table` says that the value is a table, so that what follows a table of the user's own keys is a name to its end.
    """
    kind: Any = shape
    for depth, part in enumerate(parts):
        if not dataclasses.is_dataclass(kind):
            return parts, None
        hints = typing.get_type_hints(kind)
        if part not in hints:
            return parts, None
        kind, rest = without_none(hints[part]), parts[depth + 1 :]
        if rest and issubclass_safely(typing.get_origin(kind), Mapping):
            name, inner = named_path(parts[: depth + 1], rest, typing.get_args(kind)[1], is_table=is_table)
            return [*parts[: depth + 1], *name], inner
    return parts, kind


def named_path(above: list[str], rest: list[str], kind: Any, *, is_table: bool) -> tuple[list[str], Any]:
    """Return name and field below a table of the user's own keys; raises BadInput naming the nearest field."""
    if not dataclasses.is_dataclass(kind) or is_table or len(rest) == 1:
        return [".".join(rest)], kind
    hints, name = typing.get_type_hints(kind), ".".join(rest[:-1])
    if rest[-1] not in hints:
        known = [".".join((*above, name_before, field)) for name_before in (name, ".".join(rest)) for field in hints]
        raise unknown_name("key of --set:", ".".join((*above, *rest)), known)
    return [name, rest[-1]], hints[rest[-1]]


def parse_value(key: str, value: str, kind: Any) -> Any:
    """Return a value of the type that the key wants, or what TOML makes of it; raises BadInput."""
    if kind is str and value[0] not in "\"'":
        return value
    listed = re.fullmatch(r"\[([^\[\]\"']*)\]", value)
    if listed and typing.get_origin(kind) is tuple and typing.get_args(kind)[0] is str:
        return [word.strip() for word in listed[1].split(",") if word.strip()]
    if re.fullmatch(_BARE_WORD, value) and value not in _TOML_WORDS:
        return value
    try:
        return tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError as error:
        raise BadInput(f"--set {key}: {value!r} is not a TOML value ({error}); lists are written [1, 2]") from error


def _toml(text: str) -> object:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return None
