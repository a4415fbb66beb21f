"""The bytes on disk are Zarr v3: two other implementations read them to the same values."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
from eupe_pipeline.storage.core.checksums import crc32c
from eupe_pipeline.storage.core.errors import CacheDamaged
from eupe_pipeline.storage.shards.zarr_format import ArraySpec, build_shard, parse_index, parse_small_array, small_array

from ..made_up_store import CLS_DIM, Made, plan, tokens, with_features


def with_tensorstore(folder: Path) -> Any:
    return tensorstore.open({"driver": "zarr3", "kvstore": {"driver": "file", "path": str(folder)}}).result()


@pytest.mark.parametrize("codec", ["fp32", "fp16", "int8", "int4"])
@pytest.mark.parametrize("cls_dim", [CLS_DIM, None])
def test_zarr_python_and_tensorstore_read_every_array_to_our_values(codec: str, cls_dim: int | None, tmp_path: Path) -> None:
    features = plan(tmp_path, images=10, codec=codec, cls_dim=cls_dim).features
    for shard in range(features.shards):
        features.commit_shard(shard, tokens(features, shard), {}, "")
    rows = features.read(np.arange(features.rows))
    group = features.open_zarr()
    ours = {"patch": rows.patch, "patch_scale": rows.scale, "cls": rows.cls}
    assert set(group.array_keys()) == {name for name, values in ours.items() if values is not None}
    for name, values in ours.items():
        if values is not None:
            np.testing.assert_array_equal(group[name][:], values)
            np.testing.assert_array_equal(with_tensorstore(tmp_path / "store/features" / features.key / name).read().result(), values)


def test_both_read_the_views_and_the_statistics(pristine: Made) -> None:
    views = pristine.views.read(np.arange(pristine.views.rows))
    folder = pristine.folder / "views" / pristine.views.key
    assert np.array_equal(with_tensorstore(folder / "crop").read().result(), views.crop)
    assert np.array_equal(with_tensorstore(folder / "flip").read().result()[:, 0], views.flip)
    assert np.array_equal(with_tensorstore(folder / "pixel_digest").read().result(), views.digest)
    statistics = pristine.features.open_zarr()["statistics"]
    assert np.array_equal(statistics["patch_std"][:], pristine.features.statistics.patch_std)


def test_users_of_zarr_find_names_units_and_the_codec(pristine: Made) -> None:
    group = pristine.features.open_zarr()
    assert group.attrs["kind"] == "eupe-pipeline features"
    assert group["patch"].metadata.dimension_names == ("view", "grid_y", "grid_x", "channel")
    assert group["patch"].attrs["codec"] == "int8"
    assert "standard deviations" in group["patch"].attrs["units"]
    assert "patch_scale[…, group]" in group["patch"].attrs["scale"]


def test_a_row_of_a_failed_image_reads_as_nan_elsewhere_and_as_an_error_here(tmp_path: Path) -> None:
    made = with_features(plan(tmp_path, images=4), "fp16", name="gaps")
    failed = made.dataset.ids(0, 4)[1]
    made.features.commit_shard(0, tokens(made.features, 0), {failed: "broken"}, "")
    patch = made.features.open_zarr()["patch"][:]
    assert np.isnan(patch[2:4]).all()
    assert not np.isnan(patch[[0, 1, 4, 5, 6, 7]]).any()
    assert made.features.failed_rows().tolist() == [2, 3]
    for row in (2, 3):
        with pytest.raises(CacheDamaged, match="image failed"):
            made.features.read(np.array([row]))
        with pytest.raises(CacheDamaged, match="image failed"):
            made.features.read_cls(np.array([row]))
    made.features.read(np.array([0, 1, 4, 7]))


def spec(chunk_rows: int = 1, rows: int = 6) -> ArraySpec:
    return ArraySpec("x", (rows, 3), np.dtype(np.float32), 4, chunk_rows, ("row", "channel"))


def test_a_shard_is_chunks_then_checksums_then_the_index() -> None:
    rows = np.arange(9, dtype=np.float32).reshape(3, 3)
    built = build_shard(spec(), rows, np.array([True, False, True]))
    raw = b"".join(built)
    assert built.size == len(raw) == 2 * 16 + 4 * 16 + 4
    assert raw[:12] == rows[0].tobytes()
    assert raw[16:28] == rows[2].tobytes()
    index = parse_index(spec(), raw[-68:], len(raw), "here")
    assert index.tolist() == [[0, 16], [2**64 - 1] * 2, [16, 16], [2**64 - 1] * 2]
    assert built.missing.tolist() == [False, True, False, True]


def test_rows_that_do_not_fit_the_array_are_refused() -> None:
    for rows in (np.zeros((3, 3)), np.zeros((3, 2), np.float32), np.zeros((5, 3), np.float32)):
        with pytest.raises(ValueError, match="do not fit"):
            build_shard(spec(), rows, np.ones(len(rows), np.bool_))


@pytest.mark.parametrize("change", [(0, 8), (0, 2**63), (1, 15), (1, 17), (3, 10**6)])
def test_an_index_that_points_elsewhere_is_damage(change: tuple[int, int]) -> None:
    built = build_shard(spec(), np.ones((4, 3), np.float32), np.ones(4, np.bool_))
    raw = b"".join(built)
    index = np.frombuffer(raw[-68:-4], "<u8").copy()
    index[change[0]] = change[1]
    tail = index.tobytes() + crc32c(index.tobytes()).to_bytes(4, "little")
    if change == (0, 8):  # inside the object, but not a chunk's place: the row's own checksum finds it
        parse_index(spec(), tail, len(raw), "here")
        return
    with pytest.raises(CacheDamaged, match="points outside"):
        parse_index(spec(), tail, len(raw), "here")


def test_metadata_is_json_that_names_the_format_and_the_fill_value() -> None:
    described = json.loads(spec().metadata())
    assert (described["zarr_format"], described["fill_value"], described["shape"]) == (3, "NaN", [6, 3])
    assert [codec["name"] for codec in described["codecs"]] == ["sharding_indexed"]


def test_absurd_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="beyond this format"):
        ArraySpec("x", (1, 10**6, 10**6), np.dtype(np.float32), 1, 1, ("a", "b", "c"))
    with pytest.raises(ValueError, match="beyond this format"):
        spec(chunk_rows=0)


def test_a_small_array_comes_back_and_its_damage_is_found() -> None:
    values = np.array([1.5, -2, 3e38], np.float32)
    data = small_array("s", values, ("channel",), {})["s/c.0"]
    assert np.array_equal(parse_small_array(data, "s"), values)
    for broken in (b"", data[:-1], data[:5] + b"\x01" + data[6:]):
        with pytest.raises(CacheDamaged, match="checksum"):
            parse_small_array(broken, "s")
