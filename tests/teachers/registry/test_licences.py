"""The terms of the teachers: every named teacher's row has them, and not knowing is said."""

from eupe_pipeline.teachers.registry.table import OFFICIAL_EUPE, ROWS, UNKNOWN, Terms, sentence, terms_of


def test_every_teacher_of_the_registry_has_recorded_terms() -> None:
    assert [name for name, row in ROWS.items() if row.terms is UNKNOWN or not all(map(str, row.terms))] == []
    assert terms_of("dinov3-h+").licence.startswith("DINOv3 License")


def test_a_teacher_that_we_do_not_know_is_not_declared_free() -> None:
    assert terms_of("timm:something") is UNKNOWN
    assert "unknown to us" in sentence("timm:something", UNKNOWN)


def test_non_commercial_terms_are_said_in_capitals() -> None:
    assert "NON-COMMERCIAL" in sentence("eupe", OFFICIAL_EUPE)
    assert "no non-commercial clause" in sentence("free", Terms("MIT", False, "somewhere"))
