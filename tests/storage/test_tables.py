"""Each table of choices has the names that the command line and recipes offer, in their order, and each of its rows is whole."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from eupe_pipeline.storage.core import choices
from eupe_pipeline.storage.features.statistics import NORMALISATIONS, TokenNormalisation
from eupe_pipeline.storage.sources.sources import CONTAINERS
from eupe_pipeline.storage.views.photometric import MODES, PhotometricMode
from eupe_pipeline.storage.views.view_spec import INTERPOLATIONS, VIEW_KINDS, ViewKind, ViewSpec, draw

TABLES: dict[str, tuple[Mapping[str, Any], tuple[str, ...]]] = {
    "photometric modes": (MODES, choices.PHOTOMETRIC_MODES),
    "kinds of views": (VIEW_KINDS, choices.VIEW_KINDS),
    "interpolations": (INTERPOLATIONS, choices.INTERPOLATIONS),
    "normalisations": (NORMALISATIONS, choices.NORMALISATIONS),
    "containers of images": (CONTAINERS, choices.CONTAINERS),
}


@pytest.mark.parametrize("what", TABLES)
def test_a_table_has_the_names_that_are_offered(what: str) -> None:
    table, offered = TABLES[what]
    assert tuple(table) == offered
    assert all(row.name == name for name, row in table.items() if hasattr(row, "_fields"))


@pytest.mark.parametrize("kind", VIEW_KINDS.values(), ids=list(VIEW_KINDS))
def test_a_kind_of_view_names_fields_that_there_are_and_all_that_random_views_depend_on(kind: ViewKind) -> None:
    assert set(kind.fields) <= {one.name for one in dataclasses.fields(ViewSpec)}
    if kind.is_random:
        assert {"seed", "flip_probability", "photometric"} <= set(kind.fields)
    else:
        assert not {"flip_probability", "photometric"} & set(kind.fields)


@pytest.mark.parametrize("kind", VIEW_KINDS.values(), ids=list(VIEW_KINDS))
def test_every_kind_of_view_draws_boxes_inside_any_image_and_is_read_back_from_its_identity(kind: ViewKind) -> None:
    spec = ViewSpec(kind.name, views_per_image=3 if kind.is_random else 1, seed=4 if kind.is_random else 0)
    assert ViewSpec.from_identity(spec.identity()) == spec
    sizes_hw = np.array([(1, 1), (1, 900), (900, 1), (375, 500), (33, 31)], np.int32)
    views = draw(spec, [f"{n}.png" for n in range(len(sizes_hw))], sizes_hw)
    height, width = np.repeat(sizes_hw, spec.views_per_image, axis=0).T
    top, left, crop_h, crop_w = views.crop.T
    assert (views.crop[:, :2] >= 0).all()
    assert (views.crop[:, 2:] >= 1).all()
    assert (top + crop_h <= height).all()
    assert (left + crop_w <= width).all()


@pytest.mark.parametrize("mode", MODES.values(), ids=list(MODES))
def test_views_of_a_photometric_mode_have_distortions_exactly_where_somebody_sees_them(mode: PhotometricMode) -> None:
    spec = ViewSpec(views_per_image=20, photometric=mode.name)
    assert ("distortion" in spec.identity()) == mode.distorts == (mode.seen_by_teacher or mode.seen_by_student)
    assert draw(spec, ["a"], np.array([(60, 80)], np.int32)).photometric.any() == mode.distorts
    assert ViewSpec.from_identity(spec.identity()) == spec


@pytest.mark.parametrize("kind", NORMALISATIONS.values(), ids=list(NORMALISATIONS))
def test_every_normalisation_is_undone_and_known_again_from_what_is_stored(kind: TokenNormalisation) -> None:
    cls, patch = np.random.default_rng(1).normal(2, 3, size=(2, 500, 8)).astype(np.float32)
    sums = kind.measure(8), kind.measure(8)
    for part, samples in zip(sums, (cls, patch), strict=True):
        part.update(samples)
    statistics = kind.freeze(*sums, 500)
    assert (statistics.normalisation, statistics.method) == (kind, kind.method)
    assert type(statistics).from_arrays(statistics.arrays(), 500).normalisation is kind
    np.testing.assert_allclose(statistics.denormalize_cls(statistics.normalize_cls(cls)), cls, atol=1e-4)
    np.testing.assert_allclose(statistics.denormalize_patch(statistics.normalize_patch(patch)), patch, atol=1e-4)
    assert abs(statistics.normalize_patch(patch).std(axis=0).mean() - 1) < 0.05


def test_what_normalisations_record_tells_them_apart_and_the_first_adds_nothing() -> None:
    recorded = [dict(kind.recorded) for kind in NORMALISATIONS.values()]
    assert recorded[0] == {}
    assert len({str(one) for one in recorded}) == len({kind.method for kind in NORMALISATIONS.values()}) == len(NORMALISATIONS)
