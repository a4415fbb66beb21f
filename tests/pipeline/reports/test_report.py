"""The page is self-contained, complete, and says only what the results say."""

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from eupe_pipeline.pipeline.pictures.pca import PcaPicture
from eupe_pipeline.pipeline.reports.report import Contents, knn_rows, size, tiles, write_report
from eupe_pipeline.storage.core.errors import BadInput, StoreUnavailable

VOID = {"meta", "link", "img", "br", "wbr"}


class Page(HTMLParser):
    """Collects a page's text, its attributes, and tags that are not closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts += [data.strip()] if data.strip() and self.open[-1:] != ["style"] else []

    @property
    def text(self) -> str:
        return " ".join(self.texts)


@pytest.fixture
def html(results: dict[str, Any], made_run: Callable[..., Path], drawn: list[PcaPicture], tmp_path: Path) -> str:
    runs = [made_run("stage1"), made_run("stage2", teachers=("proxy",))]
    write_report(Contents(runs, results, drawn), tmp_path / "out" / "report.html")
    return (tmp_path / "out" / "report.html").read_text()


def test_every_tag_is_closed_in_order(html: str) -> None:
    assert Page(html).open == []


def test_nothing_is_loaded_from_elsewhere_and_no_script_runs(html: str) -> None:
    page = Page(html)
    assert "script" not in page.tags
    links = [value for name, value in page.attributes if name in ("src", "href", "srcset", "action")]
    assert links
    assert all(value.startswith("data:") for value in links)
    assert not re.search(r"https?:", html)
    assert "@import" not in html
    assert "url(" not in html


def test_the_page_serves_phone_and_desktop_dark_and_light(html: str) -> None:
    assert 'name="viewport" content="width=device-width' in html
    assert "prefers-color-scheme: dark" in html
    assert "max-width: 520px" in html
    assert html.count("<table") == html.count('scroll">\n<table')


def test_both_knn_protocols_stand_for_every_model(html: str) -> None:
    text = Page(html).text
    for figure in ("9.5", "24.1", "41.3", "43.0", "47.8", "79.9", "78.6", "42.6", "74.8"):
        assert figure in text
    for words in ("student, untrained", "mean patch token", "student after stage 3", "keras-resnet50", "official, k = 200"):
        assert words in text


def test_cost_bytes_and_seconds_are_shown_as_measured(html: str) -> None:
    text = Page(html).text
    assert "3 min 02 s" in text  # live
    assert "45.5 ×" in text
    assert "311 MB" in text
    assert "25.9 kB" in text  # a row
    assert "2 min 51 s" in text
    assert "104 images/s over 256 images" in text


def test_every_photo_is_shown_with_every_encoders_colours(html: str) -> None:
    page = Page(html)
    assert page.tags.count("img") == 4 * 5
    assert {"photo: ship", "student: ship", "keras-resnet50: frog"} <= {value for name, value in page.attributes if name == "alt"}


def test_recipes_show_each_value_with_its_origin(html: str) -> None:
    text = Page(html).text
    assert "ours : 256 px would take hours on two cores" in text
    assert "optimizer. learning_rate 0.001 --set" in text


def test_each_run_has_its_curves_and_their_last_values(html: str) -> None:
    assert html.count('class="curve"') == 5 + 3 + 2 * 2 + 2  # each with its rate and its wait, and both rates side by side
    assert "<b>400</b> steps" in html
    assert "<b>1.2 %</b> waiting for data" in html


def test_the_first_figures_compare_the_student_with_the_better_untrained_token(results: dict[str, Any]) -> None:
    found = tiles(results, knn_rows(results["knn"]))
    assert found[0] == ("43.0 %", "kNN of the student after stage 3", "untrained 24.1 %")
    assert found[1][0] == "42.9 ×"
    assert found[2][:2] == ("720 MB", "on disk")


def test_a_page_about_runs_alone_has_no_empty_sections(made_run: Callable[..., Path], tmp_path: Path) -> None:
    write_report(Contents([made_run("alone")]), tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    assert Page(html).open == []
    assert re.findall(r'<section id="(\w+)"', html) == ["evaluations", "runs", "recipes"]
    assert "<title>alone</title>" in html


def test_names_from_data_cannot_become_markup(made_run: Callable[..., Path], drawn: list[PcaPicture], tmp_path: Path) -> None:
    evil = "<img src=x onerror=alert(1)>"
    pictures = [PcaPicture(evil, drawn[0].image, {evil: drawn[0].tokens["proxy"]})]
    results = {"title": evil, "knn": {"teachers": {evil: {"paper": 1.0}}}, "feature_sets": {evil: {"bytes": 1}}, "facts": {evil: evil}}
    write_report(Contents([made_run("run", teachers=(evil, "b"))], results, pictures), tmp_path / "report.html")
    assert "<img src=x" not in (tmp_path / "report.html").read_text()


def test_an_entry_without_tokens_is_the_class_token() -> None:
    (row,) = knn_rows({"proxy": {"paper": 5.0, "official": {"10": 6.0}}})
    assert (row.model, row.token, row.kind, row.ours, row.official) == ("proxy", "class token", "proxy", 5.0, {10: 6.0})


def test_a_folder_that_is_no_run_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="not the folder of a training run"):
        write_report(Contents([tmp_path]), tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_a_place_that_cannot_be_written_is_an_error_of_ours(made_run: Callable[..., Path]) -> None:
    with pytest.raises((StoreUnavailable, OSError)):
        write_report(Contents([made_run()]), Path("/proc/report.html"))


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (25_916, "25.9 kB"), (311e6, "311 MB"), (1e12, "1.0 TB"), (5e15, "5000 TB")]
)
def test_sizes_are_decimal(count: float, text: str) -> None:
    assert size(count) == text


def test_models_of_several_students_are_named_and_an_untrained_one_is_not_shown_as_trained() -> None:
    figures = {"ours": 10.0, "paper": 9.0, "official": {"10": 11.0}}
    better = {**figures, "ours": 40.0}
    knn = {f"{student}: {part}": {"cls": entry} for student in ("a", "b") for part, entry in (("random", figures), ("stage2", better))}
    rows = knn_rows(knn)
    assert [row.model for row in rows] == ["a, untrained", "a, after stage 2", "b, untrained", "b, after stage 2"]
    assert tiles({}, rows)[0][:2] == ("40.0 %", "kNN of b, after stage 2")
    assert tiles({}, rows)[0][2] == "untrained 10.0 %"
