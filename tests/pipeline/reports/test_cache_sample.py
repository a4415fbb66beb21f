"""A look into a cache gives the teacher's own norms, finds dead channels, and shows what was recorded."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from eupe_pipeline.pipeline.reports.cache_sample import TokenFigures, figures, sample_rows, shown_images
from eupe_pipeline.storage.core.errors import CacheMismatch
from eupe_pipeline.storage.features.features import FeatureReader
from eupe_pipeline.storage.views.view_spec import cut, resize


def silent(event: Mapping[str, Any]) -> None:
    pass


def test_norms_are_of_the_teachers_own_tokens_and_normalised_channels_have_mean_0_and_deviation_1(tiny_store: Any) -> None:
    reader = tiny_store.features()
    rows = np.arange(48)
    found = figures(reader, rows, silent)
    own = reader.statistics.denormalize_patch(reader.decode(reader.read(rows))).reshape(-1, reader.patch_dim)
    np.testing.assert_allclose(found["patch"].norms, np.linalg.norm(own, axis=1), rtol=1e-4)
    for kind in ("patch", "cls"):  # the statistics were measured on these very rows
        np.testing.assert_allclose(found[kind].mean, 0, atol=1e-3)
        np.testing.assert_allclose(found[kind].std, 1, atol=1e-3)
    assert len(found["cls"].norms) == 48


def test_a_channel_at_the_floor_is_dead_and_one_that_hardly_moves_is_silent() -> None:
    frozen, sampled = np.array([1.0, 1e-3, 0.5, 2.0], np.float32), np.array([1.0, 0.0, 0.001, 0.9], np.float32)
    found = TokenFigures(np.ones(3, np.float32), frozen, np.zeros(4, np.float32), sampled)
    assert found.dead == [1]
    assert found.silent == [2]


def test_the_sample_is_spread_over_the_rows_that_have_tokens(tiny_store: Any, small_store: tuple[str, FeatureReader]) -> None:
    assert sample_rows(tiny_store.features(), 5).tolist() == [0, 11, 23, 35, 47]
    gaps = tiny_store.features("tiny-gaps")
    assert sample_rows(gaps).tolist() == [row for row in range(48) if row not in (10, 11)]
    assert sample_rows(small_store[1]).max() == 31  # its last shard is missing


def test_a_shown_view_is_the_recorded_crop_as_the_teacher_saw_it(tiny_store: Any) -> None:
    reader = tiny_store.features()
    notes: list[str] = []
    shown = shown_images(reader, notes)
    assert notes == []
    assert [len(one.views) for one in shown] == [2, 2, 2]
    first = shown[0]
    index = next(n for n in range(24) if reader.views.dataset.row(n).id == first.id)
    views = reader.views.read(np.array([2 * index]))
    crop = views.crop[0]
    assert first.views[0].image is not None
    expected = resize(
        cut(reader.views.dataset.read_image(index), crop), bool(views.flip[0]), int(max(crop[2:])), renderer=reader.views.renderer
    )
    assert (first.views[0].image == expected).all()
    top, left, height, width = first.views[0].crop
    assert (round(top * first.height), round(left * first.width)) == (crop[0], crop[1])
    assert (round(height * first.height), round(width * first.width)) == (crop[2], crop[3])
    assert first.views[0].tokens is not None
    assert first.views[0].tokens.shape == (*reader.grid, 3)


def test_without_its_photos_a_cache_still_shows_crops_and_tokens_and_says_why_once(
    tiny_store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, notes = tiny_store.features(), list[str]()

    def gone(dataset: Any, index: int) -> Any:
        raise CacheMismatch("image 3 is not there any more")

    monkeypatch.setattr(type(reader.views.dataset), "read_image", gone)
    shown = shown_images(reader, notes)
    assert [(one.photo, one.views[0].image) for one in shown] == [(None, None)] * 3
    assert all(one.views[0].tokens is not None for one in shown)
    assert notes == ["Views are shown without their photos: image 3 is not there any more"]
