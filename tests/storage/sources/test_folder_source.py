"""Folders: links are followed, nothing but files is opened, and whatever is left out is counted and said (FAULTS 29)."""

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from eupe_pipeline.storage.core.errors import BadInput, CacheMismatch
from eupe_pipeline.storage.images.verify_source import verify_source
from eupe_pipeline.storage.store import FeatureStore

from ...fault_log import Trials
from ..damaged_tars import indexed, pack, picture

NOBODY = 65534


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore.create(str(tmp_path / "store"))


def write_photos(folder: Path) -> Path:
    """Two classes; what links lead to lies beside the source."""
    for name in ("photos/cat/1.png", "photos/dog/2.png", "elsewhere/3.png", "elsewhere/deep/4.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture(int(Path(name).stem)))
    return folder / "photos"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_photos(tmp_path)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter and write to, unlike pytest's own."""
    with tempfile.TemporaryDirectory(prefix="eupe-tests-") as name:
        os.chmod(name, 0o777)
        if not all(parent.stat().st_mode & 0o001 for parent in Path(name).parents):
            pytest.skip("the folder for temporary files is closed to other users")
        yield Path(name)


Labels = dict[str, str | None]
BOTH: Labels = {"cat/1.png": "cat", "dog/2.png": "dog"}
BIRDS: Labels = {"bird/3.png": "bird", "bird/deep/4.png": "bird/deep"}


def link(photos: Path, name: str, to: Path | str) -> Path:
    (photos / name).symlink_to(to)
    return photos / name


LINKS: dict[str, tuple[Callable[[Path], object], Labels, dict[str, int]]] = {
    "a class folder elsewhere": (lambda photos: link(photos, "bird", photos.parent / "elsewhere"), BOTH | BIRDS, {}),
    "a relative link": (lambda photos: link(photos, "bird", "../elsewhere"), BOTH | BIRDS, {}),
    "a link to a link": (
        lambda photos: (link(photos.parent, "via", "elsewhere"), link(photos, "bird", photos.parent / "via")),
        BOTH | BIRDS,
        {},
    ),
    "the same folder twice": (
        lambda photos: (link(photos, "bird", "../elsewhere/deep"), link(photos, "fowl", "../elsewhere/deep")),
        BOTH | {"bird/4.png": "bird", "fowl/4.png": "fowl"},
        {},
    ),
    "a class linked under another name": (lambda photos: link(photos, "kitten", "cat"), BOTH | {"kitten/1.png": "kitten"}, {}),
    "a link to an image": (lambda photos: link(photos, "cat/9.png", "../dog/2.png"), BOTH | {"cat/9.png": "cat"}, {}),
    "a loop": (lambda photos: link(photos, "cat/loop", ".."), BOTH, {"links that lead back to a folder above them": 1}),
    "a loop of one": (lambda photos: link(photos, "cat/here", "."), BOTH, {"links that lead back to a folder above them": 1}),
    "a loop over another folder": (
        lambda photos: (link(photos, "bird", "../elsewhere"), link(photos.parent / "elsewhere", "back", photos)),
        BOTH | BIRDS,
        {"links that lead back to a folder above them": 1},
    ),
    "two folders that hold each other": (
        lambda photos: (link(photos, "cat/dogs", "../dog"), link(photos, "dog/cats", "../cat")),
        BOTH | {"cat/dogs/2.png": "cat/dogs", "dog/cats/1.png": "dog/cats"},
        {"links that lead back to a folder above them": 2},
    ),
    "a link to nothing": (lambda photos: link(photos, "bird", "nowhere"), BOTH, {"a link to something that is not there": 1}),
    "a link to itself": (lambda photos: link(photos, "me.png", "me.png"), BOTH, {"cannot be read (Too many levels of symbolic links)": 1}),
    "a hidden folder": (lambda photos: link(photos, ".git", "../elsewhere"), BOTH, {"hidden files and folders": 1}),
}


@pytest.mark.fault
@pytest.mark.timeout(30)
@pytest.mark.parametrize("case", LINKS)
def test_links_are_followed_and_loops_end(store: FeatureStore, photos: Path, case: str) -> None:
    make, wanted, left_out = LINKS[case]
    make(photos)
    with Trials(29) as trials:
        dataset, labels = indexed(store, photos)
        assert labels == wanted
        assert dataset.left_out == left_out
        assert [dataset.read_image_bytes(n)[:4] for n in range(len(dataset))] == [b"\x89PNG"] * len(dataset)
        verify_source(dataset)
        trials.note("right")


def test_a_broken_link_is_a_lost_image_and_stops_the_run(store: FeatureStore, photos: Path) -> None:
    link(photos, "bird", "nowhere")
    with pytest.raises(BadInput, match=r"1 of 3 samples .*bird: a link to something that is not there"):
        indexed(store, photos, max_bad_share=0.001)


def test_a_tar_behind_a_linked_folder_is_read_in_place(store: FeatureStore, photos: Path) -> None:
    (photos.parent / "elsewhere/a.tar").write_bytes(pack({"7.png": picture(7), "7.cls": b"seven"}))
    link(photos, "more", "../elsewhere")
    dataset, labels = indexed(store, photos)
    assert labels["more/a.tar/7.png"] == "seven"
    assert dataset.read_image_bytes(dataset.ids(0, len(dataset)).index("more/a.tar/7.png")) == picture(7)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        here = os.getcwd()
        os.chdir(path.parent)  # the path of a socket may have 108 bytes
        try:
            one.bind(path.name)
        finally:
            os.chdir(here)


def make_device(path: Path) -> None:
    os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5))  # /dev/zero, which never ends


