"""Labels of a tar: each image its own, wherever it stands, and whatever cannot be used is counted and said (FAULTS 28)."""

import tarfile
from pathlib import Path
from typing import Any

import pytest
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.store import FeatureStore

from ...fault_log import Trials
from ..damaged_tars import indexed, pack, picture

P = [picture(number) for number in range(6)]


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore.create(str(tmp_path / "store"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tars").mkdir()
    return tmp_path / "tars"


def found(store: FeatureStore, folder: Path, members: dict[str, bytes], **options: Any) -> tuple[dict[str, str | None], dict[str, int]]:
    """Each image's label by member, and the counts of what was left out."""
    (folder / "a.tar").write_bytes(pack(members, tarfile.PAX_FORMAT))
    dataset, labels = indexed(store, folder, **options)
    return {name.removeprefix("a.tar/"): label for name, label in labels.items()}, dataset.left_out


LEGAL: dict[str, tuple[dict[str, bytes], dict[str, str | None]]] = {
    "labels beside images": ({"1.png": P[1], "1.cls": b"3", "2.png": P[2], "2.cls": b"4"}, {"1.png": "3", "2.png": "4"}),
    "all images, then all labels": ({"1.png": P[1], "2.png": P[2], "1.cls": b"3", "2.cls": b"4"}, {"1.png": "3", "2.png": "4"}),
    "all labels, then all images": ({"1.cls": b"3", "2.cls": b"4", "2.png": P[2], "1.png": P[1]}, {"2.png": "4", "1.png": "3"}),
    "interleaved": ({"1.png": P[1], "2.cls": b"4", "1.json": b'{"label": 3}', "2.png": P[2]}, {"1.png": "3", "2.png": "4"}),
    "two images, one label": ({"1.left.png": P[1], "1.right.png": P[2], "1.cls": b"3"}, {"1.left.png": "3", "1.right.png": "3"}),
    "two images, two files that agree": (
        {"1.left.png": P[1], "1.right.png": P[2], "1.cls": b"3", "1.json": b'{"label": 3.0}'},
        {"1.left.png": "3", "1.right.png": "3"},
    ),
    "two images, no label": ({"a.0.png": P[1], "a.1.png": P[2], "a.txt": b"hello"}, {"a.0.png": None, "a.1.png": None}),
    "a dotted name of its own": ({"photo.0000.png": P[1], "photo.0000.cls": b"3"}, {"photo.0000.png": "3"}),
    "a label named after the whole file": (
        {"1.png": P[1], "1.png.cls": b"3", "2.l.png": P[2], "2.l.png.cls": b"4"},
        {"1.png": "3", "2.l.png": "4"},
    ),
    "folders with dots": ({"v1.2/1.png": P[1], "v1.2/1.cls": b"3", "v1.3/1.png": P[2]}, {"v1.2/1.png": "3", "v1.3/1.png": None}),
    "a folder written in two ways": ({"./1.png": P[1], "1.cls": b"3"}, {"./1.png": "3"}),
    "no dot at all": ({"0001": P[1], "0001.cls": b"3"}, {"0001": "3"}),
    "capitals": ({"1.PNG": P[1], "1.CLS": b"3", "2.JPG": picture(2, "JPEG"), "2.JSON": b'{"cls": "x"}'}, {"1.PNG": "3", "2.JPG": "x"}),
    "a byte order mark": ({"1.png": P[1], "1.cls": "\ufeff3\n".encode()}, {"1.png": "3"}),
    "null beside another key": ({"1.png": P[1], "1.json": b'{"label": null, "cls": 3}'}, {"1.png": "3"}),
    "null beside a file": ({"1.png": P[1], "1.json": b'{"label": null}', "1.cls": b"3"}, {"1.png": "3"}),
    "zero": ({"1.png": P[1], "1.json": b'{"label": 0}'}, {"1.png": "0"}),
    "a label of another image's name": ({"photo.0.png": P[1], "photo.1.cls": b"3"}, {"photo.0.png": None}),
    "a number and a name": ({"1.png": P[1], "1.json": b'{"label": "cat"}', "1.cls": b"3"}, {"1.png": "3"}),
    "an image between two label files": ({"1.cls": b"3", "1.png": P[1], "1.json": b'{"label": 3}'}, {"1.png": "3"}),
}


@pytest.mark.fault
@pytest.mark.parametrize("case", LEGAL)
def test_every_image_gets_its_own_label(store: FeatureStore, folder: Path, case: str) -> None:
    members, wanted = LEGAL[case]
    with Trials(28) as trials:
        assert found(store, folder, members)[0] == wanted
        trials.note("right")


REFUSED: dict[str, tuple[dict[str, bytes], str]] = {
    "dots in names": (
        {f"photo.000{n}.{ending}": P[n] if ending == "png" else b"%d" % n for n in range(4) for ending in ("png", "cls")},
        r"photo\.0000\.png, photo\.0001\.png, photo\.0002\.png, … and photo\.0000\.cls, .* one sample, 'photo',.*4 images, 4 labels",
    ),
    "dots in names, every label the same": ({"a.0.png": P[1], "a.1.png": P[2], "a.0.cls": b"3", "a.1.cls": b"3"}, "2 images, 2 labels"),
    "dots in names, one label": ({"a.0.png": P[1], "a.1.png": P[2], "a.0.cls": b"3"}, "2 images, 1 labels"),
    "dates": ({"2023.01.05.jpg": P[1], "2023.01.06.jpg": P[2], "2023.01.05.json": b'{"cls": 1}'}, "one sample, '2023'"),
    "labels far behind": ({"a.0.png": P[1], "a.1.png": P[2], "b.png": P[3], "a.1.cls": b"3"}, "one sample, 'a'"),
    "two numbers": ({"1.png": P[1], "1.cls": b"3", "1.json": b'{"label": 4}'}, r"differ: 1\.cls says '3', 1\.json '4'"),
    "two names": ({"1.png": P[1], "1.json": b'{"label": "cat", "cls": "dog"}'}, r"1\.json says 'cat', 1\.json 'dog'"),
}


@pytest.mark.fault
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_grouped_is_refused_and_shows_how_names_are_split(store: FeatureStore, folder: Path, case: str) -> None:
    members, words = REFUSED[case]
    with Trials(28) as trials:
        with pytest.raises(BadInput, match=rf"a\.tar: .*{words}"):
            found(store, folder, members)
        trials.note("detected")


UNUSED: dict[str, tuple[dict[str, bytes], str]] = {
    "of no image": ({"2.cls": b"3"}, "labels that belong to no image"),
    "of no image, in a .json": ({"2.json": b'{"label": 3}'}, "labels that belong to no image"),
    "not UTF-8": ({"1.cls": b"\xff\xfe"}, "labels that cannot be read"),
    "UTF-16": ({"1.cls": "3".encode("utf-16")}, "labels that cannot be read"),
    "empty": ({"1.cls": b" \n"}, "labels that cannot be read"),
    "with a NUL": ({"1.cls": b"3\0"}, "labels that cannot be read"),
    "no JSON": ({"1.json": b"{"}, "labels that cannot be read"),
    "deep JSON": ({"1.json": b"[" * 5000}, "labels that cannot be read"),
    "a list": ({"1.json": b'{"label": [1, 2]}'}, "labels that cannot be read"),
    "not a number": ({"1.json": b'{"label": NaN}'}, "labels that cannot be read"),
    "half a letter": ({"1.json": b'{"label": "\\ud800"}'}, "labels that cannot be read"),
    "a long text": ({"1.cls": b"x" * 201}, "labels longer than 200 letters"),
    "a long file": ({"1.json": b'{"label": 3, "more": "' + b"x" * (1 << 20) + b'"}'}, "labels longer than 200 letters"),
    "minus one": ({"1.cls": b"-1"}, "labels of -1"),
    "minus one in a .json": ({"1.json": b'{"label": -1}'}, "labels of -1"),
}


@pytest.mark.fault
@pytest.mark.parametrize("case", UNUSED)
def test_labels_that_cannot_be_used_are_counted_and_said(store: FeatureStore, folder: Path, case: str) -> None:
    members, words = UNUSED[case]
    with Trials(28) as trials:
        said: list[dict[str, Any]] = []
        labels, left_out = found(store, folder, {"1.png": P[1], **members}, on_event=said.append)
        assert labels == {"1.png": None}
        ((what, count),) = left_out.items()
        assert (what.startswith(words), count) == (True, 1)
        assert [event["text"] for event in said if event["event"] == "warning"] == [
            f"left out of x: {what}: 1 (a.tar/{next(iter(members))})"
        ]
        trials.note("detected")


def test_a_null_label_beside_another_key_is_said(store: FeatureStore, folder: Path) -> None:
    labels, left_out = found(store, folder, {"1.png": P[1], "1.json": b'{"label": null, "cls": 3}'})
    assert labels == {"1.png": "3"}
    assert left_out == {"null labels beside another key of the same .json, which was taken": 1}


def test_members_of_other_kinds_are_counted_by_their_endings(store: FeatureStore, folder: Path) -> None:
    members = {
        "1.png": P[1],
        "1.txt": b"a cat",
        "1.json": b'{"caption": "a cat"}',
        "2.txt": b"a dog",
        "1.npy": b"\x93NUMPY",
        "README": b"hi",
    }
    _, left_out = found(store, folder, members, max_bad_share=0.0)
    assert left_out == {"files ending .txt": 2, "files ending .json": 1, "files ending .npy": 1, "files without an ending": 1}


def test_images_are_known_by_their_content_whatever_a_tar_calls_them(store: FeatureStore, folder: Path) -> None:
    members = {
        "1.image": P[1],
        "2.jpg_large": picture(2, "JPEG"),
        "3.bin": picture(3, "WEBP"),
        "4": picture(4, "GIF"),
        "5.bin": b"BM is a text",
    }
    labels, left_out = found(store, folder, {**members, "3.cls": b"7"}, max_bad_share=0.0)
    assert labels == {"1.image": None, "2.jpg_large": None, "3.bin": "7", "4": None}
    assert left_out == {"files ending .bin": 1}


@pytest.mark.fault(28, "right")
@pytest.mark.parametrize("name", ["._1.png", "a/._1.png", "__MACOSX/a/1.png", ".DS_Store", "./._1.png"])
def test_what_macos_adds_is_left_out_of_tars_as_of_folders(store: FeatureStore, folder: Path, name: str) -> None:
    data = b"\0\x05\x16\x07\0\x02\0\0Mac OS X"
    labels, left_out = found(store, folder, {name: data, "a/1.png": P[1], "a/1.cls": b"3", "a/._1.cls": data}, max_bad_share=0.0)
    assert labels == {"a/1.png": "3"}
    assert left_out == {"hidden files and folders": 2}


def test_targets_beside_an_image_are_no_training_images_unless_asked(store: FeatureStore, folder: Path) -> None:
    members = {"1.seg.png": P[1], "1.jpg": picture(2, "JPEG"), "1.depth.png": P[3], "1.cls": b"3", "2.seg.png": P[4]}
    labels, left_out = found(store, folder, members)
    assert labels == {"1.jpg": "3", "2.seg.png": None}
    assert next(iter(left_out.values())) == 2
    labels, left_out = found(store, folder, members, dense_targets=True)
    assert labels == {"1.seg.png": "3", "1.jpg": "3", "1.depth.png": "3", "2.seg.png": None}
    assert left_out == {}


def test_a_broken_target_is_no_broken_image(store: FeatureStore, folder: Path) -> None:
    labels, _ = found(store, folder, {"1.jpg": P[1], "1.seg.png": b"broken"}, max_bad_share=0.0)
    assert labels == {"1.jpg": None}


@pytest.mark.parametrize("ending", [".tar", ".zip", ".tgz", ".parquet"])
def test_an_archive_in_a_tar_counts_as_lost_images(store: FeatureStore, folder: Path, ending: str) -> None:
    members = {"1.png": P[1], f"n01440764{ending}": b"..."}
    with pytest.raises(BadInput, match=r"1 of 2 samples .*an archive within an archive"):
        found(store, folder, members, max_bad_share=0.0)
    assert found(store, folder, members)[1] == {"an archive within an archive cannot be read in place; unpack it": 1}


def test_the_order_of_images_is_that_of_the_tar(store: FeatureStore, folder: Path) -> None:
    members = {f"{number}.png": P[number] for number in (3, 1, 2)} | {f"{number}.cls": b"x" for number in (1, 2, 3)}
    assert list(found(store, folder, members)[0]) == ["3.png", "1.png", "2.png"]
