"""Records of evaluations: found again by their protocol, never mixed, damage is said."""

from pathlib import Path

import pytest
from eupe_pipeline.storage.core.errors import CacheDamaged
from eupe_pipeline.student.probes.evaluation_records import evaluations_of, keep_record, kept_record, record_path


def test_a_record_is_found_by_its_protocol_and_by_no_other(tmp_path: Path) -> None:
    kept = keep_record(tmp_path, "knn", {"k": 10, "data": "a"}, {"paper": 80.0}, 1.25)
    assert kept_record(tmp_path, "knn", {"data": "a", "k": 10}) == kept
    assert kept_record(tmp_path, "knn", {"data": "a", "k": 20}) is None
    assert kept_record(tmp_path, "linear", {"data": "a", "k": 10}) is None
    assert record_path(tmp_path, "knn", {"k": 10, "data": "a"}).name.startswith("knn-")
    assert (kept["seconds"], set(kept["versions"])) == (1.25, {"torch", "eupe-pipeline"})


def test_all_records_of_a_folder_are_listed_without_what_is_half_done(tmp_path: Path) -> None:
    keep_record(tmp_path, "linear", {"k": 1}, {"top1": 1.0}, 0.0)
    keep_record(tmp_path, "knn", {"k": 1}, {"paper": 2.0}, 0.0)
    (tmp_path / "evaluations" / "depth-0.partial.json").write_text("{}")
    assert [record["evaluation"] for record in evaluations_of(tmp_path)] == ["knn", "linear"]
    assert evaluations_of(tmp_path / "elsewhere") == []


@pytest.mark.parametrize("text", ["{", "[]", '{"evaluation": "knn"}'])
def test_a_damaged_record_says_how_it_is_mended(tmp_path: Path, text: str) -> None:
    keep_record(tmp_path, "knn", {"k": 1}, {"paper": 2.0}, 0.0)
    record_path(tmp_path, "knn", {"k": 1}).write_text(text)
    with pytest.raises(CacheDamaged, match="remove it and evaluate again"):
        kept_record(tmp_path, "knn", {"k": 1})