SPECIAL: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "socket": make_socket,
    "link to a device": lambda path: path.symlink_to("/dev/zero"),
    "device": make_device,
}


@pytest.mark.fault
@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", ["9.png", "9", "9.tar", "9.parquet", "9.zip", "9.heic"])
@pytest.mark.parametrize("kind", SPECIAL)
def test_pipes_sockets_and_devices_are_counted_and_never_opened(store: FeatureStore, photos: Path, kind: str, name: str) -> None:
    try:
        SPECIAL[kind](photos / "cat" / name)
    except PermissionError:
        pytest.skip("only root makes devices")
    with Trials(29) as trials:
        dataset, labels = indexed(store, photos, max_bad_share=0.0)
        assert labels == BOTH
        assert dataset.left_out == {"pipes, sockets and devices": 1}
        assert dataset.skipped == {f"cat/{name}": "pipes, sockets and devices"}
        trials.note("right")


@pytest.mark.timeout(30)
@pytest.mark.parametrize("kind", ["pipe", "socket", "link to a device"])
def test_a_pipe_is_no_source(store: FeatureStore, photos: Path, kind: str) -> None:
    SPECIAL[kind](photos.parent / "photo.png")
    with pytest.raises(BadInput, match=r"photo\.png is neither a folder nor a file"):
        indexed(store, photos.parent / "photo.png")


ENDINGS: dict[str, tuple[str, bytes]] = {
    "jpg": ("jpg", picture(1, "JPEG")),
    "jfif": ("jfif", picture(1, "JPEG")),
    "jpe": ("jpe", picture(1, "JPEG")),
    "pgm": ("pgm", b"P5\n# a comment\n2 2\n255\n\1\2\3\4"),
    "pbm": ("pbm", b"P4 8 1\n\xff"),
    "pnm": ("pnm", picture(1, "PPM")),
    "apng": ("apng", picture(1)),
    "none": ("", picture(1)),
    "a number": ("jpg.1", picture(1, "JPEG")),
    "of a web page": ("jpg_large", picture(1, "JPEG")),
    "of another format": ("dat", picture(1, "BMP")),
    "TIFF": ("image", picture(1, "TIFF")),
    "WebP": ("picture", picture(1, "WEBP")),
    "GIF": ("thumb", picture(1, "GIF")),
    "capitals": ("JFIF", picture(1, "JPEG")),
    "a .png that is a JPEG": ("png", picture(1, "JPEG")),
}


