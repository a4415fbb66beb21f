"""Intermediate layers in a store of made-up tokens: their arrays, statistics and identity; sets without layers are as they were."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eupe_pipeline.storage.core.errors import BadInput, CacheDamaged
from eupe_pipeline.storage.features.codec import CODECS
from eupe_pipeline.storage.features.features import FeatureLayout, FeatureReader, features_identity
from eupe_pipeline.storage.features.layers import checked_layers, layer_of_array, layer_target, split_target
from eupe_pipeline.storage.features.phis import Covariance
from eupe_pipeline.storage.features.sampling import take_positions
from eupe_pipeline.storage.features.statistics import Moments, Statistics
from eupe_pipeline.storage.store import FeatureStore
from numpy.typing import NDArray

from ..made_up_store import CLS_DIM, GRID, PATCH_DIM, Made, drawn_with_digests, plan, tokens
from ..second_reader import read_set

LAYERS = (4, 11)


def of_layers(rows: int, shard: int = 0) -> dict[int, NDArray[np.float32]]:
    random = np.random.default_rng([9, shard])
    return {layer: random.normal(size=(rows, *GRID, PATCH_DIM)).astype(np.float32) for layer in LAYERS}


def statistics(factor: float = 1.0) -> Statistics:
    values = np.linspace(0.5, 1.5, PATCH_DIM, dtype=np.float32)
    cls = np.linspace(0.5, 1.5, CLS_DIM, dtype=np.float32)
    layers = {layer: Statistics(None, None, values * layer, values * factor, 8) for layer in LAYERS}
    return Statistics(cls, cls, values, values, 8, layers=layers)


def with_layers(made: Made, codec: str, tokens_per_view: int | None = None) -> Made:
    """The same store with a set that has layers, all shards committed."""
    layout = FeatureLayout(CLS_DIM, PATCH_DIM, GRID, codec, tokens_per_view, None, LAYERS)
    identity = features_identity({"architecture": "made up", "weights_sha256": "0" * 64}, made.views, statistics(), {}, layout)
    reader = FeatureReader.create(made.store.objects, "layered", made.views, identity, statistics())
    for shard in range(made.views.shards):
        if made.views.read_shard(shard) is None:
            made.views.commit_shard(shard, drawn_with_digests(made.views, shard), {})
        record = made.views.group.record(shard)
        assert record is not None
        final, positions = tokens(reader, shard), reader.draw_positions(shard)
        layers = of_layers(len(final.patch), shard)
        kept: Mapping[int, Any] = {
            layer: values if positions is None else take_positions(values, positions) for layer, values in layers.items()
        }
        reader.commit_shard(shard, final, {}, record.digest, reader.encode_layers(kept))
    return made._replace(features=made.store.features(reader.key))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("tokens_per_view", [None, 4])
def test_layers_come_back_as_the_codec_stores_them_beside_the_final_tokens(tmp_path: Path, codec: str, tokens_per_view: int | None) -> None:
    made = with_layers(plan(tmp_path, images=6), codec, tokens_per_view)
    reader, rows = made.features, np.array([11, 0, 7, 7])
    found, final = reader.read_layers(rows, LAYERS), reader.read(rows)
    whole = {layer: np.concatenate([of_layers(span[1] - span[0], shard)[layer] for shard, span in enumerate(((0, 8), (8, 12)))])
             for layer in LAYERS}  # fmt: skip
    for layer, values in whole.items():
        wanted = values[rows] if final.position is None else take_positions(values[rows], final.position)
        np.testing.assert_array_equal(reader.decode_layer(found[layer]), CODECS[codec].decode(*CODECS[codec].encode(wanted)))
    assert list(reader.read_layers(rows, (11,))) == [11]
    row_bytes = sum(spec.row_bytes for spec in reader.group.specs.values())
    assert row_bytes == reader.layout.view_bytes
    stored = sum(path.stat().st_size for path in (made.folder / "features" / reader.key).rglob("c.*") if "statistics" not in path.parts)
    assert stored == reader.stored_bytes()
    assert row_bytes * reader.rows <= stored < 1.25 * row_bytes * reader.rows + 4096


@pytest.mark.parametrize("codec", ["int8", "fp32"])
def test_a_reader_written_from_the_document_reads_the_same(tmp_path: Path, codec: str) -> None:
    made = with_layers(plan(tmp_path, images=4), codec, 3)
    theirs, rows = read_set(made.folder, made.features.key), np.arange(8)
    ours = made.features.read_layers(rows, LAYERS)
    for layer in LAYERS:
        np.testing.assert_allclose(theirs.tokens[f"patch.{layer}"], made.features.decode_layer(ours[layer]), rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(theirs.statistics[f"patch.{layer}_std"], made.features.statistics.layers[layer].patch_std)


def test_any_zarr_client_reads_a_layer_by_its_name(tmp_path: Path) -> None:
    made = with_layers(plan(tmp_path, images=4), "int8")
    group = made.features.open_zarr()
    found = made.features.read_layers(range(8), (4,))[4]
    np.testing.assert_array_equal(group["patch.4"][:], found.codes)
    np.testing.assert_array_equal(group["patch.4_scale"][:], found.scale)
    assert group["patch.4"].attrs["long_name"] == "patch tokens of block 4, normalised"
    assert "patch.4 = patch.4_scale[" in group["patch.4"].attrs["scale"]
    np.testing.assert_array_equal(group["statistics/patch.4_mean"][:], made.features.statistics.layers[4].patch_mean)


def test_a_set_without_layers_has_the_identity_that_it_always_had() -> None:
    layout = FeatureLayout(12, 64, (2, 3), "int8")
    assert layout.identity() == {"cls_dim": 12, "patch_dim": 64, "grid": [2, 3], "codec": "int8", "tokens": "all"}
    layered = replace(layout, layers=LAYERS)
    assert layered.identity() == {**layout.identity(), "layers": [4, 11], "layers_norm": "the model's final norm"}
    assert FeatureLayout.from_identity(layered.identity()) == layered
    assert layered.view_bytes > layout.view_bytes
    for change in ({"layers": [11, 4]}, {"layers": [4, 4]}, {"layers": [0]}, {"layers_norm": "none"}):
        with pytest.raises(BadInput if "layers" in change else ValueError, match=r"."):
            FeatureLayout.from_identity({**layered.identity(), **change})


def test_statistics_of_the_final_tokens_keep_their_digest_beside_those_of_layers() -> None:
    layered = statistics()
    plain = layered.only(())
    assert plain.digest == layered.digest
    assert plain.described() == {"method": "mean and std", "digest": plain.digest, "count": 8}
    assert layered.described()["layers"] == {str(layer): layered.layers[layer].digest for layer in LAYERS}
    again = Statistics.from_arrays(layered.arrays(), 8)
    assert again.are_those_of(layered.described())
    assert not again.are_those_of(plain.described())
    assert not again.are_those_of(statistics(factor=2.0).described())
    assert list(layered.only((11,)).layers) == [11]


def test_phi_s_has_a_matrix_for_each_layer() -> None:
    random = np.random.default_rng(1)
    measures = [Covariance(8), Covariance(8)]
    for measure in measures:
        measure.update(random.normal(size=(64, 8)) @ random.normal(size=(8, 8)))
    layered = replace(Statistics.from_covariances(None, measures[0], 64), layers={3: Statistics.from_covariances(None, measures[1], 64)})
    again = Statistics.from_arrays(layered.arrays(), 64)
    values = random.normal(size=(5, 8)).astype(np.float32)
    np.testing.assert_array_equal(again.layers[3].normalize_patch(values), layered.layers[3].normalize_patch(values))
    assert again.layers[3].method == "PHI-S"
    moments = Moments(8)
    moments.update(layered.layers[3].normalize_patch((random.normal(size=(9, 8))).astype(np.float32)))
    assert moments.count == 9


def test_a_layer_that_is_not_stored_and_tokens_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    made = with_layers(plan(tmp_path, images=4), "fp16")
    with pytest.raises(BadInput, match=r"stores no tokens of block 7; its layers: 4, 11"):
        made.features.read_layers([0], (4, 7))
    layers = of_layers(8)
    layers[11][3, 0, 0, 0] = np.inf
    with pytest.raises(BadInput, match=r"its patch\.11 is not finite"):
        made.features.commit_shard(0, tokens(made.features, 0), {}, "", made.features.encode_layers(layers))


def test_statistics_of_another_layer_are_damage(tmp_path: Path) -> None:
    made = with_layers(plan(tmp_path, images=4), "fp32")
    folder = made.folder / "features" / made.features.key / "statistics"
    ours = folder / "patch.4_mean" / "c.0"
    ours.write_bytes((folder / "patch.11_mean" / "c.0").read_bytes())
    with pytest.raises(CacheDamaged, match="are not those that the identity names"):
        FeatureStore.open(made.store.url).features("layered")


def test_names_of_arrays_and_targets() -> None:
    names = ["patch", "patch.4", "patch.4_scale", "patch_scale", "cls", "patch.12_mean", "cls_mean"]
    assert [layer_of_array(name) for name in names] == [None, 4, 4, None, None, 12, None]
    assert split_target(layer_target("dinov3-h+", 12)) == ("dinov3-h+", 12)
    assert split_target("dinov3-h+") == ("dinov3-h+", None)


@pytest.mark.parametrize(("layers", "text"), [
    ((4, 4), "layer 4 is named twice"), ((0,), "counted from 1 to its depth, got 0"), ((-1,), "got -1"), (("4",), "got '4'"),
    ((True,), "got True"), ("4,8", "list of numbers"), (4, "list of numbers"),
])  # fmt: skip
def test_layers_that_are_no_blocks_are_refused(layers: Any, text: str) -> None:
    with pytest.raises(BadInput, match=text):
        checked_layers(layers)


def test_layers_rise_in_whatever_order_they_are_given() -> None:
    assert checked_layers((12, 4, 8)) == (4, 8, 12)
