"""The terms of the teachers: every named teacher has a row, and not knowing is said."""

from eupe_pipeline.teachers.registry.licences import OFFICIAL_EUPE, TERMS, UNKNOWN, Terms, sentence, terms_of
from eupe_pipeline.teachers.registry.registry import TEACHERS


def test_every_teacher_of_the_registry_has_recorded_terms() -> None:
    assert set(TERMS) == set(TEACHERS)


def test_a_teacher_that_we_do_not_know_is_not_declared_free() -> None:
    assert terms_of("timm:something") is UNKNOWN
    assert "unknown to us" in sentence("timm:something", UNKNOWN)


def test_non_commercial_terms_are_said_in_capitals() -> None:
    assert "NON-COMMERCIAL" in sentence("eupe", OFFICIAL_EUPE)
    assert "no non-commercial clause" in sentence("free", Terms("MIT", False, "somewhere"))
