"""A copy is equal, verified, resumable, and another machine goes on with it as if it had made it."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from eupe_pipeline.storage.core.errors import CacheDamaged
from eupe_pipeline.storage.core.identity import canonical_json
from eupe_pipeline.storage.images.indexing import build_index
from eupe_pipeline.storage.objects.objects import LocalObjects
from eupe_pipeline.storage.store import FeatureStore, canary_key
from eupe_pipeline.storage.upkeep.copying import copy_features
from eupe_pipeline.storage.upkeep.maintenance import verify
from numpy import float32

from ..made_up_store import Made, everything, reopen, same
from .test_maintenance import contents


def test_a_copy_is_equal_can_be_resumed_and_never_spreads_damage(copied: Callable[[], Made], tmp_path: Path) -> None:
    made = copied()
    target = FeatureStore.create(str(tmp_path / "target"))
    victim = made.folder / "features" / made.features.key / "patch/c.3.0.0.0"
    good = victim.read_bytes()
    victim.write_bytes(good[:50] + bytes([good[50] ^ 1]) + good[51:])
    with pytest.raises(CacheDamaged, match="shard 3"):
        copy_features(made.store, made.features.key, target)
    committed = target.features(made.features.key).group.committed()
    assert 3 not in committed
    assert committed >= {0, 1, 2}
    victim.write_bytes(good)
    copied_set = copy_features(reopen(made).store, made.features.key, target)
    assert copied_set.complete
    assert contents(tmp_path / "target") == contents(made.folder)
    copy_features(made.store, made.features.key, target)


def test_a_copy_to_memory_reads_the_same(pristine: Made) -> None:
    target = FeatureStore.create("memory://copy")
    copy_features(pristine.store, pristine.features.key, target)
    found = target.features(pristine.features.key)
    assert same(everything(pristine._replace(store=target, features=found, views=found.views)), everything(pristine))


def test_a_copy_that_was_stopped_anywhere_is_finished_by_the_same_call(
    pristine: Made, quick_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, real = contents(pristine.folder), LocalObjects.create
    for stop_at in range(1, len(whole), 5):
        target, count = FeatureStore.create(str(quick_disk / f"target{stop_at}")), iter(range(10_000))

        def create(self: LocalObjects, key: str, content: Any, count: Any = count, stop_at: int = stop_at) -> bool:
            if next(count) >= stop_at:
                raise KeyboardInterrupt
            return real(self, key, content)

        monkeypatch.setattr(LocalObjects, "create", create)
        with pytest.raises(KeyboardInterrupt):
            copy_features(pristine.store, pristine.features.key, target)
        monkeypatch.setattr(LocalObjects, "create", real)
        copied = copy_features(pristine.store, pristine.features.key, target)
        assert copied.complete
        assert contents(Path(target.url)) == whole
        assert verify(copied) == []


def test_statistics_and_canary_go_along_so_that_an_extraction_there_goes_on(copied: Callable[[], Made], tmp_path: Path) -> None:
    made, measured_on = copied(), {"teacher": "x", "views": "y"}
    made.store.keep_statistics("teacher", measured_on, made.features.statistics)
    canary = canary_key(made.features.identity["teacher"])
    made.store.objects.create(canary, [b"tokens of eight images"])
    target = FeatureStore.create(str(tmp_path / "target"))
    copy_features(made.store, made.features.key, target)
    kept = target.kept_statistics("teacher", measured_on)
    assert kept is not None
    assert kept.digest == made.features.statistics.digest
    assert target.objects.read(canary) == b"tokens of eight images"


def test_a_target_that_measured_its_own_statistics_keeps_them_and_says_so(copied: Callable[[], Made], tmp_path: Path) -> None:
    made, measured_on = copied(), {"teacher": "x", "views": "y"}
    made.store.keep_statistics("teacher", measured_on, made.features.statistics)
    target, events = FeatureStore.create(str(tmp_path / "target")), list[dict[str, Any]]()
    arrays = {name: values + float32(1e-6) for name, values in made.features.statistics.arrays().items()}
    others = type(made.features.statistics).from_arrays(arrays, 7)
    target.keep_statistics("teacher", measured_on, others)
    copied_set = copy_features(made.store, made.features.key, target, events.append)
    assert copied_set.complete
    kept = target.kept_statistics("teacher", measured_on)
    assert kept is not None
    assert kept.digest == others.digest
    (warning,) = [event["text"] for event in events if event["event"] == "warning"]
    assert f"--statistics-from {made.features.key}" in warning


def test_a_target_that_indexed_its_own_images_gets_the_features_of_these(pristine: Made, tmp_path: Path) -> None:
    shutil.copytree(pristine.dataset.source, tmp_path / "elsewhere")
    target = FeatureStore.create(str(tmp_path / "target"))
    indexed = build_index(target.objects, str(tmp_path / "elsewhere"), pristine.dataset.name)
    assert indexed.key == pristine.dataset.key
    found = copy_features(pristine.store, pristine.features.key, target)
    assert same(everything(pristine._replace(store=target, features=found, views=found.views)), everything(pristine))
    assert target.dataset(indexed.key).sources == [str(tmp_path / "elsewhere"), pristine.dataset.source]


def test_another_dataset_under_the_same_key_is_refused(pristine: Made, tmp_path: Path) -> None:
    target = FeatureStore.create(str(tmp_path / "target"))
    path = f"datasets/{pristine.dataset.key}/identity.json"
    target.objects.create(path, [canonical_json({"kind": "dataset"})])
    with pytest.raises(CacheDamaged):
        copy_features(pristine.store, pristine.features.key, target)
