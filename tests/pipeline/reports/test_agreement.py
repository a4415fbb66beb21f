"""A run's agreement with its teachers is drawn with the gap between held-out and trained images, and stands where runs are compared."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from eupe_pipeline.pipeline.reports.charts import SPAN, Axes, Series, line_chart
from eupe_pipeline.pipeline.reports.report import Contents, render
from eupe_pipeline.pipeline.reports.run_folder import read_run
from eupe_pipeline.pipeline.reports.run_sections import comparison, named, run_section, run_tiles
from eupe_pipeline.pipeline.reports.runs import compare_runs, list_runs
from eupe_pipeline.student.probes.evaluation_records import write_record

MakeRun = Callable[..., Path]


def side(agreement: float, teachers: tuple[str, ...]) -> dict[str, Any]:
    return {"agreement": agreement, "teachers": {name: {"agreement": agreement + n / 10} for n, name in enumerate(teachers)}}


def measured(folder: Path, *, teachers: tuple[str, ...] = ("timm:vit.dino",), knn: bool = False) -> Path:
    """Three measurements of a run that overfits: held out 0.5, 0.6, 0.55, trained 0.5, 0.7, 0.8."""
    with (folder / "metrics.jsonl").open("a") as file:
        for step, held_out, trained in ((100, 0.5, 0.5), (200, 0.6, 0.7), (300, 0.55, 0.8)):
            table = {
                "held_out": side(held_out, teachers), "trained": side(trained, teachers),
                "gap": {"agreement": trained - held_out}, "images": 20, "seconds": 1.0,
            }  # fmt: skip
            more = {"knn": {"cls": {"ours": 40.0}}} if knn else {}
            file.write(json.dumps({"step": step, "agreement": table, "agreement_average": table, **more}) + "\n")
    return folder


def test_it_is_two_curves_and_their_gap(made_run: MakeRun) -> None:
    ((name, run),) = named([measured(made_run("one"))]).items()
    charts = run_section(name, run)["charts"]
    assert len(charts) == 2
    assert charts[1]["legend"] == [("held-out images", "0.550"), ("trained images", "0.800"), ("gap (trained − held out)", "+0.250")]
    assert 'class="between"' in charts[1]["chart"]
    assert 'class="between"' not in charts[0]["chart"]
    assert run_tiles({name: run})[0] == (
        "0.550", "agreement with the teachers on held-out images", "0.800 on trained images, a gap of +0.250",
    )  # fmt: skip


def test_the_shaded_area_lies_between_the_two_curves() -> None:
    one, other = Series("held out", [(0, 0.0), (10, 0.5)]), Series("trained", [(0, 0.0), (10, 1.0)])
    found = re.search(r'<polygon class="between" points="([^"]*)"', line_chart([one, other], Axes("t"), shaded=True))
    assert found is not None
    points = [tuple(map(float, pair.split(","))) for pair in found[1].split()]
    assert points == [(0.0, SPAN), (SPAN, SPAN / 2), (SPAN, 0.0), (0.0, SPAN)]


def test_each_of_several_teachers_has_a_curve_whatever_its_name(made_run: MakeRun) -> None:
    record = read_run(measured(made_run("one"), teachers=("timm:vit.a", "b")))
    assert [(one.label, one.points[-1][1]) for one in record.agreement_by_teacher()] == [("timm:vit.a", 0.55), ("b", 0.65)]
    assert read_run(measured(made_run("two"))).agreement_by_teacher() == []


def test_it_does_not_stand_among_percentages(made_run: MakeRun) -> None:
    record = read_run(measured(made_run("one"), knn=True))
    assert [one.label for one in record.evaluation_series()] == ["kNN, class token, ours"]


def test_runs_are_compared_by_it(made_run: MakeRun) -> None:
    runs = [measured(made_run("a")), made_run("b")]
    charts = [one["chart"] for one in comparison(runs, named(runs))["charts"]]
    assert any("Held-out agreement of each run" in chart for chart in charts)
    for run in runs:
        (run / "identities.json").write_text('{"targets": {}}')
    listed = list_runs(folder=runs[0].parent)["runs"]
    assert (listed["a"]["agreement"], round(listed["a"]["gap"], 3)) == (0.55, 0.25)
    assert "agreement" not in listed["b"]


def test_figures_of_finished_runs_stand_in_a_comparison_with_their_images(made_run: MakeRun) -> None:
    one, other = made_run("a"), made_run("b")
    assert "evaluations" not in compare_runs(outs=[one, other])
    images = {"dataset": "photos@0123456789ab", "images": 40, "sample": None, "held_out": 0.1}
    write_record(one, "agreement", {"test": images}, {"agreement": 0.75}, 1.0)
    assert compare_runs(outs=[one, other])["evaluations"] == {str(one): {"agreement": ["0.750 (photos, held out)"]}, str(other): {}}
    page = render(Contents([one]))
    assert "0.750" in page
    assert "photos, held out" in page


def test_the_page_draws_it_without_a_script(made_run: MakeRun) -> None:
    page = render(Contents([measured(made_run("one"))]))
    assert 'class="between"' in page
    assert "<script" not in page
    assert "gap (trained − held out)" in page
