"""Build a frozen dataclass from a table of plain values (parsed TOML), or raise an error that names the wrong key.

Only what recipes need: numbers, strings, booleans, literals, tuples from lists, mappings, nested dataclasses. Nothing is guessed: a
string that looks like a number stays an error. Unknown keys name the nearest known one, since a misspelt key with a default behind it
would otherwise be silent. Ranges are the dataclass's own business, in `__post_init__`; its BadInput gets the file's name in front.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from ...storage.core.errors import BadInput, unknown_name
from ...storage.views.input_size import SizePx, as_size

Built = TypeVar("Built")


def leaves(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of every value that is not itself a non-empty table."""
    for key, value in table.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def known_keys(shape: type, prefix: str = "") -> list[str]:
    """Return the dotted keys of a dataclass, those of nested dataclasses included."""
    hints = typing.get_type_hints(shape)
    keys = []
    for field in dataclasses.fields(shape):
        inner = without_none(hints[field.name])
        nested = isinstance(inner, type) and dataclasses.is_dataclass(inner)
        keys += known_keys(inner, f"{prefix}{field.name}.") if nested else [f"{prefix}{field.name}"]
    return keys


def build(shape: type[Built], table: Mapping[str, Any], *, where: str, prefix: str = "", root: type | None = None) -> Built:
    """Return the dataclass `shape` made of a table; raises BadInput for unknown and missing keys and for wrong types."""
    root = root or shape
    hints = typing.get_type_hints(shape)
    unknown = [key for key in table if key not in hints]
    if unknown:
        known = [*known_keys(root), *known_keys(shape, prefix)]
        tables = [key.rpartition(".")[0] for key in known if "." in key]
        raise unknown_name(f"key of {where}:", prefix + unknown[0], [*known, *tables])
    values = {key: convert(value, hints[key], where=where, key=prefix + key, root=root) for key, value in table.items()}
    missing = [field.name for field in dataclasses.fields(shape) if required(field) and field.name not in values]  # type: ignore[arg-type]
    if missing:
        raise BadInput(f"{where} does not set {', '.join(prefix + key for key in missing)}")
    try:
        return shape(**values)
    except BadInput as error:
        raise BadInput(f"{where}: {error}") from error


def required(field: "dataclasses.Field[Any]") -> bool:
    """Return whether the field has no default."""
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def convert(value: object, kind: Any, *, where: str, key: str, root: type) -> Any:
    """Return a TOML value as the annotated type `kind`; whole numbers serve as float, lists as tuples; raises BadInput."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type) and isinstance(value, Mapping):
        return build(kind, value, where=where, prefix=f"{key}.", root=root)
    if origin is tuple and isinstance(value, list):
        return tuple(convert(item, inner[0], where=where, key=key, root=root) for item in value)
    if origin is not None and issubclass_safely(origin, Mapping) and isinstance(value, Mapping):
        refuse_split_names(value, inner[1], where, key)
        return {name: convert(item, inner[1], where=where, key=f"{key}.{name}", root=root) for name, item in value.items()}
    if kind == SizePx:
        return as_size(value, key)
    if origin in (typing.Union, types.UnionType):
        return convert(value, without_none(kind), where=where, key=key, root=root)
    if origin is typing.Literal and value in inner:
        return value
    if isinstance(value, float) and not math.isfinite(value):  # what JSON cannot hold, no run can record
        raise BadInput(f"{where}: {key} is {value!r}, wanted {describe(kind)}, and never nan or inf")
    if kind is float and type(value) in (int, float):
        return float(typing.cast(float, value))
    if kind in (Any, object) or (origin is None and type(value) is kind):
        return value
    raise BadInput(f"{where}: {key} is {value!r}, wanted {describe(kind)}")


def refuse_split_names(table: Mapping[str, Any], kind: Any, where: str, key: str) -> None:
    """Raise BadInput where TOML split a name at its dots: `imagenet.v2 = 0.1` is a table `v2` in `imagenet`."""
    fields = set(typing.get_type_hints(kind)) if dataclasses.is_dataclass(kind) else set()
    for name, value in table.items():
        split = [part for part, part_value in value.items() if part not in fields] if isinstance(value, Mapping) and kind is not Any else []
        if split and (not fields or isinstance(value[split[0]], Mapping)):
            raise BadInput(f'{where}: {key}.{name} holds {split[0]!r}; a name with dots is quoted: {key}."{name}.{split[0]}"')


def without_none(kind: Any) -> Any:
    """Return an annotation without its `| None`: TOML has no word for nothing."""
    if typing.get_origin(kind) not in (typing.Union, types.UnionType):
        return kind
    return next((member for member in typing.get_args(kind) if member is not type(None)), kind)


def issubclass_safely(kind: object, above: type) -> bool:
    """Return issubclass for what may not be a class at all."""
    return isinstance(kind, type) and issubclass(kind, above)


def describe(kind: Any) -> str:
    """Return an annotation as a reader of TOML understands it."""
    if typing.get_origin(kind) is tuple:
        return f"a list, each of it {describe(typing.get_args(kind)[0])}"
    if kind == SizePx:
        return "a whole number or [height, width]"
    if typing.get_origin(kind) is typing.Literal:
        return " or ".join(repr(choice) for choice in typing.get_args(kind))
    if dataclasses.is_dataclass(kind):
        return f"a table of {', '.join(field.name for field in dataclasses.fields(kind))}"
    if issubclass_safely(typing.get_origin(kind), Mapping):
        return "a table"
    return {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a string", "Any": "a value"}.get(
        getattr(kind, "__name__", ""), str(kind)
    )
