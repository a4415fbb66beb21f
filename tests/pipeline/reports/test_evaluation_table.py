"""Evaluations stand beside the paper's rows with the data that each figure is from."""

import json
from pathlib import Path
from typing import Any

import pytest
from eupe_pipeline.jobs.evaluation.registry import EVALUATIONS, PAPER_ROWS
from eupe_pipeline.pipeline.reports.evaluation_table import (
    Figure,
    data_of,
    details,
    evaluation_rows,
    headline,
    read_evaluations,
)
from eupe_pipeline.storage.core.errors import CacheDamaged
from eupe_pipeline.student.probes.knn_names import rename_record_protocols

KNN: dict[str, Any] = {
    "evaluation": "knn",
    "protocol": {"test": {"dataset": "pets-test@0123456789ab", "images": 30}, "paper": {"k": 10}},
    "results": {
        "test_images": 30, "cls": {"paper": 61.25, "ours": 63.0, "official": {"10": 60.0}}, "mean_patch": {"paper": 50.0, "ours": 51.0},
    },
}  # fmt: skip
OLD_KNN: dict[str, Any] = {**KNN, "results": {"cls": {"paper": 63.0, "official": {"10": 60.0}}, "mean_patch": {"paper": 51.0}}}
DEPTH: dict[str, Any] = {
    "evaluation": "depth", "protocol": {"name": "official", "test": "/data/nyu"}, "results": {"abs_rel": 0.2, "rmse": 0.5014},
}  # fmt: skip


def test_a_headline_is_the_figure_people_quote_with_its_data() -> None:
    assert headline(KNN) == Figure("61.2 %", "pets-test")
    assert headline(DEPTH) == Figure("0.501 m", "nyu")
    without_cls = {**KNN, "results": {"mean_patch": {"paper": 50.0, "ours": 51.0}}}
    assert headline(without_cls) == Figure("50.0 %", "pets-test, mean patch token")


def test_a_figure_that_is_not_by_the_papers_protocol_says_so() -> None:
    assert headline(rename_record_protocols(OLD_KNN)) == Figure(
        "63.0 %", "pets-test, our protocol"
    )  # it was called the paper's and never was
    differing = {**KNN, "results": {**KNN["results"], "differs_from_paper": ["the input is 128 px"]}}
    assert headline(differing) == Figure("61.2 %", "pets-test, the input is 128 px")
    masks = {"evaluation": "segmentation", "protocol": {"name": "official"}, "results": {"miou": 40.0, "best_miou": 41.0}}
    assert headline(masks) == Figure("41.0 %", "")  # the official loop reports the best of its measurements
    assert headline({**masks, "protocol": {}}) == Figure("40.0 %", "our protocol")
    assert headline({**masks, "results": {"best_miou": 41.0, "differs_from_official": ["steps is 9"]}}) == Figure("41.0 %", "steps is 9")
    pairs = {"evaluation": "correspondence", "protocol": {}, "results": {"pck": 50.0}}
    assert headline(pairs) == Figure("50.0 %", "our protocol")
    assert headline({**pairs, "protocol": {"name": "paper"}}) == Figure("50.0 %", "")


@pytest.mark.parametrize(("protocol", "words"), [
    ({"test": {"dataset": "in1k@0123456789ab", "images": 50_000, "sample": None}}, "in1k"),
    ({"test": {"dataset": "in1k@0123456789ab", "images": 50_000, "sample": 1000}}, "in1k, sample of 1,000 images"),
    ({"data": {"train": {"pictures": 9}, "val": {"pictures": 2000, "digest": "d"}}}, "2,000 pictures"),
    ({"data": {"split": "test", "pairs": 12_234}}, "12,234 pairs"),
    ({"data": "/data/nyu/"}, "nyu"),
    ({}, ""),
])  # fmt: skip
def test_a_figure_says_what_it_is_from(protocol: dict[str, Any], words: str) -> None:
    assert data_of({"protocol": protocol}) == words


def test_an_evaluation_we_do_not_know_shows_its_first_number() -> None:
    assert headline({"evaluation": "other", "results": {"name": "x", "score": 3.25}}) == Figure("3.25", "")
    assert headline({"evaluation": "other", "results": {}}) == Figure("no figure", "")


def test_columns_are_what_was_evaluated_and_the_papers_rows_follow() -> None:
    rows = evaluation_rows({"a": [KNN], "b": [KNN, DEPTH], "c": []})
    assert [row.model for row in rows] == ["a", "b", *PAPER_ROWS]
    assert all(list(row.figures) == ["knn", "depth"] for row in rows)
    assert rows[0].figures["depth"] == []
    assert rows[-1].figures["knn"] == [Figure("84.1 %", "ImageNet-1k")]
    assert rows[-1].figures["depth"] == [Figure("0.391 m", "NYUv2")]


def test_without_an_evaluation_there_is_no_table() -> None:
    assert evaluation_rows({"a": [], "b": []}) == []


def test_the_papers_numbers_are_there_for_every_row() -> None:
    assert all(len(column.paper) in (0, len(PAPER_ROWS)) for column in EVALUATIONS.values())


def test_every_value_of_a_record_can_be_read() -> None:
    ((title, values),) = details([KNN])
    assert title == "kNN, pets-test"
    assert ("results.cls.official.10", "60.0") in values
    assert ("protocol.paper.k", "10") in values


def test_records_are_read_from_the_runs_folder_and_a_broken_one_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "evaluations"
    folder.mkdir()
    assert read_evaluations(tmp_path) == []
    (folder / "knn-1.json").write_text(json.dumps(KNN))
    (folder / "linear-2.partial.json").write_text("{")
    assert read_evaluations(tmp_path) == [KNN]
    (folder / "linear-2.json").write_text('{"evaluation": "linear"}')
    with pytest.raises(CacheDamaged, match=r"linear-2\.json is not the record of an evaluation"):
        read_evaluations(tmp_path)
