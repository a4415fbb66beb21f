"""Digests follow content and nothing else."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
from eupe_pipeline.storage.core.identity import canonical_json, differing_fields, digest, file_sha256, ids_digest, short
from hypothesis import given
from hypothesis import strategies as st

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
identities = st.dictionaries(st.text(max_size=5), json_values, max_size=5)


def test_the_canonical_form_is_frozen() -> None:
    assert canonical_json({"b": [1, 2.5, None], "a": "é"}) == '{"a":"é","b":[1,2.5,null]}'.encode()
    assert digest({"b": 1, "a": 2}) == hashlib.sha256(b'{"a":2,"b":1}').hexdigest()
    assert short("0123456789abcdef") == "0123456789ab"


@given(st.dictionaries(st.text(max_size=5), json_values, min_size=2, max_size=5))
def test_the_order_of_keys_does_not_matter(value: dict[str, Any]) -> None:
    assert digest(value) == digest(dict(reversed(value.items())))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"x": -float("inf")}, {1, 2}, b"bytes"])
def test_what_json_lacks_is_refused(value: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        canonical_json(value)


@given(identities, identities)
def test_two_identities_differ_exactly_when_a_field_is_named(left: dict[str, Any], right: dict[str, Any]) -> None:
    assert bool(differing_fields(left, right)) == (digest(left) != digest(right))


def test_numbers_that_python_calls_equal_are_still_told_apart() -> None:
    assert differing_fields({"a": 1, "b": True, "c": None}, {"a": 1.0, "b": 1}) == [
        "a: got 1, wanted 1.0",
        "b: got True, wanted 1",
        "c: got None, wanted nothing",
    ]


def test_differing_fields_name_the_path_and_both_values() -> None:
    lines = differing_fields({"teacher": {"weights": "1b", "size": 3}, "codec": "int8"}, {"teacher": {"weights": "77", "size": 3}})
    assert lines == ["codec: got 'int8', wanted nothing", "teacher.weights: got '1b', wanted '77'"]


@given(st.lists(st.text(max_size=4), max_size=5), st.lists(st.text(max_size=4), max_size=5))
def test_lists_of_ids_collide_only_when_equal(left: list[str], right: list[str]) -> None:
    encodable = [text.encode("utf-8", "replace").decode() for text in left], [text.encode("utf-8", "replace").decode() for text in right]
    assert (ids_digest(encodable[0]) == ids_digest(encodable[1])) == (encodable[0] == encodable[1])


def test_a_files_digest_is_that_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x" * 300_000)
    assert file_sha256(tmp_path / "x") == hashlib.sha256(b"x" * 300_000).hexdigest()
