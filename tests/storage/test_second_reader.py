"""docs/store-format.md is enough: a reader written from it alone reads what ours reads, and finds damage where ours does."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from eupe_pipeline.storage.store import FeatureStore

from .made_up_store import Made, with_features
from .second_reader import own_tokens, read_set, redraw, redraw_positions
from .test_golden_store import GOLDEN

STORE = GOLDEN / "written"


@pytest.mark.parametrize("key", FeatureStore.open(str(STORE)).list_features())
def test_a_reader_written_from_the_document_reads_what_ours_reads(key: str) -> None:
    ours, theirs = FeatureStore.open(str(STORE)).features(key), read_set(STORE, key)
    assert theirs.failed == ours.failed_rows().tolist()
    rows = np.setdiff1d(np.arange(ours.rows), theirs.failed)
    stored = ours.read(rows)
    np.testing.assert_allclose(theirs.tokens["patch"][rows], ours.decode(stored), rtol=1e-6, atol=1e-6)
    assert ("cls" in theirs.tokens) == (stored.cls is not None)
    assert ("patch_position" in theirs.tokens) == (stored.position is not None)
    if stored.cls is not None:
        np.testing.assert_array_equal(theirs.tokens["cls"][rows], stored.cls)
    if stored.position is not None:
        np.testing.assert_array_equal(theirs.tokens["patch_position"][rows], stored.position)
    views = ours.views.read(np.arange(ours.rows))
    for name, wanted in (
        ("crop", views.crop),
        ("flip", views.flip[:, None]),
        ("photometric", views.photometric),
        ("pixel_digest", views.digest),
    ):
        np.testing.assert_array_equal(theirs.views[name], wanted)
    denormalised = ours.statistics.denormalize_patch(ours.decode(stored))
    np.testing.assert_allclose(own_tokens(theirs, theirs.tokens["patch"][rows]), denormalised, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("key", FeatureStore.open(str(STORE)).list_features())
def test_views_and_places_follow_from_the_document(key: str) -> None:
    found, drawn = read_set(STORE, key), 0
    views, layout = found.view_identity["views"], found.identity["layout"]
    for image, image_id in enumerate(found.ids):
        for k in range(views["views_per_image"]):
            row = image * views["views_per_image"] + k
            crop, flip = redraw(views, image_id, k, *found.sizes_hw[image])
            assert bool(found.views["flip"][row, 0]) == flip
            if crop is not None:
                assert tuple(found.views["crop"][row].tolist()) == crop
                drawn += 1
            if layout["tokens"] == "sampled" and row not in found.failed:
                assert found.tokens["patch_position"][row].tolist() == redraw_positions(views, layout, image_id, k)
    assert drawn


def test_it_finds_a_flipped_bit_in_any_object_and_record(copied: Callable[[], Made]) -> None:
    made = copied()
    read_set(made.folder, made.features.key)
    group = made.folder / "features" / made.features.key
    victims = [path for path in sorted(group.rglob("*")) if path.name.startswith(("c.", "00")) or path.name == "identity.json"]
    for path in victims:
        good = path.read_bytes()
        path.write_bytes(good[:40] + bytes([good[40] ^ 4]) + good[41:] if len(good) > 40 else bytes([good[0] ^ 4]) + good[1:])
        with pytest.raises((AssertionError, ValueError)):
            read_set(made.folder, made.features.key)
        path.write_bytes(good)


def test_a_wide_int8_set_has_a_scale_for_128_channels(tmp_path: Path, copied: Callable[[], Made], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.storage.made_up_store.PATCH_DIM", 256, raising=True)
    made = with_features(copied(), "int8", name="wide")
    rng = np.random.default_rng(0)
    for shard in range(made.features.shards):
        first, last = made.features.group.shard_span(shard)
        tokens = made.features.encode(
            rng.normal(size=(last - first, 12)).astype(np.float32), rng.normal(size=(last - first, 2, 3, 256)).astype(np.float32)
        )
        made.features.commit_shard(shard, tokens, {}, "")
    shutil.copytree(made.folder, tmp_path / "elsewhere")
    found = read_set(tmp_path / "elsewhere", made.features.key)
    np.testing.assert_allclose(found.tokens["patch"], made.features.decode(made.features.read(range(40))), rtol=1e-6, atol=1e-6)
