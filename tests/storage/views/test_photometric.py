"""Distortions are numbers that follow from (seed, image id, k), lie where the recipe says, and are zero where nothing happens."""

from typing import Any

import numpy as np
import pytest
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.views.photometric import COLUMNS, STORED_COLUMNS, UNITS, WORDS, Distortion
from eupe_pipeline.storage.views.view_spec import ViewSpec, draw
from hypothesis import given
from hypothesis import strategies as st

IDS = [f"image{n}" for n in range(2000)]
SIZES = np.full((2000, 2), 50, np.int32)
SAME = ViewSpec(seed=3, photometric="teacher_same")


def test_shares_and_ranges_are_the_recipes() -> None:
    drawn = draw(SAME, IDS, SIZES).photometric
    used = (drawn != 0).mean(axis=0)
    np.testing.assert_allclose(used[:6], [0.8, 0.8, 0.8, 0.8, 0.5, 0.2], atol=0.04)
    assert not drawn[:, 6:].any()
    for column, largest in enumerate((0.4, 0.4, 0.2, 0.1)):
        assert 0.95 * largest < np.abs(drawn[:, column]).max() <= np.float32(largest)
        assert abs(drawn[:, column].mean()) < 0.05 * largest
    blur = drawn[drawn[:, 4] > 0, 4]
    assert np.float32(0.1) <= blur.min() < 0.15
    assert 1.95 < blur.max() <= 2.0
    assert set(drawn[:, 5].tolist()) == {0.0, 128.0}


def test_crops_and_flips_are_those_of_undistorted_views() -> None:
    plain, distorted = draw(ViewSpec(seed=3), IDS, SIZES), draw(SAME, IDS, SIZES)
    np.testing.assert_array_equal(plain.crop, distorted.crop)
    np.testing.assert_array_equal(plain.flip, distorted.flip)
    assert not plain.photometric.any()


@given(st.lists(st.integers(0, 1999), min_size=1, max_size=20))
def test_any_subset_in_any_order_gives_the_same_numbers(chosen: list[int]) -> None:
    whole = [draw(SAME, [IDS[n]], SIZES[:1]).photometric[0].tolist() for n in chosen]
    assert draw(SAME, [IDS[n] for n in chosen], SIZES[: len(chosen)]).photometric.tolist() == whole


def test_both_modes_draw_alike_and_are_different_views() -> None:
    student = ViewSpec(seed=3, photometric="student_only")
    np.testing.assert_array_equal(draw(student, IDS[:50], SIZES[:50]).photometric, draw(SAME, IDS[:50], SIZES[:50]).photometric)
    assert student.identity() != SAME.identity()


@pytest.mark.parametrize("spec", [ViewSpec(seed=3), SAME, ViewSpec(photometric="student_only", distortion=Distortion(blur_sigma=(1, 3)))])
def test_an_identity_gives_its_spec_back(spec: ViewSpec) -> None:
    assert ViewSpec.from_identity(spec.identity()) == spec


def test_undistorted_views_say_nothing_of_distortion() -> None:
    assert "distortion" not in ViewSpec().identity()


@given(st.lists(st.floats(0, 1, exclude_max=True), min_size=WORDS, max_size=WORDS))
def test_every_drawn_row_is_finite_and_fits(uniforms: list[float]) -> None:
    row = Distortion().draw(uniforms)
    assert len(row) == STORED_COLUMNS
    assert np.isfinite(row).all()
    assert all(abs(value) <= limit for value, limit in zip(row, (0.4, 0.4, 0.2, 0.1, 2.0, 128, 0, 0), strict=True))


def test_a_certain_and_an_impossible_distortion() -> None:
    never = Distortion(jitter_probability=0, blur_probability=0, solarize_probability=0)
    always = Distortion(jitter_probability=1, blur_probability=1, solarize_probability=1, solarize_threshold=256)
    assert never.draw([0.0] * WORDS) == [0.0] * STORED_COLUMNS
    assert always.draw([0.5] * WORDS) == [0.0, 0.0, 0.0, 0.0, 1.05, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "wrong",
    [
        {"jitter": (0.4, 0.4, 0.2)},
        {"jitter": (0.4, 0.4, 0.2, 0.6)},
        {"jitter": (-0.1, 0.4, 0.2, 0.1)},
        {"blur_sigma": (0.0, 2.0)},
        {"blur_sigma": (2.0, 1.0)},
        {"blur_probability": 1.1},
        {"solarize_threshold": 257},
    ],
)
def test_values_outside_their_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        Distortion(**wrong)


def test_unknown_modes_and_distorted_centre_views_are_refused() -> None:
    with pytest.raises(BadInput, match="teacher_same"):
        ViewSpec(photometric="teacher")
    with pytest.raises(BadInput, match="never distorted"):
        ViewSpec(kind="center", photometric="teacher_same")


def test_every_column_has_a_unit() -> None:
    assert tuple(UNITS) == COLUMNS
