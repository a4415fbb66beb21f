"""Layouts are values of the identity; each array tells its names, axes, units and scale to people who come through Zarr."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from eupe_pipeline.storage.core.errors import BadInput, CacheDamaged
from eupe_pipeline.storage.features.codec import CODECS
from eupe_pipeline.storage.features.features import FeatureReader
from eupe_pipeline.storage.features.layout import RESAMPLING, SAMPLED_IN, FeatureLayout
from eupe_pipeline.storage.features.phis import Covariance
from eupe_pipeline.storage.features.statistics import Statistics
from eupe_pipeline.storage.views.view_set import ViewSet
from eupe_pipeline.storage.views.view_spec import StoredPixels, ViewSpec

from ..made_up_store import Made, build, commit, plan, with_features

LAYOUTS = [
    FeatureLayout(12, 64, (2, 3), "int8"),
    FeatureLayout(None, 64, (16, 16), "fp16", 64),
    FeatureLayout(12, 64, (16, 16), "int4", None, (32, 37)),
    FeatureLayout(12, 64, (16, 32), "fp32", 512, (32, 32)),
    FeatureLayout(12, 64, (2, 3), "int8", 4, in_image=True),
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_comes_back_from_its_identity(layout: FeatureLayout) -> None:
    assert FeatureLayout.from_identity(layout.identity()) == layout


def test_the_whole_grid_s_identity_is_what_it_always_was_and_less_is_named() -> None:
    assert LAYOUTS[0].identity() == {"cls_dim": 12, "patch_dim": 64, "grid": [2, 3], "codec": "int8", "tokens": "all"}
    assert LAYOUTS[3].identity() == {
        "cls_dim": 12,
        "patch_dim": 64,
        "grid": [16, 32],
        "codec": "fp32",
        "tokens": "sampled",
        "tokens_per_view": 512,
        "resampled_from": [32, 32],
        "resampling": RESAMPLING,
    }
    sampled = {**LAYOUTS[0].identity(), "tokens": "sampled", "tokens_per_view": 4}
    assert LAYOUTS[4].identity() == {**sampled, "sampled_in": "cells with any of the image"}
    assert not FeatureLayout.from_identity(sampled).in_image  # as sets were before this could be said


@pytest.mark.parametrize(
    "change", [{"tokens": "some"}, {"tokens_per_view": 4}, {"resampled_from": [4, 4]}, {"resampling": "area"}, {"x": 1}]
)
def test_a_layout_of_another_version_is_not_read_as_this_one(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="does not know"):
        FeatureLayout.from_identity({**LAYOUTS[0].identity(), **change})
    with pytest.raises(ValueError, match="does not know"):
        FeatureLayout.from_identity({**LAYOUTS[1].identity(), "sampled_in": "the centre"})
    with pytest.raises(ValueError, match="only sampled tokens"):
        FeatureLayout.from_identity({**LAYOUTS[0].identity(), "sampled_in": SAMPLED_IN})


def test_an_unknown_layout_in_a_store_is_damage(tmp_path: Path) -> None:
    made = plan(tmp_path)
    identity = {**made.features.identity, "layout": {**made.features.identity["layout"], "tokens": "some"}}
    with pytest.raises(CacheDamaged, match="does not know"):
        FeatureReader(made.store.objects, made.features.key, made.views, identity)


@pytest.mark.parametrize(("values", "text"), [
    (((16, 16), "int8", 0), "give 1 to 256"),
    (((16, 16), "int8", 257), "give 1 to 256"),
    (((300, 300), "int8", 64), "at most 65,536"),
    (((16, 16), "int8", None, (16, 16)), "smaller one"),
    (((16, 16), "int8", None, (32, 15)), "smaller one"),
    (((0, 16), "int8", None, (16, 16)), "smaller one"),
])  # fmt: skip
def test_what_cannot_be_stored_is_refused_with_what_can(values: tuple[Any, ...], text: str) -> None:
    with pytest.raises(BadInput, match=text):
        FeatureLayout(12, 64, *values)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(("tokens_per_view", "own"), [(None, None), (4, None), (4, (4, 4))])
def test_a_view_s_bytes_are_those_of_the_arrays(tmp_path: Path, codec: str, tokens_per_view: int | None, own: Any) -> None:
    made = with_features(plan(tmp_path), codec, tokens_per_view=tokens_per_view, resampled_from=own)
    rows = made.features.empty(3)
    assert sum(array.nbytes for array in rows if array is not None) == 3 * made.features.layout.view_bytes


def test_a_quarter_of_the_tokens_takes_a_quarter_of_the_bytes() -> None:
    whole, quarter = FeatureLayout(None, 1280, (16, 16), "int8"), FeatureLayout(None, 1280, (16, 16), "int8", 64)
    assert quarter.view_bytes == whole.view_bytes / 4 + 2 * 64


def described(group: Any) -> dict[str, Any]:
    """Every array of a zarr group, those of its statistics as well."""
    arrays = dict(group.arrays())
    return arrays | {f"statistics/{name}": one for name, one in group["statistics"].arrays()} if "statistics" in group else arrays


def check_described(group: Any) -> None:
    """Each array names itself, its unit and its axes; an axis has one length in its group, as xarray wants it."""
    lengths: dict[str, dict[str, int]] = {}
    for path, array in described(group).items():
        assert array.attrs["long_name"], path
        assert array.attrs["units"], path
        names = array.metadata.dimension_names
        assert all(names), path
        assert len(set(names)) == array.ndim, path
        for name, length in zip(names, array.shape, strict=True):
            assert lengths.setdefault(path.rpartition("/")[0], {}).setdefault(name, length) == length, (path, name)
        if path in ("patch", "patch_scale") and group["patch"].dtype.kind in "iu":
            assert "patch_scale" in array.attrs["scale"]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("tokens_per_view", [None, 4])
def test_users_of_zarr_and_xarray_find_names_axes_units_and_scale_of_every_array(
    tmp_path: Path, codec: str, tokens_per_view: int | None
) -> None:
    made = with_features(plan(tmp_path), codec, name="described", tokens_per_view=tokens_per_view)
    check_described(made.features.open_zarr())
    check_described(zarr.open_group(f"{made.folder}/views/{made.views.key}", mode="r"))


def test_so_they_do_of_phi_s(tmp_path: Path) -> None:
    made, covariance = plan(tmp_path), Covariance(96)
    covariance.update(np.random.default_rng(0).normal(size=(200, 96)).astype(np.float32))
    statistics = Statistics.from_covariances(None, covariance, 200)
    layout = FeatureLayout(None, 96, (2, 3), "int8")
    identity = {**made.features.identity, "layout": layout.identity()}
    identity["statistics"] = {"method": statistics.method, "digest": statistics.digest, "count": 200}
    check_described(FeatureReader.create(made.store.objects, "phi-s", made.views, identity, statistics).open_zarr())


def test_so_they_do_of_stored_pixels(tmp_path: Path) -> None:
    made = plan(tmp_path)
    views = ViewSet.create(made.store.objects, made.dataset, ViewSpec(views_per_image=2, pixels=StoredPixels(8)), 4)
    group = zarr.open_group(f"{made.folder}/views/{views.key}", mode="r")
    assert "pixels" in set(group.array_keys())
    check_described(group)


def test_a_committed_store_is_described_too(tmp_path: Path) -> None:
    made: Made = build(tmp_path, images=4)
    commit(with_features(made, "int8", name="less", tokens_per_view=2), 0)
    for key in made.store.list_features():
        check_described(made.store.features(key).open_zarr())


def test_a_layout_says_whether_its_codec_takes_the_width() -> None:
    """int4 stores groups of 32 channels; the others take any width."""
    stored = {codec: FeatureLayout(None, 40, (2, 2), codec).can_be_stored for codec in ("fp32", "fp16", "int8", "int4")}
    assert stored == {"fp32": True, "fp16": True, "int8": True, "int4": False}
    assert FeatureLayout(None, 64, (2, 2), "int4").can_be_stored
