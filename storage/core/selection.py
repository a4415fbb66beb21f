"""Normalise a caller's selection of rows or images to row numbers or ids, or raise an error that says what is accepted.

Row numbers may be an integer array or tensor, a list or a range; ids a list or an array of strings. A boolean mask is refused, because as
integers its False and True would select rows 0 and 1. So are a single id (a string is a sequence of letters) and fractions.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import BadInput

Rows = NDArray[np.int64]
Selection = NDArray[Any] | Sequence[int] | Sequence[str]


def rows_or_ids(selection: object) -> Rows | list[str]:
    """Return row numbers (n,) int64, or a list of ids; raise `BadInput` for anything else."""
    if isinstance(selection, np.ndarray) and selection.dtype == np.int64 and selection.ndim == 1:
        return selection
    if isinstance(selection, (str, bytes)) or not isinstance(selection, (np.ndarray, Iterable)):
        raise BadInput(f"give a list of rows or of image ids, such as [{selection!r}], got {selection!r}")
    values = selection if isinstance(selection, np.ndarray) else list(selection)
    if len(values) and all(isinstance(value, str) for value in values):
        return [str(value) for value in values]
    array = np.asarray(values) if len(values) else np.empty(0, np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        hint = "; `np.flatnonzero(mask)` makes rows of a mask" if array.dtype.kind == "b" else ""
        raise BadInput(f"rows are one list of whole numbers, ids one of strings; got {array.dtype} of shape {array.shape}{hint}")
    return array.astype(np.int64)


def only_rows(selection: object, count: int, key: str) -> Rows:
    """Return row numbers (n,) int64 within [0, count); raise `BadInput` for ids, other types and rows out of range."""
    rows = rows_or_ids(selection)
    if isinstance(rows, list):
        raise BadInput(f"{key} is read by row numbers here, got ids; `rows_of(ids)` of a feature set gives their rows")
    if len(rows) and not (rows.min() >= 0 and rows.max() < count):
        raise BadInput(f"rows {rows.min()} to {rows.max()} of {key}, which has {count}")
    return rows


def only_ids(selection: object) -> list[str]:
    """Return image ids; raise `BadInput` for row numbers and other types."""
    ids = rows_or_ids(selection)
    if isinstance(ids, list):
        return ids
    if len(ids):
        raise BadInput(f"give image ids, such as 'class0/0001.png', got the number {int(ids[0])}")
    return []
