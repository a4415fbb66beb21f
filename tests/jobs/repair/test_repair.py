"""Repair touches only what is damaged and repairs it; fidelity tells a faithful set from a coarse one; strangers are refused."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eupe_pipeline.jobs.extraction.extract import extract_features
from eupe_pipeline.jobs.extraction.options import ExtractOptions, TeacherRequest
from eupe_pipeline.jobs.repair.repair import FidelityOptions, RepairOptions, fidelity, repair_features, teacher_of
from eupe_pipeline.storage.core.errors import BadInput, CacheMismatch
from eupe_pipeline.storage.features.features import FeatureReader
from eupe_pipeline.storage.images.indexing import build_index
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.views.view_spec import ViewSpec


@pytest.fixture
def extracted(tiny_store: Any, tmp_path: Path) -> tuple[FeatureStore, str, TeacherRequest, ExtractOptions]:
    """A fresh store with the tiny teacher's tokens in int8, its key, and how they were extracted."""
    store = FeatureStore.create(str(tmp_path / "store"))
    build_index(store.objects, str(tiny_store.teacher_run.parent / "images"), "photos")
    request = TeacherRequest(str(tiny_store.teacher_run))
    options = ExtractOptions(
        store.url, "photos", (request,), ViewSpec(views_per_image=2, seed=3), 4, "int8", statistics_batches=3, workers=0
    )
    return store, extract_features(options)["features"]["teacher"], request, options


def files(store: FeatureStore) -> dict[str, tuple[int, bytes]]:
    root = Path(store.url)
    return {str(path.relative_to(root)): (path.stat().st_mtime_ns, path.read_bytes()) for path in root.rglob("*") if path.is_file()}


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 4
    path.write_bytes(data)


def values(reader: FeatureReader) -> np.ndarray[Any, Any]:
    return reader.decode(reader.read(np.arange(reader.rows)))


def test_a_sound_set_has_nothing_to_repair(extracted: Any) -> None:
    store, key, request, _ = extracted
    before = files(store)
    result = repair_features(RepairOptions(store.url, key, teacher=request))
    assert (result["damaged"], result["repaired"]) == ({"features": {}, "views": {}}, [])
    assert files(store) == before


@pytest.mark.parametrize(("group", "array"), [("features", "patch"), ("features", "cls"), ("views", "crop")])
def test_a_damaged_shard_is_repaired_and_no_other_is_touched(extracted: Any, group: str, array: str) -> None:
    store, key, request, _ = extracted
    reader = store.features(key)
    expected, sound = values(reader), files(store)
    where = f"{group}/{key if group == 'features' else reader.views.key}"
    victims = sorted(name for name in sound if name.startswith(f"{where}/{array}/c.2."))
    assert len(victims) == 1
    flip_a_bit(Path(store.url) / victims[0])
    told = repair_features(RepairOptions(store.url, key, teacher=request, dry_run=True))
    assert (list(told["damaged"][group]), told["repaired"]) == (["2"], [])
    result = repair_features(RepairOptions(store.url, key, teacher=request))
    assert result["repaired"] == [2]
    np.testing.assert_array_equal(values(FeatureStore.open(store.url).features(key)), expected)
    after = files(store)
    changed = {name for name in sound if after.get(name) != sound[name]}
    assert changed
    assert all(".2." in name or "000002" in name for name in changed)
    assert {name: content for name, (_, content) in after.items()} == {name: content for name, (_, content) in sound.items()}


def test_another_teacher_may_not_repair(extracted: Any, tmp_path: Path, tiny_store: Any) -> None:
    store, key, request, _ = extracted
    other = tmp_path / "other"
    shutil.copytree(tiny_store.teacher_run, other)
    weights = other / "model" / "backbone.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    flip_a_bit(next(Path(store.url).glob(f"features/{key}/patch/c.0.*")))
    before = files(store)
    with pytest.raises(CacheMismatch, match="weights_sha256"):
        repair_features(RepairOptions(store.url, key, teacher=TeacherRequest(str(other))))
    assert files(store) == before
    with pytest.raises(BadInput, match="unknown teacher 'teacher'"):
        teacher_of(store.features(key), None)
    assert teacher_of(store.features(key), request).name == "teacher"


def test_fidelity_orders_the_codecs_by_what_they_keep(extracted: Any) -> None:
    store, _, request, options = extracted
    found = {}
    for codec in ("fp32", "fp16", "int8"):
        key = extract_features(replace(options, codec=codec))["features"]["teacher"]
        found[codec] = fidelity(FidelityOptions(store.url, key, teacher=request, sample=20))
        assert found[codec]["views"] == 20
        assert found[codec]["patch"]["min"] <= found[codec]["patch"]["p1"] <= found[codec]["patch"]["mean"]
    means = [found[codec]["patch"]["mean"] for codec in ("fp32", "fp16", "int8")]
    assert means == sorted(means, reverse=True)
    assert means[0] > 1 - 1e-6
    assert means[2] > 0.9999
    assert found["int8"]["cls"]["mean"] > 0.99999


def test_fidelity_of_a_set_that_is_not_complete_is_of_what_is_there(extracted: Any) -> None:
    store, key, request, _ = extracted
    reader = store.features(key)
    for shard in range(1, reader.shards):
        reader.group.discard(shard)
    found = fidelity(FidelityOptions(store.url, key, teacher=request, sample=1000))
    assert found["views"] == reader.group.shard_rows
    reader.group.discard(0)
    with pytest.raises(BadInput, match="is stored yet"):
        fidelity(FidelityOptions(store.url, key, teacher=request))
