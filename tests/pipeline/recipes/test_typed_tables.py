"""Tables become dataclasses, or errors that name the key."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from eupe_pipeline.pipeline.recipes.typed_tables import build, describe, known_keys, leaves
from eupe_pipeline.storage.core.errors import BadInput
from hypothesis import given
from hypothesis import strategies as st


@dataclass(frozen=True)
class Weights:
    """Two numbers."""

    cls: float = 1.0
    patch: float = 1.0


@dataclass(frozen=True)
class Inner:
    """A nested table."""

    rate: float = 0.1
    mode: Literal["a", "b"] = "a"

    def __post_init__(self) -> None:
        if self.rate > 1:
            raise BadInput(f"rate is {self.rate}, wanted at most 1")


@dataclass(frozen=True)
class Outer:
    """Every kind of field that recipes have."""

    count: int
    name: str = "x"
    on: bool = False
    sizes: tuple[int, ...] = ()
    limit: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, Weights] = field(default_factory=dict)
    inner: Inner = field(default_factory=Inner)


def make(**table: object) -> Outer:
    return build(Outer, table, where="file f.toml")


def test_every_kind_of_value_arrives_in_its_type() -> None:
    made = make(count=3, sizes=[1, 2], limit=4, options={"a": [1]}, weights={"t": {"cls": 2}}, inner={"rate": 1, "mode": "b"})
    assert made == Outer(3, "x", False, (1, 2), 4, {"a": [1]}, {"t": Weights(2.0, 1.0)}, Inner(1.0, "b"))
    assert type(made.inner.rate) is float


def test_an_unknown_key_names_the_nearest_one_with_its_table() -> None:
    with pytest.raises(BadInput, match=r"f\.toml.*'inner\.raet'.*did you mean 'inner\.rate'"):
        make(count=1, inner={"raet": 0.5})


def test_a_missing_key_is_named() -> None:
    with pytest.raises(BadInput, match=r"file f\.toml does not set count"):
        make(name="y")


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"count": 1.5}, r"count is 1\.5, wanted a whole number"),
        ({"count": True}, "count is True, wanted a whole number"),
        ({"count": "3"}, "count is '3', wanted a whole number"),
        ({"count": 1, "on": 1}, "on is 1, wanted true or false"),
        ({"count": 1, "name": 2}, "name is 2, wanted a string"),
        ({"count": 1, "sizes": 64}, "sizes is 64, wanted a list, each of it a whole number"),
        ({"count": 1, "sizes": [64, "a"]}, "sizes is 'a', wanted a whole number"),
        ({"count": 1, "inner": 3}, "inner is 3, wanted a table"),
        ({"count": 1, "inner": {"mode": "c"}}, r"inner\.mode is 'c', wanted 'a' or 'b'"),
        ({"count": 1, "inner": {"rate": True}}, r"inner\.rate is True, wanted a number"),
        ({"count": 1, "weights": {"t": {"cls": "x"}}}, r"weights\.t\.cls is 'x', wanted a number"),
        ({"count": 1, "options": 3}, "options is 3, wanted a table"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(table: dict[str, object], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        make(**table)


def test_a_range_error_of_the_dataclass_carries_the_files_name() -> None:
    with pytest.raises(BadInput, match=r"file f\.toml: rate is 2\.0, wanted at most 1"):
        make(count=1, inner={"rate": 2.0})


def test_known_keys_are_dotted() -> None:
    assert known_keys(Outer) == ["count", "name", "on", "sizes", "limit", "options", "weights", "inner.rate", "inner.mode"]


def test_a_type_is_described_in_the_words_of_toml() -> None:
    assert describe(tuple[float, ...]) == "a list, each of it a number"
    assert describe(Mapping[str, int]) == "a table"


TABLES = st.recursive(
    st.dictionaries(st.from_regex(r"[a-z]{1,4}", fullmatch=True), st.integers(), max_size=3),
    lambda inner: st.dictionaries(st.from_regex(r"[a-z]{1,4}", fullmatch=True), inner | st.integers(), max_size=3),
    max_leaves=8,
)


@given(TABLES)
def test_leaves_reach_every_value_once(table: dict[str, Any]) -> None:
    for key, value in leaves(table):
        found: Any = table
        for part in key.split("."):
            found = found[part]
        assert found == value
    keys = [key for key, _ in leaves(table)]
    assert len(keys) == len(set(keys))
