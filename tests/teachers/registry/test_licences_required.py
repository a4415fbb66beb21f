"""What terms allow: unknown is not allowed, the stricter of two counts, `permissive` names free weights alone, sources are stated."""

from pathlib import Path

import pytest
from eupe_pipeline.pipeline.recipes.load import load_recipe
from eupe_pipeline.storage.core.choices import LICENCE_USES
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.teachers.registry.licences import (
    ALLOWS,
    as_record,
    declared_terms,
    merged,
    refuse_terms,
    terms_from_record,
    terms_of_recorded,
    through,
    with_declared,
)
from eupe_pipeline.teachers.registry.table import OFFICIAL_EUPE, ROWS, UNKNOWN, Terms

FREE, NOT_FREE = Terms("MIT", False, "here"), Terms("NC", True, "there")
PAGE = Path(__file__).parents[3] / "docs" / "licences.md"


def test_the_table_has_the_uses_that_are_offered() -> None:
    assert tuple(ALLOWS) == LICENCE_USES


def test_commercial_use_needs_terms_that_are_known_to_allow_it() -> None:
    assert [ALLOWS["commercial"](terms) for terms in (FREE, NOT_FREE, UNKNOWN)] == [True, False, False]
    refuse_terms("commercial", {"a": FREE})
    refuse_terms(None, {"a": NOT_FREE, "b": UNKNOWN})
    with pytest.raises(BadInput, match=r"2 of 3 terms.*b: NC \(NON-COMMERCIAL use only\); read there\. c: not recorded") as refused:
        refuse_terms("commercial", {"a": FREE, "b": NOT_FREE, "c": UNKNOWN})
    assert "--terms 'c=LICENCE'" in str(refused.value)
    assert "dinov2-g" in str(refused.value)
    with pytest.raises(BadInput) as refused:
        refuse_terms("commercial", {"b": NOT_FREE})
    assert "declare" not in str(refused.value)


def test_of_two_terms_for_one_name_the_known_and_then_the_stricter_counts() -> None:
    for one, other, expected in ((UNKNOWN, FREE, FREE), (FREE, NOT_FREE, NOT_FREE), (UNKNOWN, NOT_FREE, NOT_FREE)):
        assert merged({"a": one}, {"a": other}) == merged({"a": other}, {"a": one}) == {"a": expected}
    assert terms_from_record(as_record({"a": FREE, "b": UNKNOWN})) == {"a": FREE, "b": UNKNOWN}


@pytest.mark.parametrize(("text", "licence", "non_commercial"), [
    ("Apache-2.0", "Apache-2.0", False), ("cc-by-nc-4.0", "cc-by-nc-4.0", True), ("commercial: bought", "bought", False),
    ("non-commercial", "non-commercial use", True),
])  # fmt: skip
def test_a_licence_is_declared_by_its_id_or_in_words(text: str, licence: str, non_commercial: bool) -> None:
    assert declared_terms(text)[:2] == (licence, non_commercial)


def test_a_declaration_is_for_the_teacher_through_whoever_it_reaches_the_student() -> None:
    found, used = with_declared({"my-net (through proxy)": UNKNOWN, "a": FREE}, {"my-net": "mit"})
    assert (found["my-net (through proxy)"].non_commercial, found["a"], used) == (False, FREE, {"my-net"})
    assert with_declared(found, {"my-net": "cc-by-nc-4.0"})[0]["my-net (through proxy)"].non_commercial is True


def test_a_name_is_believed_where_the_recorded_model_is_of_that_name() -> None:
    row = ROWS["dinov2-g"]
    assert terms_of_recorded("dinov2-g", {"architecture": row.architecture}) == row.terms == terms_of_recorded("dinov2-g", {})
    assert terms_of_recorded("dinov2-g", {"architecture": {"name": "vit", "width": 96}}) is UNKNOWN
    assert terms_of_recorded("dinov2-g", {"architecture": {**row.architecture, "model": "vit_tiny_patch16_224"}}) is UNKNOWN
    assert (through("a", "a"), through("a", "p")) == ("a", "a (through p)")


def test_the_recipe_for_the_careful_names_teachers_whose_weights_are_free_and_no_dinov3() -> None:
    names = load_recipe("permissive", stage=1).recipe.teacher.names
    assert set(names) == {"pecore-g", "siglip2-g", "dinov2-g"}
    assert {ROWS[name].terms.licence for name in names} == {"Apache-2.0"}
    assert [load_recipe("permissive", stage=stage).recipe.stage for stage in (2, 3)] == [2, 3]


def test_the_page_states_the_source_of_every_teachers_terms() -> None:
    page = PAGE.read_text()
    missing = [name for name, row in ROWS.items() if row.terms.source.split(" (")[0] not in page]
    assert missing == []
    assert OFFICIAL_EUPE.source in page
