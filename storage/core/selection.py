"""Which rows or images a caller asks for: whatever a notebook hands over becomes row numbers or ids, or an error that says what to give.

Numbers may come as an integer array or tensor, a list or a range, ids as a list or an array of strings. A mask is refused: taken for
numbers, its False and True would be rows 0 and 1. So are one id alone (it is a sequence of letters) and fractions.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import BadInput

Rows = NDArray[np.int64]
Asked = NDArray[Any] | Sequence[int] | Sequence[str]


def rows_or_ids(which: object) -> Rows | list[str]:
    """Row numbers (n,) int64, or ids, from either of them in any form; raises `BadInput`."""
    if isinstance(which, np.ndarray) and which.dtype == np.int64 and which.ndim == 1:
        return which
    if isinstance(which, (str, bytes)) or not isinstance(which, (np.ndarray, Iterable)):
        raise BadInput(f"give a list of rows or of image ids, such as [{which!r}], got {which!r}")
    values = which if isinstance(which, np.ndarray) else list(which)
    if len(values) and all(isinstance(value, str) for value in values):
        return [str(value) for value in values]
    array = np.asarray(values) if len(values) else np.empty(0, np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        hint = "; `np.flatnonzero(mask)` makes rows of a mask" if array.dtype.kind == "b" else ""
        raise BadInput(f"rows are one list of whole numbers, ids one of strings; got {array.dtype} of shape {array.shape}{hint}")
    return array.astype(np.int64)


def only_rows(which: object, count: int, key: str) -> Rows:
    """Row numbers (n,) int64 below `count`; raises `BadInput` for ids, for anything else, and for rows outside."""
    rows = rows_or_ids(which)
    if isinstance(rows, list):
        raise BadInput(f"{key} is read by row numbers here, got ids; `rows_of(ids)` of a feature set gives their rows")
    if len(rows) and not (rows.min() >= 0 and rows.max() < count):
        raise BadInput(f"rows {rows.min()} to {rows.max()} of {key}, which has {count}")
    return rows


def only_ids(which: object) -> list[str]:
    """Image ids; raises `BadInput` for row numbers and anything else."""
    ids = rows_or_ids(which)
    if isinstance(ids, list):
        return ids
    if len(ids):
        raise BadInput(f"give image ids, such as 'class0/0001.png', got the number {int(ids[0])}")
    return []
