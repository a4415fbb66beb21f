"""What older results call the paper's kNN is ours, wherever they are read; newer ones hold both."""

import json
from pathlib import Path
from typing import Any

import pytest
from eupe_pipeline.pipeline.reports.evaluation_table import read_evaluations
from eupe_pipeline.pipeline.reports.report import knn_rows
from eupe_pipeline.student.probes.evaluation_records import list_records
from eupe_pipeline.student.probes.knn_names import rename_protocols, rename_record_protocols

OLD: dict[str, Any] = {
    "evaluation": "knn",
    "protocol": {"train": {"dataset": "a@1"}, "test": {"dataset": "b@2"}, "paper": {"k": 10}, "official": {"ks": [10]}},
    "results": {"size_px": 16, "cls": {"paper": 63.0, "official": {"10": 60.0}}, "mean_patch": {"paper": 51.0, "official": {}}},
}
NEW: dict[str, Any] = {
    **OLD,
    "protocol": {**OLD["protocol"], "paper": {"k": 10, "distance": "L2"}, "ours": {"k": 10, "distance": "cosine"}},
    "results": {"cls": {"paper": 61.0, "ours": 63.0, "official": {"10": 60.0}}},
}


def test_an_old_paper_is_ours_and_a_new_one_is_the_papers() -> None:
    assert rename_protocols({"cls": {"paper": 1.0, "official": {"10": 2.0}}}) == {"cls": {"ours": 1.0, "official": {"10": 2.0}}}
    assert rename_protocols({"cls": {"paper": 1.0, "ours": 2.0}}) == {"cls": {"paper": 1.0, "ours": 2.0}}
    assert rename_record_protocols(NEW) == NEW
    other = {"evaluation": "linear", "protocol": {}, "results": {"paper": 1.0}}
    assert rename_record_protocols(other) == other


@pytest.mark.parametrize("read", [list_records, read_evaluations])
def test_records_are_read_under_todays_names_and_stay_as_they_are(tmp_path: Path, read: Any) -> None:
    (tmp_path / "evaluations").mkdir()
    path = tmp_path / "evaluations" / "knn-0123456789ab.json"
    path.write_text(json.dumps(OLD))
    (record,) = read(tmp_path)
    assert record["results"]["cls"] == {"ours": 63.0, "official": {"10": 60.0}}
    assert record["protocol"]["ours"] == {"k": 10}
    assert "paper" not in record["protocol"]
    assert json.loads(path.read_text()) == OLD


def test_a_reports_table_has_them_in_their_own_columns() -> None:
    old, new = knn_rows({"random": OLD["results"]["cls"], "stage2": NEW["results"]["cls"]})
    assert (old.ours, old.paper) == (63.0, None)
    assert (new.ours, new.paper) == (63.0, 61.0)
