"""Recorded subsets: the bits that were put in come out, damage is found and told from a right file, copies and removal."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eupe_pipeline.storage.core.errors import BadInput, CacheDamaged
from eupe_pipeline.storage.images.subsets import ImageSubset
from eupe_pipeline.storage.objects.dry_run_objects import DryRunObjects
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.upkeep.copying import copy_features
from eupe_pipeline.storage.upkeep.examination import examine
from eupe_pipeline.storage.upkeep.examiner import Examiner
from eupe_pipeline.storage.upkeep.findings import Finding
from eupe_pipeline.storage.upkeep.leases import Lease
from eupe_pipeline.storage.upkeep.maintenance import prune

from ..made_up_store import Made, build, reopen

STAYS = np.arange(20) % 3 != 1


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return build(tmp_path)


def record(made: Made, name: str = "clean", stays: Any = STAYS, **chosen_by: Any) -> ImageSubset:
    return ImageSubset.create(made.store.objects, name, made.dataset, stays, chosen_by)


def found(url: str, *, acting: bool = False) -> list[Finding]:
    store = FeatureStore.open(url)
    examiner = Examiner(store if acting else FeatureStore(DryRunObjects(store.objects)), None, images=acting, may_write=acting)
    examine(examiner)
    return [one for one in examiner.findings if not one.unfinished]


def test_a_subset_says_which_images_stay(made: Made) -> None:
    subset = record(made, seed=3)
    assert (subset.kept, subset.images, subset.dataset_digest) == (13, 20, made.dataset.digest)
    again = reopen(made).store.subset("clean")
    assert again.key == subset.key
    assert np.array_equal(again.mask(), STAYS)
    assert again.left_out().tolist() == [1, 4, 7, 10, 13, 16, 19]
    assert again.identity["chosen_by"] == {"seed": 3}
    assert (made.folder / "subsets" / subset.key / "images.bits").read_bytes() == bytes([0b01101101, 0b11011011, 0b0110])
    assert found(made.store.url) == []


def test_the_same_choice_is_one_subset_and_another_choice_is_another(made: Made) -> None:
    keys = {record(made).key, record(made).key}
    assert len(keys) == 1
    assert record(made, seed=1).key not in keys
    assert len(made.store.subset_keys("clean")) == 2
    with pytest.raises(BadInput, match="is the name of several subsets"):
        made.store.subset("clean")
    with pytest.raises(BadInput, match=r"unknown subsets in .*did you mean 'clean@"):
        made.store.subset("claen")
    with pytest.raises(BadInput, match="no image of photos@"):
        record(made, stays=np.zeros(20, np.bool_))
    with pytest.raises(BadInput, match="the name of a subset has"):
        record(made, name="a/b")


@pytest.mark.parametrize("bit", [0, 5, 23])
def test_a_flipped_bit_is_found_and_undone(made: Made, bit: int) -> None:
    subset = record(made)
    path = made.folder / "subsets" / subset.key / "images.bits"
    right = path.read_bytes()
    data = bytearray(right)
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(bytes(data))
    with pytest.raises(CacheDamaged, match=r"images.bits is damaged.*features curate"):
        reopen(made).store.subset("clean").mask()
    (one,) = found(made.store.url)
    assert (one.kind, one.where) == ("subset", f"subsets/{subset.key}/images.bits")
    assert path.read_bytes() == bytes(data)
    (finding,) = found(made.store.url, acting=True)
    assert finding.repaired
    assert path.read_bytes() == right


@pytest.mark.parametrize("how", ["cut", "removed", "other"])
def test_bits_that_are_lost_are_said_with_the_way_out_and_made_again_by_the_same_choice(made: Made, how: str) -> None:
    subset = record(made, balance=13)
    path = made.folder / "subsets" / subset.key / "images.bits"
    right = path.read_bytes()
    path.unlink() if how == "removed" else path.write_bytes(right[:-1] if how == "cut" else bytes(3))
    (one,) = found(made.store.url)
    assert "features curate" in one.way_out
    assert "{'balance': 13}" in one.way_out
    with pytest.raises(CacheDamaged, match="features curate"):
        reopen(made).store.subset("clean").mask()
    assert record(made, balance=13).key == subset.key
    assert path.read_bytes() == right
    assert found(made.store.url) == []


def test_a_damaged_identity_and_a_renamed_folder_are_found(made: Made) -> None:
    subset = record(made)
    folder = made.folder / "subsets" / subset.key
    shutil.copytree(folder, made.folder / "subsets" / "clean@0123456789ab")
    assert ["clean@0123456789ab" in one.where for one in found(made.store.url)] == [True]
    shutil.rmtree(made.folder / "subsets" / "clean@0123456789ab")
    (folder / "identity.json").write_bytes((folder / "identity.json").read_bytes().replace(b'"kept":13', b'"kept":12'))
    with pytest.raises(CacheDamaged, match=r"identity.json is damaged"):
        made.store.subset("clean")
    (one,) = found(made.store.url)
    assert (one.kind, one.source) == ("identity", "what is left of it: one bit was flipped")


def test_a_copy_takes_the_subsets_of_its_dataset_along(made: Made, tmp_path: Path) -> None:
    subset = record(made)
    other = build(tmp_path / "other", images=5)
    strange = ImageSubset.create(made.store.objects, "strange", other.dataset, np.ones(5, np.bool_), {})
    target = FeatureStore.create(str(tmp_path / "copy"))
    for _ in range(2):  # run again, it finds everything there
        copy_features(made.store, made.features.key, target)
        assert target.list_subsets() == [subset.key]
        assert np.array_equal(target.subset("clean").mask(), STAYS)
    assert [one.where for one in found(made.store.url)] == [f"subsets/{strange.key}"]
    (made.folder / "subsets" / subset.key / "images.bits").write_bytes(bytes(3))
    with pytest.raises(CacheDamaged, match=r"images\.bits is damaged"):
        copy_features(reopen(made).store, made.features.key, FeatureStore.create(str(tmp_path / "third")))


def test_prune_takes_a_subset_away_but_not_while_somebody_reads_it(made: Made) -> None:
    subset = record(made)
    lease = Lease(made.store.objects, subset.key, "train-run-host-1")
    with pytest.raises(BadInput, match="train-run"):
        prune(made.store, subset.key, dry_run=False)
    lease.release()
    assert len(prune(made.store, subset.key, dry_run=True)) == 2
    assert made.store.list_subsets() == [subset.key]
    assert [name.rpartition("/")[2] for name in prune(made.store, subset.key, dry_run=False)] == ["identity.json", "images.bits"]
    assert made.store.list_subsets() == []
    assert made.store.list_features() == [made.features.key]
