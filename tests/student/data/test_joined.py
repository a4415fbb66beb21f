"""Datasets numbered one after another: every number finds its own dataset, mixed in any way, and what is stored is read as it lies."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eupe_pipeline.storage.images.indexing import build_index
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.views.view_set import ViewSet
from eupe_pipeline.storage.views.view_spec import StoredPixels, ViewSpec, cut, pixel_digest, resize
from eupe_pipeline.student.data.joined import JoinedTargets, JoinedViews, Numbering
from eupe_pipeline.student.data.targets import CachedTargets
from hypothesis import given
from hypothesis import strategies as st


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5), picks=st.lists(st.integers(0, 1000), max_size=20))
def test_every_number_falls_into_its_own_part(sizes: list[int], picks: list[int]) -> None:
    numbering = Numbering(sizes)
    expected = [(part, local) for part, size in enumerate(sizes) for local in range(size)]
    assert [numbering.locate(number) for number in range(numbering.total)] == expected
    numbers = np.array([pick % numbering.total for pick in picks], np.int64)
    found: dict[int, tuple[int, int]] = {}
    for part, here, local in numbering.split(numbers):
        found |= {int(place): (part, int(value)) for place, value in zip(np.flatnonzero(here), local, strict=True)}
    assert [found[place] for place in range(len(numbers))] == [expected[number] for number in numbers.tolist()]


def test_tokens_views_and_images_of_mixed_rows_are_those_of_their_datasets(tiny_store: Any) -> None:
    readers = [tiny_store.features("tiny-teacher"), tiny_store.features("tiny-teacher")]
    rows = np.array([3, 60, 61, 2, 95], np.int64)  # 48 rows each
    source = JoinedTargets({"a": CachedTargets({"t": readers[0]}), "b": CachedTargets({"t": readers[1]})}, [48, 48])
    memory = source.allocate(5)
    source.fill(rows, memory, 0)
    assert np.array_equal(memory["t/patch"].numpy(), readers[0].read(rows % 48).patch)
    views = JoinedViews([reader.views for reader in readers])
    joined, own = views.read(rows), readers[0].views.read(rows % 48)
    assert all(np.array_equal(one, other) for one, other in zip(list(joined), list(own), strict=True))
    assert len(views.dataset) == 48
    assert views.dataset.row(30) == readers[1].views.dataset.row(6)
    assert np.array_equal(views.dataset.read_image(30), readers[1].views.dataset.read_image(6))
    assert set(source.identities()["t"]["mixed_with"]) == {"b"}


@pytest.fixture
def stored(tiny_store: Any, tmp_path: Path) -> ViewSet:
    store = FeatureStore.create(str(tmp_path / "store"))
    dataset = build_index(store.objects, str(tiny_store.teacher_run.parent / "images"), "photos")
    views = ViewSet.create(store.objects, dataset, ViewSpec(pixels=StoredPixels(16)), images_per_shard=24)
    drawn = views.draw_shard(0)
    crops = [cut(dataset.read_image(row), crop) for row, crop in enumerate(drawn.crop)]
    digests = np.stack([np.frombuffer(pixel_digest(crop), np.uint8) for crop in crops])
    pixels = np.stack([resize(crop, bool(drawn.flip[n]), 16) for n, crop in enumerate(crops)])
    views.commit_shard(0, drawn._replace(digest=digests), {}, pixels)
    return views


def test_stored_pixels_are_used_when_all_datasets_have_them(stored: ViewSet, tiny_store: Any) -> None:
    both = JoinedViews([stored, stored])
    assert both.spec.pixels == StoredPixels(16)
    for rows in (np.array([30, 25, 47], np.int64), np.array([3, 30, 4], np.int64)):
        out = np.zeros((3, 16, 16, 3), np.uint8)
        both.read_pixels(rows, out)
        assert np.array_equal(out, stored.read_pixels(rows % 24))
    assert JoinedViews([stored, tiny_store.features().views]).spec.pixels is None
