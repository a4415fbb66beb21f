"""Curves are drawn truly, inside their frame, whatever the figures."""

import math
import re
from xml.etree import ElementTree

import pytest
from eupe_pipeline.pipeline.reports.charts import MOST_POINTS, SPAN, Axes, Series, binned, histogram, label, line_chart, ticks
from hypothesis import given
from hypothesis import strategies as st

FINITE = st.floats(-1e6, 1e6)
AXES = Axes("t")


def polyline(svg: str) -> list[tuple[float, float]]:
    found = re.search(r'points="([^"]*)"', svg)
    assert found is not None
    return [(float(x), float(y)) for x, _, y in (pair.partition(",") for pair in found[1].split())]


@given(st.lists(FINITE, min_size=1, max_size=50))
def test_every_point_lies_inside_the_frame(values: list[float]) -> None:
    svg = line_chart([Series("loss", list(enumerate(values)))], AXES)
    assert all(-0.1 <= x <= SPAN + 0.1 and -0.1 <= y <= SPAN + 0.1 for x, y in polyline(svg))


@given(st.lists(FINITE, min_size=1, max_size=50), st.text(max_size=12))
def test_a_chart_is_well_formed_whatever_its_names(values: list[float], name: str) -> None:
    printable = "".join(one for one in name if one.isprintable())
    ElementTree.fromstring(line_chart([Series(printable, list(enumerate(values)))], Axes(printable, printable, printable)))


def test_a_falling_curve_falls_on_the_page() -> None:
    points = polyline(line_chart([Series("loss", [(0, 4.0), (10, 2.0), (20, 1.0)])], AXES))
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    assert [y for _, y in points] == sorted(y for _, y in points)


def test_the_axis_of_a_loss_starts_at_zero() -> None:
    assert ">0</span>" in line_chart([Series("loss", [(0, 4.0), (10, 3.0)])], AXES)


def test_a_long_curve_is_averaged_and_keeps_its_level() -> None:
    points = [(float(n), 1.0 if n % 2 else 3.0) for n in range(10_000)]
    short = binned(points)
    assert len(short) <= MOST_POINTS
    assert all(y == pytest.approx(2.0, abs=0.05) for _, y in short)


def test_values_that_are_not_finite_leave_a_gap() -> None:
    assert binned([(0, 1.0), (1, math.nan), (2, math.inf), (3, 2.0)]) == [(0, 1.0), (3, 2.0)]
    assert line_chart([Series("loss", [(0, math.nan)])], AXES) == ""


@given(st.floats(-1e5, 1e5), st.floats(1e-3, 1e5))
def test_ticks_are_few_round_and_inside(low: float, size: float) -> None:
    found = ticks(low, low + size)
    assert 2 <= len(found) <= 7
    assert all(low - 1e-6 * size <= one <= low + size * (1 + 1e-6) for one in found)


@pytest.mark.parametrize(("value", "text"), [(0.25, "0.25"), (3.0, "3"), (9000.0, "9000"), (390_000.0, "390k")])
def test_axis_labels_are_short(value: float, text: str) -> None:
    assert label(value) == text


def test_the_last_value_is_the_mean_of_the_curves_end() -> None:
    assert Series("x", [(float(n), float(n)) for n in range(100)]).last == 98.5
    assert Series("x", [(0.0, 7.0)]).last == 7.0


def test_each_curve_has_its_own_colour_and_its_name_as_tooltip() -> None:
    svg = line_chart([Series("a & b", [(0, 1.0), (1, 2.0)]), Series("c", [(0, 1.0), (1, 2.0)])], AXES)
    assert "var(--s1)" in svg
    assert "var(--s2)" in svg
    assert "<title>a &amp; b</title>" in svg


def test_the_highest_and_the_lowest_line_are_labelled() -> None:
    html = line_chart([Series("kNN", [(0, 23.7), (10, 28.7)])], Axes("t", from_zero=False))
    labels = [float(text) for text in re.findall(r'class="y"[^>]*>([^<]*)<', html)]
    assert min(labels) <= 23.7
    assert max(labels) >= 28.7
    assert [float(share) for share in re.findall(r'class="y" style="bottom:([\d.]+)%', html)][:: len(labels) - 1] == [0, 100]


def test_few_points_are_drawn_each_and_of_many_only_the_last() -> None:
    assert line_chart([Series("x", [(n, float(n)) for n in range(5)])], AXES).count('class="dot"') == 5
    assert line_chart([Series("x", [(n, float(n)) for n in range(50)])], AXES).count('class="dot"') == 1


def test_an_end_that_must_be_seen_is_seen() -> None:
    assert ">5</span>" in line_chart([Series("wait", [(0, 0.1), (9, 0.2)])], Axes("t", y_top=5.0))


def test_columns_are_as_high_as_their_counts() -> None:
    html = histogram([1, 4, 2], [0.0, 1.0, 2.0, 3.0], AXES)
    heights = [float(one) for one in re.findall(r'height="([\d.]+)"', html)]
    assert heights == pytest.approx([SPAN / 4, SPAN, SPAN / 2])
    assert "<title>1 to 2: 4</title>" in html
    assert histogram([0, 0], [0.0, 1.0, 2.0], AXES) == ""
