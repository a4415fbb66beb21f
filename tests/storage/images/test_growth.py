"""A source that grew is the next version of its dataset: rows and labels keep their numbers, and nothing is lost without a word."""

import io
import os
import shutil
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from eupe_pipeline.storage.core.errors import BadInput, CacheDamaged
from eupe_pipeline.storage.core.identity import short
from eupe_pipeline.storage.images.dataset import ImageDataset
from eupe_pipeline.storage.images.indexing import build_index, restore_index
from eupe_pipeline.storage.images.verify_source import source_differences
from eupe_pipeline.storage.index import IndexOptions, index
from eupe_pipeline.storage.objects.dry_run_objects import DryRunObjects
from eupe_pipeline.storage.sources.decode import BadImage
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.upkeep.examination import examine
from eupe_pipeline.storage.upkeep.examiner import Examiner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image


def png(seed: int, side: int = 8) -> bytes:
    """A small image of its own for each seed."""
    memory = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side + 1, 3), np.uint8)
    Image.fromarray(pixels).save(memory, "PNG")
    return memory.getvalue()


def put(folder: Path, *names: str) -> None:
    """Write an image at each name; its content follows from the name."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(sum(name.encode())))


def ids(dataset: ImageDataset) -> list[str]:
    return dataset.ids(0, len(dataset))


def labels(dataset: ImageDataset) -> list[str | None]:
    return [None if label < 0 else dataset.label_names[label] for label in dataset.labels().tolist()]


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore.create(str(tmp_path / "store"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    put(tmp_path / "photos", "cat/1.png", "cat/2.png", "dog/3.png")
    return tmp_path / "photos"


def test_new_images_stand_behind_the_old_ones_wherever_they_sort(store: FeatureStore, photos: Path) -> None:
    first = build_index(store.objects, str(photos), "photos")
    put(photos, "ant/0.png", "cat/0.png", "zebra/9.png")
    second = build_index(store.objects, str(photos), "photos")
    assert ids(second) == [*ids(first), "ant/0.png", "cat/0.png", "zebra/9.png"]
    assert second.label_names == ["cat", "dog", "ant", "zebra"]  # a label keeps its number, too
    assert labels(second) == ["cat", "cat", "dog", "ant", "cat", "zebra"]
    assert [second.row(n) for n in range(3)] == [first.row(n) for n in range(3)]
    assert (first.version, second.version) == (1, 2)
    assert [(one.digest, one.images) for one in second.earlier] == [(first.digest, 3)]
    assert np.array_equal(second.read_image(3), np.asarray(Image.open(photos / "ant" / "0.png")))


def test_a_chain_names_all_of_its_versions_and_the_name_means_the_newest(store: FeatureStore, photos: Path) -> None:
    chain = [build_index(store.objects, str(photos), "photos")]
    for name in ("bee/1.png", "ant/1.png"):
        put(photos, name)
        chain.append(build_index(store.objects, str(photos), "photos"))
    assert ids(chain[2]) == ["cat/1.png", "cat/2.png", "dog/3.png", "bee/1.png", "ant/1.png"]
    assert [one.digest for one in chain[2].earlier] == [chain[0].digest, chain[1].digest]
    assert store.dataset("photos").key == chain[2].key
    assert [store.dataset(one.key).version for one in chain] == [1, 2, 3]
    assert build_index(store.objects, str(photos), "photos").key == chain[2].key  # unchanged: the same dataset
    assert len(store.list_datasets()) == 3
    shutil.rmtree(Path(store.url) / "datasets" / chain[1].key)  # a store that lacks a version still tells old from new
    assert store.dataset("photos").key == chain[2].key


def test_index_says_what_it_made(store: FeatureStore, photos: Path, events: Any) -> None:
    seen, on_event = events
    first = index(IndexOptions(str(photos), store.url, "photos"), on_event)
    assert "version" not in first
    put(photos, "ant/0.png")
    second = index(IndexOptions(str(photos), store.url, "photos"), on_event)
    assert (second["version"], second["extends"], second["new_images"], second["removed_images"]) == (2, [first["dataset"]], 1, 0)
    text = " ".join(str(event.get("text")) for event in seen)
    assert "is version 2 of photos: 3 images as in version 1, 1 behind them" in text
    assert "also names" not in text


@pytest.mark.parametrize("gone", [["dog/3.png"], ["cat/1.png", "cat/2.png", "dog/3.png"]])
def test_images_that_left_are_refused_by_number_and_name_with_the_ways_out(store: FeatureStore, photos: Path, gone: list[str]) -> None:
    first = build_index(store.objects, str(photos), "photos")
    put(photos, "ant/0.png")
    for name in gone:
        (photos / name).unlink()
    with pytest.raises(
        BadInput, match=rf"{len(gone)} of the 3 images of {first.key} \(version 1\) are not in .* any more: {gone[0]}"
    ) as error:
        build_index(store.objects, str(photos), "photos")
    assert "--allow-removed" in str(error.value)
    assert "--name" in str(error.value)
    assert store.list_datasets() == [first.key]


def test_removed_images_keep_their_rows_and_are_read_by_nobody(store: FeatureStore, photos: Path) -> None:
    first = build_index(store.objects, str(photos), "photos")
    put(photos, "ant/0.png")
    (photos / "cat" / "2.png").unlink()
    second = build_index(store.objects, str(photos), "photos", allow_removed=True)
    assert ids(second) == [*ids(first), "ant/0.png"]
    assert labels(second) == ["cat", "cat", "dog", "ant"]
    assert second.removed().tolist() == [1]
    assert [second.is_removed(n) for n in range(4)] == [False, True, False, False]
    with pytest.raises(BadImage, match="removed from the source"):
        second.read_image(1)
    assert first.removed().tolist() == []
    assert source_differences(second) == []
    again = build_index(store.objects, str(photos), "photos")  # what is removed needs no second word
    assert again.key == second.key
    put(photos, "cat/2.png")
    third = build_index(store.objects, str(photos), "photos")
    assert (third.version, third.removed().tolist(), ids(third)) == (3, [], ids(second))
    assert third.digest != second.digest


def test_images_that_only_left_make_a_version_too(store: FeatureStore, photos: Path) -> None:
    build_index(store.objects, str(photos), "photos")
    shutil.rmtree(photos / "dog")
    second = build_index(store.objects, str(photos), "photos", allow_removed=True)
    assert (ids(second), second.label_names, second.removed().tolist()) == (["cat/1.png", "cat/2.png", "dog/3.png"], ["cat", "dog"], [2])


def test_a_source_back_at_an_older_version_is_refused_like_any_other_loss(store: FeatureStore, photos: Path) -> None:
    first = build_index(store.objects, str(photos), "photos")
    put(photos, "ant/0.png")
    second = build_index(store.objects, str(photos), "photos")
    shutil.rmtree(photos / "ant")
    with pytest.raises(BadInput, match=f"1 of the 4 images of {second.key}.*ant/0.png"):
        build_index(store.objects, str(photos), "photos")
    third = build_index(store.objects, str(photos), "photos", allow_removed=True)
    assert (third.version, third.removed().tolist(), len(first)) == (3, [3], 3)


@pytest.mark.parametrize("allow_removed", [False, True])
def test_a_changed_image_is_refused_because_an_id_means_one_image(store: FeatureStore, photos: Path, allow_removed: bool) -> None:
    first = build_index(store.objects, str(photos), "photos")
    (photos / "cat" / "2.png").write_bytes(png(7))
    put(photos, "ant/0.png")
    with pytest.raises(BadInput, match=rf"1 of the 3 images of {first.key} .* cat/2.png has other bytes.*--name"):
        build_index(store.objects, str(photos), "photos", allow_removed=allow_removed)


def test_other_images_under_the_name_are_another_dataset_and_the_name_is_ambiguous(
    store: FeatureStore, photos: Path, tmp_path: Path, events: Any
) -> None:
    seen, on_event = events
    put(tmp_path / "others", "cat/7.png", "cat/8.png")
    for source in (photos, tmp_path / "others"):
        index(IndexOptions(str(source), store.url, "photos"), on_event)
    put(photos, "ant/0.png")
    grown = index(IndexOptions(str(photos), store.url, "photos"), on_event)
    assert grown["version"] == 2  # of its own chain
    with pytest.raises(BadInput, match="'photos' is the name of several datasets") as error:
        store.dataset("photos")
    assert grown["dataset"] in str(error.value)
    assert grown["extends"][0] not in str(error.value)
    assert "of other images" in str(seen)


def test_a_grown_copy_elsewhere_continues_the_dataset_and_is_read_there(store: FeatureStore, photos: Path, tmp_path: Path) -> None:
    first = build_index(store.objects, str(photos), "photos")
    moved = tmp_path / "moved"
    shutil.move(photos, moved)
    put(moved, "ant/0.png")
    second = build_index(store.objects, str(moved), "photos")
    assert ids(second) == [*ids(first), "ant/0.png"]
    assert (second.source, second.row(0)) == (str(moved), first.row(0))
    assert second.read_image(0).shape == (8, 9, 3)
    shutil.copytree(moved, photos)  # and where it lay before, all of it again
    assert build_index(store.objects, str(photos), "photos").key == second.key
    assert store.dataset("photos").sources == [str(moved), str(photos)]


def test_a_copy_of_an_older_version_is_that_version_and_this_is_said(
    store: FeatureStore, photos: Path, tmp_path: Path, events: Any
) -> None:
    seen, on_event = events
    first = build_index(store.objects, str(photos), "photos")
    shutil.copytree(photos, tmp_path / "copy")
    put(photos, "ant/0.png")
    second = build_index(store.objects, str(photos), "photos")
    assert index(IndexOptions(str(tmp_path / "copy"), store.url, "photos"), on_event)["dataset"] == first.key
    assert f"photos means {second.key}, version 2" in str(seen)
    assert store.dataset(first.key).sources == [str(photos), str(tmp_path / "copy")]


def test_verify_of_a_source_knows_that_new_images_stand_behind(store: FeatureStore, photos: Path) -> None:
    build_index(store.objects, str(photos), "photos")
    put(photos, "ant/0.png")
    build_index(store.objects, str(photos), "photos")
    options = IndexOptions(str(photos), store.url, "photos", verify=True)
    assert index(options)["images"] == 4
    put(photos, "ant/1.png")
    with pytest.raises(BadInput, match=r"1 differences: ant/1\.png was added"):
        index(options)


def test_a_source_without_images_left_is_refused(store: FeatureStore, photos: Path) -> None:
    build_index(store.objects, str(photos), "photos")
    for file in photos.rglob("*.png"):
        file.unlink()
    with pytest.raises(BadInput, match="no image was found"):
        build_index(store.objects, str(photos), "photos", allow_removed=True)


def tar(path: Path, members: Sequence[str]) -> None:
    with tarfile.open(path, "w") as archive:
        for name in members:
            data = png(sum(name.encode())) if name.endswith(".png") else name[0].encode()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def grow_a_tar(source: Path, grown: bool) -> None:
    """A tar that gets longer, and a new one that sorts before it."""
    tar(source / "b.tar", ["1.png", "1.cls", "3.png", "3.cls", *(["2.png", "2.cls"] if grown else [])])
    if grown:
        tar(source / "a.tar", ["0.png", "0.cls"])


def grow_parquet(source: Path, grown: bool) -> None:
    """A file that gets rows, in another layout on the disk, and a new file."""
    for name, count in (("b.parquet", 4 if grown else 2), *((("a.parquet", 1),) if grown else ())):
        rows = [{"bytes": png(n + 100 * len(name)), "path": None} for n in range(count)]
        pq.write_table(pa.table({"image": rows, "label": [f"class {n % 3}" for n in range(count)]}), source / name, row_group_size=count)


@pytest.mark.parametrize(
    ("grow", "old", "new", "names"),
    [
        (grow_a_tar, ["b.tar/1.png", "b.tar/3.png"], ["a.tar/0.png", "b.tar/2.png"], ["1", "3", "0", "2"]),
        (grow_parquet, ["b.parquet/0", "b.parquet/1"], ["a.parquet/0", "b.parquet/2", "b.parquet/3"], ["class 0", "class 1", "class 2"]),
    ],
)
def test_archives_grow_as_folders_do(
    store: FeatureStore, tmp_path: Path, grow: Callable[[Path, bool], None], old: list[str], new: list[str], names: list[str]
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    grow(source, False)
    first = build_index(store.objects, str(source), "archives")
    grow(source, True)
    second = build_index(store.objects, str(source), "archives")
    assert (ids(first), ids(second), second.label_names) == (old, [*old, *new], names)
    for n in range(len(second)):
        assert second.read_image(n).shape == (8, 9, 3)
    assert second.sha256s(0, 2) == first.sha256s(0, 2)


def test_a_source_behind_a_url_grows_as_one_on_this_disk_does(store: FeatureStore) -> None:
    filesystem = fsspec.filesystem("memory")
    for names in (["cat/1.png", "dog/2.png"], ["ant/0.png"]):
        for name in names:
            filesystem.pipe_file(f"/grown/{name}", png(sum(name.encode())))
        dataset = build_index(store.objects, "memory://grown", "photos")
    assert (dataset.version, ids(dataset)) == (2, ["cat/1.png", "dog/2.png", "ant/0.png"])
    filesystem.rm_file("/grown/dog/2.png")
    with pytest.raises(BadInput, match="1 of the 3 images"):
        build_index(store.objects, "memory://grown", "photos")


def test_one_tar_that_became_a_folder_of_tars_is_the_next_version(store: FeatureStore, tmp_path: Path) -> None:
    grow_a_tar(tmp_path, False)
    build_index(store.objects, str(tmp_path / "b.tar"), "tars")
    (tmp_path / "tars").mkdir()
    shutil.move(tmp_path / "b.tar", tmp_path / "tars" / "b.tar")
    tar(tmp_path / "tars" / "c.tar", ["5.png"])
    second = build_index(store.objects, str(tmp_path / "tars"), "tars")
    assert (second.version, ids(second)) == (2, ["b.tar/1.png", "b.tar/3.png", "c.tar/5.png"])


def test_a_label_that_changed_is_a_change(store: FeatureStore, tmp_path: Path) -> None:
    for label in (b"a", b"b"):
        with tarfile.open(tmp_path / "x.tar", "w") as archive:
            for name, data in (("1.png", png(1)), ("1.cls", label)):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        if label == b"a":
            build_index(store.objects, str(tmp_path / "x.tar"), "tars")
    with pytest.raises(BadInput, match=r"x\.tar/1\.png has another label"):
        build_index(store.objects, str(tmp_path / "x.tar"), "tars")


def turned(path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.open(io.BytesIO(png(sum(path.name.encode())))).save(path, exif=exif)


def test_a_grown_source_keeps_the_way_in_which_its_images_are_turned(store: FeatureStore, photos: Path) -> None:
    turned(photos / "cat" / "turned.png", 6)
    first = index(IndexOptions(str(photos), store.url, "photos", orientation="stored"))
    put(photos, "ant/0.png")
    second = index(IndexOptions(str(photos), store.url, "photos"))
    assert (second["orientation"], second["version"]) == ("stored", 2)
    upright = index(IndexOptions(str(photos), store.url, "photos", orientation="upright"))  # another reading is another dataset, as ever
    assert "version" not in upright
    shapes = [dataset.read_image(int(dataset.index_of(["cat/turned.png"])[0])).shape
              for dataset in (store.dataset(made["dataset"]) for made in (second, upright))]  # fmt: skip
    assert shapes == [(8, 9, 3), (9, 8, 3)]
    assert first["dataset"] in second["extends"]


def test_a_first_turned_image_among_the_new_ones_is_no_change_of_the_old(store: FeatureStore, photos: Path) -> None:
    build_index(store.objects, str(photos), "photos")
    turned(photos / "ant" / "turned.png", 6)
    second = build_index(store.objects, str(photos), "photos")
    assert (second.version, second.orientation, second.oriented, second.earlier[0].oriented) == (2, "upright", 1, 0)
    assert second.read_image(3).shape == (9, 8, 3)


def test_dense_targets_taken_or_not_are_two_datasets_and_no_versions(store: FeatureStore, photos: Path) -> None:
    put(photos, "cat/1.seg.png")
    without = build_index(store.objects, str(photos), "photos")
    taken = build_index(store.objects, str(photos), "photos", dense_targets=True)
    assert (len(without), len(taken), taken.version) == (3, 4, 1)
    put(photos, "ant/0.png")
    grown = build_index(store.objects, str(photos), "photos")
    assert (len(grown), grown.version, grown.earlier[0].digest) == (4, 2, without.digest)


def test_a_lost_identity_and_lost_bits_come_back_from_the_images(store: FeatureStore, photos: Path) -> None:
    build_index(store.objects, str(photos), "photos")
    put(photos, "ant/0.png")
    (photos / "cat" / "2.png").unlink()
    key = build_index(store.objects, str(photos), "photos", allow_removed=True).key
    folder = Path(store.url) / "datasets" / key
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    for name in ("identity.json", "removed.bits", "index.parquet"):
        os.unlink(folder / name)
    assert restore_index(store.objects, key, str(photos))
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    (folder / "removed.bits").write_bytes(b"\0")
    with pytest.raises(CacheDamaged, match=r"removed\.bits is damaged"):
        store.dataset(key).removed()
    build_index(store.objects, str(photos), "photos")
    assert store.dataset(key).removed().tolist() == [1]


@given(
    steps=st.lists(
        st.tuples(st.sets(st.integers(0, 30), min_size=1, max_size=6), st.sets(st.integers(0, 30), max_size=2)), min_size=2, max_size=4
    )
)
@settings(max_examples=15)
def test_whatever_comes_and_goes_rows_and_labels_keep_their_numbers(tmp_path_factory: pytest.TempPathFactory, steps: Any) -> None:
    root = tmp_path_factory.mktemp("growing")
    store, source, there = FeatureStore.create(str(root / "store")), root / "source", set[str]()
    put(source, "always/here.png")
    previous: ImageDataset | None = None
    for come, go in steps:
        for number in come:
            put(source, f"{number % 4}/{number}.png")
            there.add(f"{number % 4}/{number}.png")
        for name in [name for name in there if int(name.rpartition("/")[2].partition(".")[0]) in go]:
            (source / name).unlink()
            there.discard(name)
        dataset = build_index(store.objects, str(source), "growing", allow_removed=True)
        if previous is not None:
            assert ids(dataset)[: len(previous)] == ids(previous)
            assert dataset.label_names[: len(previous.label_names)] == previous.label_names
            assert np.array_equal(dataset.labels()[: len(previous)], previous.labels())
        live = np.setdiff1d(np.arange(len(dataset)), dataset.removed())
        assert {ids(dataset)[n] for n in live} == {*there, "always/here.png"}
        assert len(set(ids(dataset))) == len(dataset)
        assert all(name is None or image.split("/")[0] == name for image, name in zip(ids(dataset), labels(dataset), strict=True))
        assert short(dataset.digest) == store.dataset("growing").key.partition("@")[2]
        previous = dataset


def examined(store: FeatureStore, images: bool) -> list[Any]:
    seen = store if images else FeatureStore(DryRunObjects(store.objects))
    examiner = Examiner(seen, None, images=images, may_write=images)
    examine(examiner)
    return examiner.findings


def test_verify_and_repair_know_what_a_version_consists_of(store: FeatureStore, photos: Path) -> None:
    first = build_index(store.objects, str(photos), "photos")
    put(photos, "ant/0.png")
    (photos / "cat" / "2.png").unlink()
    second = build_index(store.objects, str(photos), "photos", allow_removed=True)
    files = [Path(store.url, "datasets", key, name) for key, name in
             ((first.key, "index.parquet"), (second.key, "index.parquet"), (second.key, "removed.bits"))]  # fmt: skip
    assert examined(store, images=False) == []
    for file in files:
        before = file.read_bytes()
        file.write_bytes(b"x" + before[1:])
        assert len(examined(store, images=False)) == 1
        found = examined(store, images=True)  # of the first version the source has not all images any more: its newer one has its rows
        assert [one.repaired for one in found] == [True]
        assert file.read_bytes() == before
    assert examined(store, images=False) == []
