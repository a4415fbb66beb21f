"""Read labels from the label column of a Parquet file.

Integers are class numbers whatever type holds them (1, 1.0, a decimal, a dictionary's entry), text is a name. Null, NaN and −1 mean no
label. A column that Hugging Face's `datasets` declares a ClassLabel holds indices into the class names in the file's metadata. Columns of
lists, structs, maps or dates are refused, because it is unclear which of their values is the class.
"""

import json
import math
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.types as kinds

from ..core.errors import BadInput
from .sample_labels import MINUS_ONE, UnusableLabel, label_text

_NOT_A_NUMBER = "labels of NaN, which stands for none"
_PLAIN = (
    *(kinds.is_integer, kinds.is_floating, kinds.is_boolean, kinds.is_decimal, kinds.is_null),
    *(kinds.is_string, kinds.is_large_string, kinds.is_string_view, kinds.is_binary, kinds.is_large_binary),
)


class ParquetLabels:
    """The labels of one column; raises `BadInput` for an unusable column or unusable class names."""

    def __init__(self, schema: pa.Schema, column: str, path: str) -> None:
        self._where = f"{path}, column {column}"
        kind = schema.field(column).type
        value = kind.value_type if kinds.is_dictionary(kind) else kind
        if not any(has_type(value) for has_type in _PLAIN):
            raise BadInput(f"{self._where}: labels of type {kind}, none of which is the class; write a number or a name a row")
        self.class_names = self._names(_declared_class_names(schema, column, self._where))

    def _names(self, declared: list[Any] | None) -> tuple[str, ...] | None:
        if declared is None:
            return None
        try:
            names = tuple(label_text(name) for name in declared)
        except UnusableLabel as error:
            raise BadInput(f"{self._where}: a class name in its metadata cannot be used ({error}); correct the metadata") from error
        duplicate = next((name for name in names if names.count(name) > 1), None)
        if duplicate is not None:
            raise BadInput(f"{self._where}: its metadata names the class {duplicate!r} twice; correct the metadata")
        return names

    def read(self, value: Any, row: int) -> tuple[str | None, str | None]:
        """Return a cell's label, or None and why it is not used (None for a null); raise `BadInput` for a class without a name."""
        if value is None:
            return None, None
        try:
            if isinstance(value, (float, Decimal)) and math.isnan(value):
                raise UnusableLabel(_NOT_A_NUMBER)
            text = label_text(value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value)
            if text == "-1":
                raise UnusableLabel(MINUS_ONE)
        except UnusableLabel as error:
            return None, str(error)
        return (text if self.class_names is None else self._named(text, value, row)), None

    def _named(self, text: str, value: Any, row: int) -> str:
        names = self.class_names or ()
        if isinstance(value, (str, bytes)) and text in names:
            return text
        number = int(value) if isinstance(value, bool) else int(text) if text.isdecimal() else -1
        if not 0 <= number < len(names):
            raise BadInput(f"{self._where}, row {row}: {text} is none of the {len(names):,} classes that its metadata names; correct one")
        return names[number]


def _declared_class_names(schema: pa.Schema, column: str, where: str) -> list[Any] | None:
    """Return the names of a ClassLabel in the metadata of Hugging Face's `datasets`; None when the column is not declared one."""
    metadata = (schema.metadata or {}).get(b"huggingface")
    if metadata is None:
        return None
    try:
        features = json.loads(metadata).get("info", {}).get("features", {})
        feature = features.get(column) or {}
        if feature.get("_type") != "ClassLabel":
            return None
        names = feature.get("names")
    except (ValueError, AttributeError, RecursionError) as error:
        raise BadInput(f"{where}: the metadata of Hugging Face cannot be read ({error}); write the file again") from error
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BadInput(f"{where}: the class names in its metadata are no list of names; correct the metadata")
    return names
