"""An index is its content's digest; broken images are counted; a source that changes under a cache is refused (FAULTS 15)."""

import io
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from eupe_pipeline.storage.core.errors import BadInput, CacheDamaged, CacheMismatch
from eupe_pipeline.storage.images import dataset as dataset_file
from eupe_pipeline.storage.images import index_rows, publishing
from eupe_pipeline.storage.images.dataset import ImageDataset
from eupe_pipeline.storage.images.indexing import build_index
from eupe_pipeline.storage.images.verify_source import source_differences, verify_source
from eupe_pipeline.storage.store import FeatureStore
from PIL import Image

from ...fault_log import Trials
from ..made_up_store import write_images


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore.create(str(tmp_path / "store"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_images(tmp_path / "photos", 12)


def test_what_is_indexed_is_what_lies_there(store: FeatureStore, photos: Path) -> None:
    found = build_index(store.objects, str(photos), "photos")
    assert len(found) == 12
    assert found.label_names == ["class0", "class1", "class2"]
    assert found.labels().tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert found.ids(3, 5) == ["class0/0009.png", "class1/0001.png"]
    for n in range(12):
        wanted = np.asarray(Image.open(photos / found.row(n).id))
        np.testing.assert_array_equal(found.read_image(n), wanted)
        assert found.sizes_hw(n, n + 1).tolist() == [list(wanted.shape[:2])]
    verify_source(found)


def test_the_same_content_is_the_same_dataset_wherever_it_lies(store: FeatureStore, photos: Path, tmp_path: Path) -> None:
    first = build_index(store.objects, str(photos), "photos")
    assert build_index(store.objects, str(photos), "photos").key == first.key
    shutil.copytree(photos, tmp_path / "elsewhere")
    for _ in range(2):
        assert build_index(store.objects, str(tmp_path / "elsewhere"), "photos").key == first.key
    assert store.list_datasets() == [first.key]
    assert store.dataset("photos").sources == [str(photos), str(tmp_path / "elsewhere")]


def test_images_that_moved_are_read_at_the_place_that_was_indexed_since(store: FeatureStore, photos: Path, tmp_path: Path) -> None:
    first = build_index(store.objects, str(photos), "photos")
    wanted = first.read_image_bytes(3)
    shutil.copytree(photos, tmp_path / "copy")
    photos.rename(tmp_path / "moved")
    with pytest.raises(CacheMismatch, match=r"is not at .*photos"):
        first.read_image_bytes(3)
    build_index(store.objects, str(tmp_path / "copy"), "photos")
    build_index(store.objects, str(tmp_path / "moved"), "photos")
    assert first.read_image_bytes(3) == wanted
    verify_source(first, source=str(tmp_path / "moved"))
    edit_in_place(tmp_path / "copy" / first.row(3).path)
    assert store.dataset("photos").read_image_bytes(3) == wanted, "the other copy still has it"
    edit_in_place(tmp_path / "moved" / first.row(3).path)
    with pytest.raises(CacheMismatch, match=f"image {first.row(3).id} .* is not at"):
        store.dataset("photos").read_image_bytes(3)


def test_an_altered_place_is_damage(store: FeatureStore, photos: Path, tmp_path: Path) -> None:
    first = build_index(store.objects, str(photos), "photos")
    shutil.copytree(photos, tmp_path / "copy")
    build_index(store.objects, str(tmp_path / "copy"), "photos")
    (note,) = Path(store.url, "datasets", first.key, "places").iterdir()
    for data in (note.read_bytes().replace(b"/copy", b"/c0py"), b"{}", b"", b"[1]"):
        note.unlink()
        note.write_bytes(data)
        with pytest.raises(CacheDamaged, match="places/"):
            _ = first.sources


def test_an_archive_that_was_packed_anew_needs_another_name(store: FeatureStore, photos: Path, tmp_path: Path) -> None:
    for folder, padding in (("one", 0), ("two", 700)):
        (tmp_path / folder).mkdir()
        with tarfile.open(tmp_path / folder / "a.tar", "w") as archive:
            if padding:
                member = tarfile.TarInfo("notes.txt")
                member.size = padding
                archive.addfile(member, io.BytesIO(bytes(padding)))
            for path in sorted(photos.rglob("*.png")):
                archive.add(path, path.name)
    first = build_index(store.objects, str(tmp_path / "one"), "photos")
    with pytest.raises(BadInput, match=r"at other places within its files.*another name"):
        build_index(store.objects, str(tmp_path / "two"), "photos")
    other = build_index(store.objects, str(tmp_path / "two"), "packed-anew")
    assert (other.digest, other.read_image_bytes(5)) == (first.digest, first.read_image_bytes(5))


@pytest.mark.parametrize("container", ["folder", "tar", "parquet"])
def test_sources_behind_a_url_give_the_dataset_that_they_give_on_this_disk(
    store: FeatureStore, photos: Path, tmp_path: Path, container: str
) -> None:
    source = photos
    if container == "tar":
        source = tmp_path / "tars"
        source.mkdir()
        with tarfile.open(source / "a.tar", "w") as archive:
            archive.add(photos, "photos")
    if container == "parquet":
        source = tmp_path / "tables"
        source.mkdir()
        cells = [{"image": {"bytes": path.read_bytes()}, "label": 1} for path in sorted(photos.rglob("*.png"))]
        pq.write_table(pa.Table.from_pylist(cells), source / "a.parquet")
    url = f"memory://sources/{container}"
    filesystem, root = fsspec.url_to_fs(url)
    filesystem.put(str(source), root, recursive=True)
    here, there = build_index(store.objects, str(source), "here"), build_index(store.objects, url, "there")
    assert there.digest == here.digest
    assert [there.read_image_bytes(n) for n in range(12)] == [here.read_image_bytes(n) for n in range(12)]
    verify_source(there)
    filesystem.rm(root, recursive=True)


def test_rows_and_labels_come_back_from_disk_in_order(
    store: FeatureStore, photos: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The file of waiting rows is written and read in blocks; neither their size nor that of the tables changes the dataset."""
    whole = build_index(store.objects, str(photos), "photos")
    monkeypatch.setattr(index_rows, "_BLOCK_ROWS", 5)
    other = FeatureStore.create(str(tmp_path / "other"))
    found = build_index(other.objects, str(photos), "photos")
    name = f"datasets/{whole.key}/index.parquet"
    assert found.key == whole.key
    assert other.objects.read(name) == store.objects.read(name)


def test_an_index_takes_no_memory_that_grows_with_its_images(tmp_path: Path) -> None:
    """Twenty times the rows, and not twenty more megabytes: in a process of its own, whose peak is its own."""
    script = (
        "import re, numpy as np\n"
        "from eupe_pipeline.storage.images import index_rows as r\n"
        "from eupe_pipeline.storage.images.dataset import ImageRow\n"
        "def peak(): return int(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1])\n"
        "def build(count):\n"
        "    with r.IndexRows() as rows:\n"
        "        for n in range(count): rows.add(ImageRow(f'{n:060d}', 'a.tar', 'tar', n, 1, b'%032d' % n, 1, 1, n % 3))\n"
        "        return sum(len(table) for table in rows.tables(20_000, np.array([2, 1, 0, -1], np.int32)))\n"
        "build(20_000); before = peak(); assert build(400_000) == 400_000; print(peak() - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 120_000  # kB; the file of 400,000 rows has 65 MB and is mapped, the rows as objects would be 300 MB


def test_numeric_labels_are_in_the_order_of_numbers(store: FeatureStore, tmp_path: Path) -> None:
    for label in ("10", "9", "2", "x"):
        (tmp_path / "n" / label).mkdir(parents=True)
        Image.new("RGB", (4, 4), (int(label, 36), 0, 0)).save(tmp_path / "n" / label / "a.png")
    assert build_index(store.objects, str(tmp_path / "n"), "n").label_names == ["2", "9", "10", "x"]


def test_a_large_index_is_in_parts_and_each_is_checked(
    store: FeatureStore, photos: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = build_index(store.objects, str(photos), "photos")
    ids, rows = whole.ids(0, 12), [whole.row(n) for n in range(12)]
    for module in (dataset_file, publishing):
        monkeypatch.setattr(module, "ROW_GROUP", 2)
        monkeypatch.setattr(module, "PART_IMAGES", 4)
    other = FeatureStore.create(str(tmp_path / "other"))
    parts = build_index(other.objects, str(photos), "photos")
    assert parts.key == whole.key
    assert sorted(other.objects.names(f"datasets/{parts.key}")) == ["identity.json", "index.1.parquet", "index.2.parquet", "index.parquet"]
    assert parts.ids(0, 12) == ids
    assert parts.ids(3, 9) == ids[3:9]
    assert [parts.row(n) for n in range(12)] == rows
    path = tmp_path / "other/datasets" / parts.key / "index.1.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    fresh = other.dataset("photos")
    assert fresh.ids(0, 4) == ids[:4]
    with pytest.raises(CacheDamaged, match=r"index\.1\.parquet is damaged"):
        fresh.ids(2, 6)


@pytest.mark.parametrize("span", [(-1, 3), (0, 13), (5, 4)])
def test_images_outside_are_refused(store: FeatureStore, photos: Path, span: tuple[int, int]) -> None:
    found = build_index(store.objects, str(photos), "photos")
    with pytest.raises(BadInput, match="which has 12"):
        found.ids(*span)
    with pytest.raises(BadInput, match="which has 12"):
        found.row(12)


@pytest.mark.parametrize("name", ["", "a/b", "a@b", "../x", ".x", "-x", "a b", "x" * 101])
def test_a_name_that_no_folder_can_have_is_refused(store: FeatureStore, photos: Path, name: str) -> None:
    with pytest.raises(BadInput, match="name of a dataset"):
        build_index(store.objects, str(photos), name)


def test_few_broken_images_are_counted_and_named_and_many_stop_the_run(store: FeatureStore, photos: Path) -> None:
    (photos / "class0/broken.png").write_bytes(b"not an image")
    with pytest.raises(BadInput, match=r"1 of 13 samples .*class0/broken\.png.*--max-bad-share"):
        build_index(store.objects, str(photos), "photos")
    found = build_index(store.objects, str(photos), "photos", max_bad_share=0.1)
    assert len(found) == 12
    assert list(found.skipped) == ["class0/broken.png"]
    assert store.dataset("photos").skipped == found.skipped
    verify_source(found)


def test_what_was_left_out_is_said_although_the_dataset_stands_already(store: FeatureStore, photos: Path) -> None:
    whole, events = build_index(store.objects, str(photos), "photos"), list[dict[str, object]]()
    (photos / "class0/empty.png").write_bytes(b"")
    again = build_index(store.objects, str(photos), "photos", max_bad_share=0.1, on_event=events.append)
    assert again.key == whole.key
    assert list(again.skipped) == ["class0/empty.png"]
    (warning,) = [str(event["text"]) for event in events if event["event"] == "warning"]
    assert "1 of 13 samples (class0/empty.png: not an image" in warning


@pytest.mark.parametrize("content", ["nothing", "text", "empty tar"])
def test_a_source_without_images_is_refused(store: FeatureStore, tmp_path: Path, content: str) -> None:
    (tmp_path / "source").mkdir()
    if content == "text":
        (tmp_path / "source/readme.txt").write_text("hello")
    if content == "empty tar":
        with tarfile.open(tmp_path / "source/a.tar", "w"):
            pass
    with pytest.raises(BadInput, match="no image was found"):
        build_index(store.objects, str(tmp_path / "source"), "x")


def reencode(path: Path) -> None:
    Image.open(path).save(path, compress_level=0)


def edit_in_place(path: Path) -> None:
    """The same size, the same time stamp, one other byte."""
    stamp = path.stat()
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(bytes(data))
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))


def swap_with_another(path: Path) -> None:
    other = next(found for found in sorted(path.parents[1].rglob("*.png")) if found != path)
    held = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(held)


CHANGES: dict[str, Callable[[Path], object]] = {
    "replaced": lambda path: Image.new("RGB", (9, 9)).save(path),
    "re-encoded": reencode,
    "edited in place": edit_in_place,
    "renamed": lambda path: path.rename(path.with_name("0005.png.png")),
    "moved to another label": lambda path: path.rename(path.parents[1] / f"class{(int(path.parent.name[-1]) + 1) % 3}" / path.name),
    "added": lambda path: Image.new("RGB", (9, 9)).save(path.with_name("9999.png")),
    "removed": lambda path: path.unlink(),
    "emptied": lambda path: path.write_bytes(b""),
    "two exchanged": swap_with_another,
    "all gone": lambda path: shutil.rmtree(path.parents[1]),
}


@pytest.mark.fault
@pytest.mark.parametrize("change", CHANGES)
def test_a_source_that_changed_is_refused_and_the_image_named(store: FeatureStore, photos: Path, tmp_path: Path, change: str) -> None:
    found = build_index(store.objects, str(photos), "photos")
    shutil.copytree(photos, tmp_path / "good")
    with Trials(15) as trials:
        for n in range(7):
            CHANGES[change](photos / found.row(n).id)
            with pytest.raises(CacheMismatch, match=r"changed since it was indexed .*(class|photos)"):
                verify_source(found)
            if change != "added":
                with pytest.raises(CacheMismatch, match="index the source again"):
                    [found.read_image(image) for image in range(len(found))]
            assert change == "all gone" or source_differences(found)
            trials.note("detected")
            shutil.rmtree(photos, ignore_errors=True)
            shutil.copytree(tmp_path / "good", photos)
        verify_source(found)


def test_members_of_a_tar_that_were_reordered_are_found(store: FeatureStore, photos: Path, tmp_path: Path) -> None:
    def pack(names: list[Path]) -> None:
        with tarfile.open(tmp_path / "tars/a.tar", "w") as archive:
            for path in names:
                archive.add(path, path.name)

    (tmp_path / "tars").mkdir()
    names = sorted(photos.rglob("*.png"))
    pack(names)
    found = build_index(store.objects, str(tmp_path / "tars"), "tars")
    verify_source(found)
    pack(names[::-1])
    assert source_differences(found) == ["the images are in another order"]


def test_threads_may_share_a_dataset(store: FeatureStore, photos: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    found: ImageDataset = build_index(store.objects, str(photos), "photos")
    with ThreadPoolExecutor(8) as pool:
        shapes = list(pool.map(lambda n: found.read_image(n % 12).shape[:2], range(96)))
    assert shapes == [tuple(size) for size in found.sizes_hw(0, 12).tolist()] * 8


def test_an_unfinished_index_is_completed_by_the_next_run(store: FeatureStore, photos: Path) -> None:
    found = build_index(store.objects, str(photos), "photos")
    folder = Path(store.url, "datasets", found.key)
    (folder / "identity.json").unlink()
    with pytest.raises(CacheDamaged, match=r"no identity\.json.*again"):
        store.dataset("photos")
    assert build_index(store.objects, str(photos), "photos").ids(0, 12) == found.ids(0, 12)
    (folder / "identity.json").unlink()
    (folder / "index.parquet").write_bytes(b"PAR1 half")
    assert build_index(store.objects, str(photos), "photos").ids(0, 12) == found.ids(0, 12)