@pytest.mark.fault(29, "right")
@pytest.mark.parametrize("case", ENDINGS)
def test_every_format_that_is_read_is_indexed_whatever_its_ending(store: FeatureStore, photos: Path, case: str) -> None:
    ending, data = ENDINGS[case]
    name = f"cat/photo.{ending}".rstrip(".")
    (photos / name).write_bytes(data)
    dataset, labels = indexed(store, photos, max_bad_share=0.0)
    assert labels == BOTH | {name: "cat"}
    image = dataset.ids(0, 3).index(name)
    assert dataset.read_image(image).shape[:2] == tuple(dataset.sizes_hw(image, image + 1)[0])
    assert dataset.left_out == {}


def test_what_is_no_image_is_counted_by_its_ending_in_a_line_each(store: FeatureStore, photos: Path) -> None:
    for name in ("cat/a.txt", "cat/b.TXT", "c.csv", "dog/LICENSE", "dog/Thumbs.db", "cat/.DS_Store", "BM.note"):
        (photos / name).write_bytes(b"BM is how this text begins, P1 is in it")
    said: list[dict[str, Any]] = []
    dataset, labels = indexed(store, photos, max_bad_share=0.0, on_event=said.append)
    assert labels == BOTH
    wanted = {"files ending .txt": 2, "files ending .csv": 1, "files without an ending": 1, "files ending .db": 1, "files ending .note": 1}
    assert dataset.left_out == wanted | {"hidden files and folders": 1}
    assert dataset.skipped == {}
    lines = [str(event["text"]) for event in said if event["event"] == "note"]
    assert "left out of x: files ending .txt: 2 (cat/a.txt; cat/b.TXT)" in lines
    assert len(lines) == 6
    assert store.dataset("x").left_out == dataset.left_out


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.heic", b"..."),
        ("a.dng", b"II*\0 a camera's own"),
        ("a.NEF", b"MM\0* a camera's own"),
        ("a.jxl", b"..."),
        ("a", b"\0\0\0\x20ftypheic\0\0\0\0"),
        ("a.bin", b"\0\0\0\x20ftypavif\0\0\0\0"),
        ("a.bin", b"\0\0\0\x0cjP  \r\n\x87\n"),
    ],
)
def test_images_of_formats_that_are_not_read_are_lost_images(store: FeatureStore, photos: Path, name: str, data: bytes) -> None:
    (photos / name).write_bytes(data)
    with pytest.raises(BadInput, match=r"1 of 3 samples .*are not read here"):
        indexed(store, photos, max_bad_share=0.0)


def test_no_image_at_all_says_what_there_is(store: FeatureStore, tmp_path: Path) -> None:
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars/a.txt").write_text("hello")
    with pytest.raises(BadInput, match=r"no image was found .*files ending \.txt: 1 \(a\.txt\)"):
        indexed(store, tmp_path / "tars")


def test_targets_beside_an_image_are_no_training_images_unless_asked(store: FeatureStore, photos: Path) -> None:
    for name in ("cat/1.seg.png", "cat/1.depth.png", "dog/3.mask.png"):
        (photos / name).write_bytes(picture(8))
    plain, labels = indexed(store, photos, max_bad_share=0.0)
    assert labels == BOTH | {"dog/3.mask.png": "dog"}, "a mask without its image is an image"
    assert list(plain.left_out.values()) == [2]
    verify_source(store.dataset("x"))
    asked = FeatureStore.create(str(photos.parent / "asked"))
    dataset, labels = indexed(asked, photos, dense_targets=True)
    assert labels == BOTH | {"cat/1.seg.png": "cat", "cat/1.depth.png": "cat", "dog/3.mask.png": "dog"}
    verify_source(dataset)


def test_targets_that_came_later_change_nothing(store: FeatureStore, photos: Path) -> None:
    first, _ = indexed(store, photos)
    (photos / "cat/1.seg.png").write_bytes(picture(8))
    assert indexed(store, photos)[0].key == first.key
    verify_source(store.dataset("x"))
    (photos / "cat/5.png").write_bytes(picture(5))
    with pytest.raises(CacheMismatch, match=r"cat/5\.png was added"):
        verify_source(store.dataset("x"))


BAD_NAMES = ["new\nline", "\x1b[31m", os.fsdecode(b"caf\xe9"), "tab\t"]


