"""Target sources: cached and live targets are the same tokens, whatever the codec allows."""

from typing import Any

import numpy as np
import pytest
import torch
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.features.statistics import Statistics
from eupe_pipeline.storage.views.view_spec import render
from eupe_pipeline.student.data.targets import CachedTargets, LiveTargets
from eupe_pipeline.teachers.encoders.tokens import Tokens

ROWS = np.array([3, 40, 17, 8])


def cached(tiny: Any, name: str) -> Tokens:
    source = CachedTargets({"t": tiny.features(name)})
    memory = source.allocate(len(ROWS))
    source.fill(ROWS[:1], memory, 0)
    source.fill(ROWS[1:], memory, 1)
    found = source.resolve(memory)["t"]
    assert isinstance(found, Tokens)
    return found


def live(tiny: Any, forward_batch: int | None) -> Tokens:
    reader = tiny.features()
    source = LiveTargets({"t": tiny.teacher}, {"t": reader.statistics}, forward_batch=forward_batch)
    (rendering,) = source.renderings(0)
    views = reader.views.read(ROWS)
    images = [reader.views.dataset.read_image(row // 2) for row in ROWS.tolist()]
    pixels = [
        render(image, views.crop[n], bool(views.flip[n]), rendering.size_px, rendering.interpolation) for n, image in enumerate(images)
    ]
    return source.resolve({"pixels/t": torch.from_numpy(np.stack(pixels))})["t"]


def test_fp32_cached_targets_are_bit_equal_to_live_ones(tiny_store: Any) -> None:
    stored, computed = cached(tiny_store, "tiny-teacher"), live(tiny_store, 1)
    assert stored.cls_BD is not None
    assert computed.cls_BD is not None
    assert torch.equal(stored.cls_BD, computed.cls_BD)
    assert torch.equal(stored.patch_BHWD, computed.patch_BHWD)


def test_int8_targets_keep_the_direction(tiny_store: Any) -> None:
    stored, computed = cached(tiny_store, "tiny-int8"), live(tiny_store, None)
    assert torch.nn.functional.cosine_similarity(stored.patch_BHWD, computed.patch_BHWD, dim=-1).min() > 0.9999


def test_dequantisation_equals_the_stores_own_decoding(tiny_store: Any) -> None:
    reader = tiny_store.features("tiny-int8")
    assert np.array_equal(cached(tiny_store, "tiny-int8").patch_BHWD.numpy(), reader.decode(reader.read(ROWS)))


def test_specs_and_identities_name_what_the_targets_are(tiny_store: Any) -> None:
    reader = tiny_store.features()
    source = CachedTargets({"t": reader})
    assert source.specs["t"].grid == (2, 2)
    assert source.specs["t"].patch_dim == 48
    assert source.identities()["t"]["features"] == reader.key
    assert list(source.renderings(0)) == []


def test_live_sizes_are_drawn_by_step_and_refused_off_the_stride(tiny_store: Any) -> None:
    statistics = {"t": tiny_store.features().statistics}
    source = LiveTargets({"t": tiny_store.teacher}, statistics, sizes_px=(16, 24, 32), seed=1)
    drawn = [source.renderings(step)[0].size_px for step in range(40)]
    assert set(drawn) == {16, 24, 32}
    assert drawn == [source.renderings(step)[0].size_px for step in range(40)]
    with pytest.raises(BadInput, match="multiples of 8 px"):
        LiveTargets({"t": tiny_store.teacher}, statistics, sizes_px=(20,))


def test_statistics_of_another_width_are_refused(tiny_store: Any) -> None:
    narrow = Statistics(None, None, np.zeros(4, np.float32), np.ones(4, np.float32), 8)
    with pytest.raises(BadInput, match="statistics of this teacher"):
        LiveTargets({"t": tiny_store.teacher}, {"t": narrow})
