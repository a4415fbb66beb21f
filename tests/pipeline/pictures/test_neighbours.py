"""Neighbours are the exact ones, of images that have tokens, and pictures are what the teacher saw."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from eupe_pipeline.pipeline.pictures import neighbours
from eupe_pipeline.pipeline.pictures.neighbours import example_queries, galleries, images_with_tokens, nearest, query_images, seen
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.features.features import FeatureReader
from eupe_pipeline.storage.views.view_spec import render


def silent(event: Mapping[str, Any]) -> None:
    pass


def test_neighbours_are_those_of_a_whole_comparison_in_any_block_size(tiny_store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = tiny_store.features("tiny-teacher")
    tokens = reader.statistics.denormalize_cls(reader.read_cls(np.arange(0, 48, 2)))
    unit = tokens / np.linalg.norm(tokens, axis=1, keepdims=True)
    distance = 1 - unit @ unit.T
    np.fill_diagonal(distance, np.inf)
    queries = np.array([0, 7, 23])
    for block in (5, 24, 16_384):
        monkeypatch.setattr(neighbours, "BLOCK", block)
        images, away = nearest(reader, queries, 4, silent)
        assert (images == np.argsort(distance[queries], 1)[:, :4]).all()
        np.testing.assert_allclose(away, np.sort(distance[queries], 1)[:, :4], atol=1e-6)


def test_failed_images_are_nobodys_neighbours(tiny_store: Any) -> None:
    reader = tiny_store.features("tiny-gaps")
    assert 5 not in images_with_tokens(reader)
    assert 5 not in nearest(reader, np.array([0]), 20, silent)[0]
    with pytest.raises(BadInput, match="has no tokens in tiny-gaps"):
        query_images(reader, [reader.views.dataset.row(5).id])


def test_a_set_that_lacks_a_shard_compares_what_is_there(small_store: tuple[str, FeatureReader]) -> None:
    _, reader = small_store
    assert images_with_tokens(reader).tolist() == list(range(16))


def test_more_neighbours_than_images_are_refused(tiny_store: Any) -> None:
    with pytest.raises(BadInput, match="24 images, too few for 24 neighbours"):
        nearest(tiny_store.features(), np.array([0]), 24, silent)


def test_queries_are_found_by_id_and_an_unknown_id_names_the_nearest(tiny_store: Any) -> None:
    reader = tiny_store.features()
    ids = reader.views.dataset.ids(0, 24)
    assert query_images(reader, [ids[9], ids[2]]).tolist() == [9, 2]
    with pytest.raises(BadInput, match="image in photos@"):
        query_images(reader, ["nothing.png"])


def test_without_a_choice_there_is_a_query_of_each_label(tiny_store: Any) -> None:
    reader = tiny_store.features()
    labels = reader.views.dataset.labels()[example_queries(reader)]
    assert sorted(labels.tolist()) == [0, 1, 2]


def test_a_picture_is_the_recorded_crop(tiny_store: Any) -> None:
    reader = tiny_store.features()
    views = reader.views.read(np.array([6]))
    expected = render(reader.views.dataset.read_image(3), views.crop[0], bool(views.flip[0]), 64, renderer=reader.views.renderer)
    found = seen(reader, 3, 0.25, 64)
    assert (found.image == expected).all()
    row = reader.views.dataset.row(3)
    assert (found.id, found.label, found.distance) == (row.id, reader.views.dataset.label_names[row.label], 0.25)


def test_a_gallery_goes_from_near_to_far(tiny_store: Any) -> None:
    for gallery in galleries(tiny_store.features(), np.array([1, 2]), 5, silent):
        away = [one.distance for one in gallery.neighbours]
        assert away == sorted(away)
        assert len(away) == 5
        assert gallery.query.id not in {one.id for one in gallery.neighbours}