@pytest.mark.fault
@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_tar_whose_own_name_can_stand_in_no_id_is_refused(store: FeatureStore, photos: Path, name: str) -> None:
    with Trials(29) as trials:
        for place in (f"{name}.tar", f"{name}/a.tar", f"{name}.parquet"):
            (photos / place).parent.mkdir(exist_ok=True)
            (photos / place).write_bytes(pack({"1.png": picture(1)}))
            with pytest.raises(BadInput, match=r"has a name with control characters or bytes that are not UTF-8.*rename it"):
                indexed(store, photos)
            (photos / place).unlink()
            trials.note("detected")


@pytest.mark.parametrize("name", BAD_NAMES)
def test_an_image_or_a_text_of_such_a_name_is_counted(store: FeatureStore, photos: Path, name: str) -> None:
    (photos / f"{name}.png").write_bytes(picture(1))
    (photos / f"{name}.txt").write_text("hello")
    dataset, labels = indexed(store, photos)
    assert labels == BOTH
    assert dataset.left_out == {"a name with control characters or bytes that are not UTF-8": 1, "files ending .txt": 1}
    assert all(key.isprintable() for key in dataset.skipped)


def test_a_source_whose_path_is_no_text_is_refused(store: FeatureStore, photos: Path) -> None:
    moved = photos.rename(photos.with_name(os.fsdecode(b"caf\xe9")))
    with pytest.raises(BadInput, match=r"source's path .*not UTF-8"):
        indexed(store, moved)


def as_nobody(store: Path, source: Path) -> "subprocess.CompletedProcess[str]":
    """`index` as a user whom permissions bind, unlike root."""
    command = [sys.executable, "-m", "eupe_pipeline.pipeline", "index", str(source), "--store", str(store), "--name", "x", "--json"]
    if os.geteuid() != 0:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    # Root's own folders, Python's library too, are closed to others: a first run imports all, then the child gives up being root.
    script = (
        "import os, sys, tempfile; from eupe_pipeline.pipeline.commands.main import main\n"
        "main(['index', '/nowhere', *sys.argv[3:]])\n"
        f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY}); tempfile.tempdir = None; sys.exit(main(sys.argv[1:]))"
    )
    return subprocess.run([sys.executable, "-c", script, *command[3:]], capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.fault
@pytest.mark.parametrize("what", ["folder", "linked folder", "folder above a link", "image", "tar", "table", "text"])
def test_what_may_not_be_read_is_named(open_folder: Path, what: str) -> None:
    photos = write_photos(open_folder)
    names = {"folder": "dog", "linked folder": "bird", "folder above a link": "bird", "image": "cat/9.png"}
    name = names.get(what, {"tar": "a.tar", "table": "a.parquet", "text": "notes"}.get(what, ""))
    if "link" in what:
        link(photos, name, "../elsewhere" if what == "linked folder" else "../elsewhere/deep")
        (open_folder / "elsewhere").chmod(0)
    elif what == "folder":
        (photos / name).chmod(0)
    else:
        (photos / name).write_bytes(picture(1))
        (photos / name).chmod(0)
    with Trials(29) as trials:
        done = as_nobody(open_folder / "store", photos)
        (open_folder / "elsewhere").chmod(0o755)
        (photos / "dog").chmod(0o755)
        assert done.returncode == 2, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        assert name in done.stderr
        assert "cannot be read" in done.stderr
        trials.note("detected")


def test_the_command_says_what_it_left_out_in_both_forms(tmp_path: Path, photos: Path) -> None:
    (photos / "notes.txt").write_text("hello")
    os.mkfifo(photos / "cat/pipe.png")
    command = [sys.executable, "-m", "eupe_pipeline.pipeline", "index", str(photos), "--store", str(tmp_path / "store"), "--name", "x"]
    plain = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert "left out of x: files ending .txt: 1 (notes.txt)" in plain.stderr
    assert "left out of x: pipes, sockets and devices: 1 (cat/pipe.png)" in plain.stderr
    result = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()[-1]
    assert json.loads(result)["left_out"] == {"pipes, sockets and devices": 1, "files ending .txt": 1}
