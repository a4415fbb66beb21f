"""Records of evaluations: found again by their protocol, never mixed, damage is said."""

from pathlib import Path

import pytest
from eupe_pipeline.storage.core.errors import CacheDamaged
from eupe_pipeline.student.probes.evaluation_records import find_record, list_records, record_path, write_record


def test_a_record_is_found_by_its_protocol_and_by_no_other(tmp_path: Path) -> None:
    kept = write_record(tmp_path, "knn", {"k": 10, "data": "a"}, {"paper": 80.0}, 1.25)
    assert find_record(tmp_path, "knn", {"data": "a", "k": 10}) == kept
    assert find_record(tmp_path, "knn", {"data": "a", "k": 20}) is None
    assert find_record(tmp_path, "linear", {"data": "a", "k": 10}) is None
    assert record_path(tmp_path, "knn", {"k": 10, "data": "a"}).name.startswith("knn-")
    assert (kept["seconds"], set(kept["versions"])) == (1.25, {"torch", "eupe-pipeline"})


def test_all_records_of_a_folder_are_listed_without_what_is_half_done(tmp_path: Path) -> None:
    write_record(tmp_path, "linear", {"k": 1}, {"top1": 1.0}, 0.0)
    write_record(tmp_path, "knn", {"k": 1}, {"paper": 2.0}, 0.0)
    (tmp_path / "evaluations" / "depth-0.partial.json").write_text("{}")
    assert [record["evaluation"] for record in list_records(tmp_path)] == ["knn", "linear"]
    assert list_records(tmp_path / "elsewhere") == []


@pytest.mark.parametrize("text", ["{", "[]", '{"evaluation": "knn"}'])
def test_a_damaged_record_says_how_it_is_repaired(tmp_path: Path, text: str) -> None:
    write_record(tmp_path, "knn", {"k": 1}, {"paper": 2.0}, 0.0)
    record_path(tmp_path, "knn", {"k": 1}).write_text(text)
    with pytest.raises(CacheDamaged, match="remove it and evaluate again"):
        find_record(tmp_path, "knn", {"k": 1})
