"""A folder that grew from 40 to 44 photos: only the new ones go through the teacher, and every old token stays as it was."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.features.features import FeatureReader
from eupe_pipeline.storage.objects.dry_run_objects import DryRunObjects
from eupe_pipeline.storage.shards.commit import record_key
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.upkeep.copying import copy_features
from eupe_pipeline.storage.upkeep.examination import examine
from eupe_pipeline.storage.upkeep.examiner import Examiner
from eupe_pipeline.storage.upkeep.maintenance import prune
from eupe_pipeline.storage.views.view_set import ViewSet
from eupe_pipeline.storage.views.view_spec import StoredPixels, ViewSpec

from ..growing import NEW, Growing


def objects_of(reader: FeatureReader | ViewSet, shard: int) -> dict[str, Path]:
    record = reader.group.record(shard)
    assert record is not None
    return {name: Path(reader.group.objects.url, reader.group.prefix, entry.key) for name, entry in record.objects.items()}


def same_tokens(old: FeatureReader, new: FeatureReader, images: int) -> None:
    """The first tokens of a set are those of an older one, byte for byte, failed images apart."""
    rows = np.setdiff1d(np.arange(images * old.views.views_per_image), old.failed_rows())
    pairs: list[tuple[Any, Any]] = [*zip(old.read(rows), new.read(rows), strict=True)]
    pairs += zip(old.views.read(rows), new.views.read(rows), strict=True)
    assert all(np.array_equal(left, right) for left, right in pairs if left is not None or right is not None)


def cosine(left: Any, right: Any) -> float:
    return float(left @ right / np.linalg.norm(left) / np.linalg.norm(right))


def whole(growing: Growing) -> None:
    """No file of the store is damaged."""
    assert [str(finding) for finding in _damage(growing)] == []


LAYOUTS: dict[str, dict[str, Any]] = {
    "int4": {"codec": "int4", "teacher": "other"},
    "sampled tokens": {"codec": "int8", "tokens_per_view": 3},
    "a smaller grid": {"codec": "fp32", "grid": (1, 1), "normalisation": "phi-s"},
    "stored pixels": {"codec": "int8", "views": ViewSpec(views_per_image=2, seed=3, pixels=StoredPixels(16))},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_only_the_new_photos_go_through_the_teacher(growing: Growing, layout: str) -> None:
    values = dict(LAYOUTS[layout])
    values["teachers"] = (growing.teacher(name := values.pop("teacher", "teacher")),)
    old = growing.reader(growing.extract(**values))
    growing.grow()
    planned = growing.extract(**values, dry_run=True)
    summary = growing.extract(**values)
    new = growing.reader(summary)
    assert growing.forwards == summary["views_done"] == 4 * 2  # not one of the 80 old views, for statistics neither
    assert summary["shards_taken_over"] == 2
    assert (new.complete, new.rows, new.views.dataset.version) == (True, 88, 2)
    assert new.statistics.digest == old.statistics.digest
    same_tokens(old, new, 40)
    for shard in (0, 1):
        for ours, theirs in ((new, old), (new.views, old.views)):
            pairs = zip(objects_of(ours, shard).values(), objects_of(theirs, shard).values(), strict=True)
            assert all(os.path.samefile(*pair) for pair in pairs)
    assert planned["features"] == summary["features"]
    assert (planned["shards_missing"], planned["statistics_missing"]) == (1, [])
    assert planned["bytes_expected"] == {name: 8 * new.layout.view_bytes}
    assert planned["rows_to_compute"] == {name: 8}
    expected = growing.fresh(**values)  # by statistics of its own
    rows, there = new.rows_of(list(NEW)), expected.rows_of(list(NEW))
    restored = [one.statistics.denormalize_patch(one.decode(one.read(which))).ravel() for one, which in ((new, rows), (expected, there))]
    assert cosine(*restored) > 0.98
    for left, right in zip(new.views.read(rows), expected.views.read(there), strict=True):
        assert np.asarray(left).tobytes() == np.asarray(right).tobytes()
    whole(growing)


def test_a_second_run_after_the_growth_computes_nothing(growing: Growing) -> None:
    growing.extract()
    growing.grow()
    first, second = growing.extract(), growing.extract()
    assert (first["features"], second["views_done"], second["shards_taken_over"]) == (second["features"], 0, 0)


def test_a_chain_of_three_versions_and_shards_that_fill_up(growing: Growing) -> None:
    chain = [growing.reader(growing.extract())]
    for names in (NEW[:3], NEW[3:]):
        growing.grow(*names)
        chain.append(growing.reader(growing.extract()))
        assert growing.forwards == 2 * len(names)
        same_tokens(chain[-2], chain[-1], len(chain[-2].views.dataset))
    assert len({reader.statistics.digest for reader in chain}) == 1
    assert growing.store.features("teacher").key == chain[2].key
    assert chain[2].identity["statistics"]["from_views"] == chain[0].views.digest
    whole(growing)


def test_a_version_that_was_never_extracted_is_passed_over(growing: Growing) -> None:
    old = growing.reader(growing.extract())
    growing.grow(*NEW[:3])
    growing.grow(*NEW[3:])
    new = growing.reader(growing.extract())
    assert growing.forwards == 8
    same_tokens(old, new, 40)


def test_two_teachers_of_which_one_is_new(growing: Growing) -> None:
    old = growing.reader(growing.extract())
    growing.grow()
    summary = growing.extract(teachers=(growing.teacher("teacher"), growing.teacher("other")))
    assert growing.forwards - 64 == 8 + 88  # 64 for the other one's statistics
    same_tokens(old, growing.reader(summary), 40)
    other = growing.reader(summary, "other")
    assert other.complete
    assert other.views.key == growing.reader(summary).views.key
    whole(growing)


@pytest.mark.parametrize("what", ["patch", "views", "last shard"])
def test_what_is_damaged_in_the_older_set_is_computed_instead(growing: Growing, what: str) -> None:
    old = growing.reader(growing.extract(codec="fp32"))
    kept = old.decode(old.read(np.arange(80)))
    growing.grow()
    path = objects_of(old.views if what == "views" else old, 2 if what == "last shard" else 0)["crop" if what == "views" else "patch"]
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    path.write_bytes(data)
    new = growing.reader(growing.extract(codec="fp32"))
    assert growing.forwards == {"patch": 40, "views": 40, "last shard": 24}[what]
    np.testing.assert_allclose(kept, new.decode(new.read(np.arange(80))), atol=1e-4)
    assert [finding.where for finding in _damage(growing)] == [str(path.relative_to(growing.store.url))]


def _damage(growing: Growing) -> list[Any]:
    examiner = Examiner(FeatureStore(DryRunObjects(growing.store.objects)), None, images=False, may_write=False)
    examine(examiner)
    return examiner.findings


def test_of_an_unfinished_older_set_only_its_committed_shards_are_taken(growing: Growing) -> None:
    old = growing.reader(growing.extract())
    for shard in (1, 2):
        old.group.discard(shard)
    growing.grow()
    summary = growing.extract()
    assert (growing.forwards, summary["shards_taken_over"]) == (32 + 24, 1)
    whole(growing)


def test_an_older_set_that_was_pruned_costs_all_forwards_and_no_statistics(growing: Growing) -> None:
    old = growing.reader(growing.extract())
    growing.grow()
    prune(growing.store, old.key, dry_run=False)
    new = growing.reader(growing.extract())
    assert growing.forwards == 88
    assert new.statistics.digest == old.statistics.digest


def test_pruning_the_older_set_does_not_hurt_the_newer_one(growing: Growing) -> None:
    old = growing.reader(growing.extract())
    tokens = old.read(np.arange(64)).patch.copy()
    growing.grow()
    new = growing.reader(growing.extract())
    prune(growing.store, old.key, dry_run=False)
    assert growing.store.features("teacher").key == new.key
    assert np.array_equal(growing.store.features(new.key).read(np.arange(64)).patch, tokens)
    whole(growing)


def test_a_kill_in_the_middle_of_taking_over_costs_nothing(growing: Growing, monkeypatch: pytest.MonkeyPatch) -> None:
    old = growing.reader(growing.extract())
    growing.grow()
    create, stopped = type(growing.store.objects).create, list[str]()

    def killed(self: Any, key: str, content: Any) -> bool:
        if "features/" in key and "/commits/" in key and not stopped:
            stopped.append(key)
            raise KeyboardInterrupt
        return bool(create(self, key, content))

    monkeypatch.setattr(type(growing.store.objects), "create", killed)
    with pytest.raises(BaseException):  # noqa: B017 - as Ctrl-C arrives
        growing.extract()
    assert stopped
    new = growing.reader(growing.extract())
    assert growing.forwards == 8
    same_tokens(old, new, 40)
    whole(growing)


def test_failed_images_stay_failed_and_are_not_tried_again(growing: Growing) -> None:
    broken = growing.images / "class2" / "038.png"
    data = bytearray(broken.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
    broken.write_bytes(data)
    shutil.rmtree(growing.store.url)
    growing.store = FeatureStore.create(growing.store.url)
    growing.index()
    values: dict[str, Any] = {"max_bad_share": 0.5, "tokens_per_view": 3}
    old_summary = growing.extract(**values)
    old = growing.reader(old_summary)
    assert list(old_summary["failed"]) == ["class2/038.png"]
    growing.grow()
    summary = growing.extract(**values)
    new = growing.reader(summary)
    assert list(summary["failed"]) == ["class2/038.png"]
    assert growing.forwards == 8
    assert np.array_equal(new.failed_rows(), old.failed_rows())
    same_tokens(old, new, 40)
    whole(growing)


def test_removed_photos_are_not_needed_and_those_that_come_back_are_computed(growing: Growing) -> None:
    old = growing.reader(growing.extract())
    gone = [old.views.dataset.ids(0, 40)[n] for n in (3, 38)]
    kept = {name: (growing.images / name).read_bytes() for name in gone}
    for name in gone:
        (growing.images / name).unlink()
    with pytest.raises(BadInput, match="2 of the 40 images"):
        growing.grow()
    growing.index(allow_removed=True)
    summary = growing.extract()
    new = growing.reader(summary)
    assert growing.forwards == 8
    assert summary["failed"] == {}
    assert new.failed_rows().tolist() == [6, 7, 76, 77]
    same = np.setdiff1d(np.arange(80), new.failed_rows())
    assert np.array_equal(new.read(same).patch, old.read(same).patch)
    whole(growing)
    for name, data in kept.items():
        (growing.images / name).write_bytes(data)
    growing.index()
    third = growing.reader(growing.extract())
    assert third.failed_rows().tolist() == []
    assert growing.forwards == 0  # both are in the set of version 1 or in shared shards
    assert np.array_equal(third.read(np.arange(80)).patch, old.read(np.arange(80)).patch)


def test_other_views_codecs_and_shards_are_not_taken_over(growing: Growing, events: Any) -> None:
    seen, on_event = events
    growing.extract()
    growing.grow()
    assert growing.extract(on_event=on_event, images_per_shard=8)["shards_taken_over"] == 0
    assert "no earlier version of photos has such views" in str(seen)
    assert growing.forwards == 64 + 88  # other views, for which statistics are measured
    assert growing.extract(codec="fp16")["shards_taken_over"] == 0
    assert growing.forwards == 88


@pytest.mark.long
def test_ray_workers_copy_rows_as_this_process_does(growing: Growing) -> None:
    old = growing.reader(growing.extract())
    growing.grow()
    summary = growing.extract(workers=1)
    assert (summary["views_done"], summary["shards_taken_over"]) == (8, 2)
    same_tokens(old, growing.reader(summary), 40)


def test_a_version_is_copied_to_a_store_without_its_parents_and_goes_on_there(growing: Growing, all_photos: Path) -> None:
    growing.extract()
    growing.grow()
    new = growing.reader(growing.extract())
    target = FeatureStore.create(str(growing.root / "target"))
    copy_features(growing.store, new.key, target)
    assert target.dataset("photos").version == 2
    opened = target.features("teacher")
    opened.group.discard(2)
    summary = growing.extract(store=target.url)
    assert summary["features"] == {"teacher": new.key}
    assert growing.forwards == 24  # the shard that was lost; statistics came along
    assert target.features("teacher").complete


def test_names_mean_the_newest_version_and_keys_the_older(growing: Growing) -> None:
    old = growing.reader(growing.extract())
    assert growing.store.features("teacher").key == old.key
    growing.grow()
    new = growing.reader(growing.extract())
    assert growing.store.features("teacher").key == new.key
    assert growing.store.view_set("photos").key == new.views.key
    assert growing.store.features(old.key).key == old.key
    again = growing.extract(data=old.views.dataset.key)
    assert (again["features"], again["views_done"]) == ({"teacher": old.key}, 0)


def test_without_hard_links_the_shards_are_copied(growing: Growing, monkeypatch: pytest.MonkeyPatch) -> None:
    old = growing.reader(growing.extract())
    growing.grow()

    def no_links(*paths: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", no_links)
        new = growing.reader(growing.extract())
    assert growing.forwards == 8
    same_tokens(old, new, 40)
    assert objects_of(new, 0)["patch"].stat().st_nlink == 1


def test_the_records_of_taken_shards_are_the_new_sets_own(growing: Growing) -> None:
    old = growing.reader(growing.extract())
    growing.grow()
    new = growing.reader(growing.extract())
    ours, theirs = new.group.record(0), old.group.record(0)
    assert ours is not None
    assert theirs is not None
    assert ours.group == new.digest != theirs.group
    of_views = new.views.group.record(0)
    assert of_views is not None
    assert ours.views_record == of_views.digest
    assert ours.objects == theirs.objects
    assert (Path(growing.store.url) / "features" / new.key / record_key(0)).stat().st_nlink == 1


def test_a_set_of_one_shard_grows_row_by_row(growing: Growing) -> None:
    old = growing.reader(growing.extract(images_per_shard=128))
    growing.grow()
    for name in old.views.dataset.ids(0, 40):
        (growing.images / name).unlink()  # nobody needs an old photo
    planned, summary = growing.extract(images_per_shard=128, dry_run=True), growing.extract(images_per_shard=128)
    assert (growing.forwards, summary["views_done"], summary["shards_taken_over"]) == (8, 8, 0)
    assert planned["rows_to_compute"] == {"teacher": 8}
    same_tokens(old, growing.reader(summary), 40)
    whole(growing)
