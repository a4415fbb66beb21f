"""Views that the statistics were measured on do not pass the teacher a second time, and not a byte of the store shows it."""

import os
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from eupe_pipeline.jobs.extraction import extract, measure_statistics
from eupe_pipeline.jobs.extraction.batch_size import SizedTeacher
from eupe_pipeline.jobs.extraction.extract import extract_features
from eupe_pipeline.jobs.extraction.measure_statistics import ALL_VIEWS, sample_size
from eupe_pipeline.jobs.extraction.options import ExtractOptions, TeacherRequest
from eupe_pipeline.pipeline.reports.catalog import verify_features
from eupe_pipeline.storage.core.cache_home import HOME_VARIABLE
from eupe_pipeline.storage.core.errors import Interrupted
from eupe_pipeline.storage.features.kept_forwards import KeptForwards
from eupe_pipeline.storage.images.dataset import ImageDataset
from eupe_pipeline.storage.images.indexing import build_index
from eupe_pipeline.storage.objects.objects import walk_keys
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.views.view_spec import StoredPixels, ViewSpec
from PIL import Image


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def photos(photos: Any) -> Any:
    """The store of the other tests, with the sample that nobody asked for."""
    store, options, root = photos
    return store, replace(options, statistics_batches=None), root


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Views that were computed, by teacher."""
    count: Counter[str] = Counter()
    compute = SizedTeacher._forward

    def counted(self: SizedTeacher, pixels: Any, photometric: Any = None) -> Any:
        count[self.teacher.spec.name] += len(pixels)
        return compute(self, pixels, photometric)

    monkeypatch.setattr(SizedTeacher, "_forward", counted)
    return count


def without_keeping(options: Any, root: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[FeatureStore, dict[str, Any]]:
    """Another store over the same images, extracted as before: every view of the sample twice."""
    store = FeatureStore.create(str(root / "as-before"))
    build_index(store.objects, str(root / "images"), options.data)
    with monkeypatch.context() as patch:
        patch.setattr(extract, "new_run", lambda: None)
        return store, extract_features(replace(options, store=store.url))


def content(store: FeatureStore) -> dict[str, bytes]:
    """Every file of features, views and statistics but the records of times."""
    root = Path(store.url)
    names = [path for folder in ("features", "statistics", "views") for path in (root / folder).rglob("*") if path.is_file()]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in names}


def leftovers(home: Path) -> list[Path]:
    return list((home / "forwards").rglob("*"))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"codec": "int8", "tokens_per_view": 2},
        {"normalisation": "phi-s", "images_per_shard": 5, "batch_size": 2},
        {"views": ViewSpec(views_per_image=1, seed=5, photometric="teacher_same"), "grid": (1, 1)},
        {"views": ViewSpec(views_per_image=2, seed=5, pixels=StoredPixels(24))},
    ],
)
def test_a_set_smaller_than_the_sample_passes_the_teacher_once_and_is_the_same_to_the_byte(
    photos: Any, forwards: Counter[str], home: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    store, options, root = photos
    options = replace(options, **changes)
    summary = extract_features(options)
    rows = summary["rows"]
    assert forwards == {"teacher": rows}
    assert (summary["statistics_views"], summary["views_from_statistics"]) == ({"teacher": rows}, {"teacher": rows})
    before, told = without_keeping(options, root, monkeypatch)
    assert forwards == {"teacher": 3 * rows}
    assert told["views_from_statistics"] == {"teacher": 0}
    assert content(before) == content(store)
    assert leftovers(home) == []


def test_two_ray_workers_share_what_was_kept(photos: Any, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, options, root = photos
    summary = extract_features(replace(options, workers=2))
    assert summary["views_from_statistics"] == {"teacher": 48}
    before, _ = without_keeping(options, root, monkeypatch)
    assert content(before) == content(store)
    assert leftovers(home) == []


def test_each_of_two_teachers_takes_its_own_and_one_whose_statistics_are_known_computes(
    photos: Any, forwards: Counter[str], tiny_store: Any, tmp_path: Path
) -> None:
    _, options, _ = photos
    extract_features(options)
    forwards.clear()
    shutil.copytree(tiny_store.teacher_run, tmp_path / "second")
    both = replace(options, codec="int8", teachers=(*options.teachers, TeacherRequest(str(tmp_path / "second"), size_px=24)))
    summary = extract_features(both)
    assert forwards == {"teacher": 48, "second": 48}
    assert summary["views_from_statistics"] == {"teacher": 0, "second": 48}
    assert summary["statistics_views"] == {"second": 48}


def test_a_sample_that_is_smaller_than_the_set_stays_as_it_was_and_its_cost_is_said(
    photos: Any, forwards: Counter[str], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, options, root = photos
    options = replace(options, statistics_batches=1)
    planned = extract_features(replace(options, dry_run=True))
    assert (planned["statistics_views"], planned["forwards_expected"]) == ({"teacher": 32}, {"teacher": 48 + 32})
    summary = extract_features(options)
    assert forwards == {"teacher": 48 + 32}
    assert (summary["statistics_views"], summary["views_from_statistics"]) == ({"teacher": 32}, {"teacher": 0})
    before, _ = without_keeping(options, root, monkeypatch)
    assert content(before) == content(store)
    assert not (home / "forwards").exists()


@pytest.mark.parametrize(
    ("rows", "views"), [(1, 1), (40, 40), (2000, 2000), (ALL_VIEWS, 8000), (8001, 240), (60_000, 1800), (533_334, 16_000), (10**9, 16_000)]
)
def test_more_views_than_are_all_measured_cost_three_percent_at_most(rows: int, views: int) -> None:
    assert sample_size(rows) == views
    assert rows <= ALL_VIEWS or views <= 0.03 * rows


def test_eight_hundred_photos_pass_a_teacher_eight_hundred_times(
    tiny_store: Any, tmp_path: Path, forwards: Counter[str], home: Path
) -> None:
    random = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for number in range(800):
        Image.fromarray(random.integers(0, 256, (12, 12, 3), np.uint8)).save(tmp_path / "images" / f"{number}.png")
    store = FeatureStore.create(str(tmp_path / "store"))
    build_index(store.objects, str(tmp_path / "images"), "photos")
    summary = extract_features(ExtractOptions(store.url, "photos", (TeacherRequest(str(tiny_store.teacher_run)),), workers=0))
    assert (forwards, summary["statistics_views"]) == ({"teacher": 800}, {"teacher": 800})
    assert leftovers(home) == []
    cls = store.features(summary["features"]["teacher"]).read(np.arange(800)).cls
    assert cls is not None
    np.testing.assert_allclose(cls.astype(np.float32).mean(axis=0), 0, atol=1e-3)


def test_of_more_views_a_fixed_sample_is_measured_and_recorded(
    photos: Any, forwards: Counter[str], monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    """As a set of more than 8,000 views is, with five of 48 in the place of 3 %."""
    store, options, root = photos
    monkeypatch.setattr(measure_statistics, "ALL_VIEWS", 40)
    monkeypatch.setattr(measure_statistics, "_SHARE", 0.11)
    planned = extract_features(replace(options, dry_run=True))
    assert (planned["statistics_views"], planned["forwards_expected"]) == ({"teacher": 5}, {"teacher": 53})
    summary = extract_features(options)
    assert (forwards, summary["statistics_views"], summary["views_from_statistics"]) == ({"teacher": 53}, {"teacher": 5}, {"teacher": 0})
    reader = store.features(summary["features"]["teacher"])
    described = reader.identity["statistics"]
    assert {key: described[key] for key in ("views", "count", "seed")} == {"views": 5, "count": 5, "seed": 0x5EED}
    before, _ = without_keeping(replace(options, batch_size=32), root, monkeypatch)
    assert before.features("teacher").key == reader.key
    assert not (home / "forwards").exists()
    assert verify_features(store=store.url)["findings"] == []


def test_statistics_of_the_earlier_default_are_used_again_so_that_a_set_that_was_begun_goes_on(photos: Any, forwards: Counter[str]) -> None:
    store, options, _ = photos
    first = extract_features(replace(options, statistics_batches=500))
    forwards.clear()
    store.features(first["features"]["teacher"]).group.objects.remove(_record(store, first["features"]["teacher"]))
    again = extract_features(options)
    assert again["features"] == first["features"]
    assert (forwards, again["statistics_views"]) == ({"teacher": 16}, {})
    other = extract_features(replace(options, normalisation="phi-s"))  # which was not measured then
    assert other["statistics_views"] == {"teacher": 48}


def test_a_set_that_was_begun_goes_on_whoever_has_measured_another_sample_since(photos: Any, forwards: Counter[str]) -> None:
    store, options, _ = photos
    begun = extract_features(options)["features"]
    assert extract_features(replace(options, statistics_batches=500))["features"] != begun
    store.features(begun["teacher"]).group.objects.remove(_record(store, begun["teacher"]))
    forwards.clear()
    assert extract_features(options)["features"] == begun
    assert forwards == {"teacher": 16}


def _record(store: FeatureStore, key: str) -> str:
    return next(name for name in walk_keys(store.objects, f"features/{key}/commits"))


@pytest.mark.parametrize(("views", "shard", "batch"), [(3, 5, 8), (3, 5, None), (1, 24, 7), (2, 8, 64)])
def test_shards_and_batches_that_do_not_line_up_pass_the_teacher_once_as_well(
    photos: Any, forwards: Counter[str], views: int, shard: int, batch: int | None
) -> None:
    _, options, _ = photos
    options = replace(options, views=ViewSpec(views_per_image=views, seed=3), images_per_shard=shard, batch_size=batch)
    summary = extract_features(options)
    assert summary["views_from_statistics"] == {"teacher": 24 * views}
    assert batch is None or forwards == {"teacher": 24 * views}  # the search for a size computes as well


def test_whole_sets_have_the_same_statistics_whatever_the_batch(photos: Any, tmp_path: Path) -> None:
    _, options, root = photos
    digests = set()
    for number, changes in enumerate(({"batch_size": 8}, {"batch_size": 5}, {"batch_size": 1})):
        other = FeatureStore.create(str(tmp_path / f"store-{number}"))
        build_index(other.objects, str(root / "images"), "photos")
        key = extract_features(replace(options, store=other.url, **changes))["features"]["teacher"]
        digests.add(other.features(key).statistics.digest)
    assert len(digests) == 1


def test_a_dry_run_expects_one_forward_a_view_and_none_when_all_is_there(photos: Any) -> None:
    _, options, _ = photos
    assert extract_features(replace(options, dry_run=True))["forwards_expected"] == {"teacher": 48}
    extract_features(options)
    done = extract_features(replace(options, dry_run=True))
    assert (done["forwards_expected"], done["statistics_views"]) == ({"teacher": 0}, {})


@pytest.mark.parametrize("stage", ["statistics", "extract"])
def test_a_stopped_run_loses_what_was_kept_and_nothing_else(
    photos: Any, forwards: Counter[str], home: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    store, options, root = photos

    def stop(event: dict[str, Any]) -> None:
        if event["stage"].startswith(stage):
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        extract_features(options, stop)
    assert leftovers(home) == []
    extract_features(options)
    before, _ = without_keeping(options, root, monkeypatch)
    assert content(before) == content(store)


def test_what_a_killed_process_left_is_removed_at_the_next_start_and_a_living_ones_stays(photos: Any, home: Path) -> None:
    _, options, _ = photos
    living = KeptForwards("living")
    child = os.fork()
    if not child:
        KeptForwards("killed")
        os._exit(9)
    os.waitpid(child, 0)
    (home / "forwards" / "killed" / ("0" * 32)).write_bytes(b"\0" * 64)
    extract_features(options)
    assert sorted(path.name for path in (home / "forwards").iterdir()) == ["living", "living.lock"]
    assert living.folder.is_dir()


def test_a_batch_with_an_image_that_cannot_be_decoded_is_not_computed_again(
    photos: Any, forwards: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, options, root = photos
    options = replace(options, max_bad_share=0.5)
    victim = root / "images" / "class1" / "004.png"
    data = bytearray(victim.read_bytes())
    data[60:-20] = bytes(len(data) - 80)  # the index accepts it, the decoder does not
    victim.write_bytes(data)
    build_index(store.objects, str(root / "images"), "broken")
    options = replace(options, data="broken")
    summary = extract_features(options)
    assert list(summary["failed"]) == ["class1/004.png"]
    # its two views are rows 32 and 33: the sample's second batch is measured without them, so its forwards are not those of the shard
    assert (forwards["teacher"], summary["views_from_statistics"]["teacher"]) == (48, 48)
    before, told = without_keeping(options, root, monkeypatch)
    assert told["failed"] == summary["failed"]
    assert content(before) == content(store)


def test_without_room_on_the_disk_everything_is_computed_and_the_same(
    photos: Any, forwards: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, options, root = photos
    usage = shutil.disk_usage(root)
    free = iter([1000, *[0] * 100])
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=next(free)))
        summary = extract_features(options)
    assert (forwards, summary["views_from_statistics"]) == ({"teacher": 96}, {"teacher": 0})
    before, _ = without_keeping(options, root, monkeypatch)
    assert content(before) == content(store)


@pytest.mark.parametrize("lost", [0, 1, 3])
def test_an_image_is_decoded_once_and_again_where_its_kept_pixels_are_lost(
    photos: Any, home: Path, monkeypatch: pytest.MonkeyPatch, lost: int
) -> None:
    store, options, root = photos
    decoded: Counter[int] = Counter()
    read_image = ImageDataset.read_image

    def counted(self: ImageDataset, number: int, *arguments: Any, **values: Any) -> Any:
        decoded[number] += 1
        return read_image(self, number, *arguments, **values)

    def damage(event: dict[str, Any]) -> None:
        if event["stage"] == "statistics" and event["done"] == event["total"]:
            kept = sorted((home / "forwards").glob("*/views-*"))
            assert len(kept) == 6
            for path in kept[:lost]:
                data = bytearray(path.read_bytes())
                data[len(data) // 2] ^= 1
                path.write_bytes(data)

    with monkeypatch.context() as patch:
        patch.setattr(ImageDataset, "read_image", counted)
        extract_features(options, damage)
    assert (len(decoded), sum(decoded.values())) == (24, 24 + 4 * lost)
    before, _ = without_keeping(options, root, monkeypatch)
    assert content(before) == content(store)


def test_damaged_kept_tokens_are_computed_again(photos: Any, forwards: Counter[str], home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, options, root = photos

    def damage(event: dict[str, Any]) -> None:
        if event["stage"] == "statistics" and event["done"] == event["total"]:
            files = sorted((home / "forwards").glob("*/" + "[0-9a-f]" * 32))
            assert len(files) == 6
            data = bytearray(files[0].read_bytes())
            data[-1] ^= 1
            files[0].write_bytes(data)
            files[1].write_bytes(data[:20])

    summary = extract_features(options, damage)
    assert (forwards, summary["views_from_statistics"]) == ({"teacher": 48 + 16}, {"teacher": 32})
    before, _ = without_keeping(options, root, monkeypatch)
    assert content(before) == content(store)


def test_a_memory_back_off_between_both_passes_computes_in_the_smaller_size(
    photos: Any, forwards: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, options, _ = photos
    compute = SizedTeacher._forward
    failed: list[bool] = []

    def scarce(self: SizedTeacher, pixels: Any, photometric: Any = None) -> Any:
        if len(pixels) == 8 and sum(forwards.values()) >= 16 and not failed:
            failed.append(True)
            raise torch.OutOfMemoryError("out of memory")
        return compute(self, pixels, photometric)

    monkeypatch.setattr(SizedTeacher, "_forward", scarce)
    summary = extract_features(options)
    assert failed == [True]
    assert summary["views_from_statistics"]["teacher"] + forwards["teacher"] >= 96
    assert np.isfinite(summary["seconds"])
