"""Rows and ids come in any form that says what is meant; what could be misread is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.core.selection import rows_or_ids
from eupe_pipeline.storage.store import FeatureStore

from ..made_up_store import Made


@pytest.mark.parametrize(
    "which", [[3, 1], (3, 1), range(3, 0, -2), np.array([3, 1]), np.array([3, 1], np.int32), np.array([3, 1], np.uint8)]
)
def test_rows_may_come_in_any_form(pristine: Made, which: object) -> None:
    wanted = pristine.features.read(np.array([3, 1], np.int64))
    np.testing.assert_array_equal(pristine.features.read(which).patch, wanted.patch)  # type: ignore[arg-type]
    np.testing.assert_array_equal(pristine.features.read_cls(which), wanted.cls)  # type: ignore[arg-type]
    np.testing.assert_array_equal(pristine.views.read(which).crop, pristine.views.read(np.array([3, 1])).crop)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", [list, tuple, np.array, iter])
def test_ids_may_come_in_any_form(pristine: Made, form: Callable[[list[str]], list[str]]) -> None:
    ids = [pristine.dataset.ids(0, 2)[1], pristine.dataset.ids(0, 2)[0]]
    np.testing.assert_array_equal(pristine.features.read(form(ids)).patch, pristine.features.read(pristine.features.rows_of(ids)).patch)


def test_nothing_is_nothing(pristine: Made) -> None:
    nothing: list[Any] = [[], (), np.array([]), range(0)]
    for which in nothing:
        assert len(pristine.features.read(which).patch) == 0


@pytest.mark.parametrize(
    "which", [3, "class0/0000.png", b"a", None, slice(0, 3), np.zeros(4, bool), [True, False], [0.5], [[1, 2], [3, 4]], [1, "a"]]
)
def test_what_could_be_misread_is_refused(pristine: Made, which: object) -> None:
    with pytest.raises(BadInput):
        pristine.features.read(which)  # type: ignore[arg-type]
    with pytest.raises(BadInput):
        pristine.views.read(which)  # type: ignore[arg-type]


def test_a_mask_is_refused_with_the_way_to_make_rows_of_it() -> None:
    with pytest.raises(BadInput, match=r"flatnonzero"):
        rows_or_ids(np.ones(3, bool))


def test_ids_where_rows_are_wanted_and_rows_where_ids_are_wanted_are_refused(pristine: Made) -> None:
    with pytest.raises(BadInput, match="rows_of"):
        pristine.views.read(pristine.dataset.ids(0, 1))  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="image ids"):
        pristine.dataset.index_of([1])  # type: ignore[list-item]


def test_a_store_opens_by_path_and_everything_says_what_it_is(pristine: Made) -> None:
    store = FeatureStore.open(Path(pristine.store.url))
    for one in (store, store.dataset(pristine.dataset.key), store.view_set(pristine.views.key), store.features(pristine.features.key)):
        assert "object at" not in repr(one)
    assert pristine.features.key in repr(store.features(pristine.features.key))
