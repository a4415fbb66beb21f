"""Folders, tars and Parquet files, in good order and hostile (FAULTS 21)."""

import functools
import http.server
import io
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.core.urls import is_url
from eupe_pipeline.storage.sources import image_kinds
from eupe_pipeline.storage.sources.source_items import Skipped, SourceImage, TarEnd
from eupe_pipeline.storage.sources.sources import list_files, open_source, read_bytes, walk
from PIL import Image

from ...fault_log import Trials


def picture(seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (6, 5, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def add(archive: tarfile.TarFile, name: str, data: bytes = b"", **fields: Any) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for field, value in fields.items():
        setattr(member, field, value)
    archive.addfile(member, io.BytesIO(data))


def walked(folder: Path) -> tuple[list[SourceImage], list[Skipped]]:
    filesystem, root = open_source(str(folder))
    found = [item for path in list_files(filesystem, root) for item in walk(filesystem, root, path)]
    labels = {name: label for item in found if isinstance(item, TarEnd) for name, label in item.labels.items()}
    images = [replace(item, label=labels.get(item.image_id, item.label)) for item in found if isinstance(item, SourceImage)]
    return images, [item for item in found if isinstance(item, Skipped)]


def test_a_folder_tree_is_labelled_by_its_folders_in_a_fixed_order(tmp_path: Path) -> None:
    for name in ("dog/b.png", "cat/a.PNG", "cat/deep/c.jpg", "top.png", ".hidden/x.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(picture())
    images, skipped = walked(tmp_path)
    assert [(image.image_id, image.label) for image in images] == [
        ("cat/a.PNG", "cat"),
        ("cat/deep/c.jpg", "cat/deep"),
        ("dog/b.png", "dog"),
        ("top.png", None),
    ]
    assert not skipped


def test_a_tar_is_read_in_place_with_the_labels_beside_its_images(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        add(archive, "0001.png", picture(1))
        add(archive, "0001.cls", b"7\n")
        add(archive, "0002.json", b'{"label": "sea  gull"}')
        add(archive, "0002.left.png", picture(2))
        add(archive, "0002.right.png", picture(3))
        add(archive, "0003.png", picture(4))
        add(archive, "0004.json", b"[" * 5000)
        add(archive, "0004.png", picture(5))
    images, skipped = walked(tmp_path)
    assert [(image.image_id.removeprefix("a.tar/"), image.label) for image in images] == [
        ("0001.png", "7"),
        ("0002.left.png", "sea gull"),
        ("0002.right.png", "sea gull"),
        ("0003.png", None),
        ("0004.png", None),
    ]
    assert not skipped
    for image in images:
        assert read_bytes(str(tmp_path), image.path, "tar", image.offset, len(image.data)) == image.data
    single, _ = walked(tmp_path / "a.tar")
    assert [image.data for image in single] == [image.data for image in images]


HOSTILE: dict[str, Callable[[tarfile.TarFile], None]] = {
    "parent": lambda archive: add(archive, "../../evil.png", picture()),
    "inner parent": lambda archive: add(archive, "a/../../evil.png", picture()),
    "only parent": lambda archive: add(archive, "..", picture()),
    "absolute": lambda archive: add(archive, "/etc/evil.png", picture()),
    "symlink": lambda archive: add(archive, "link.png", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    "hard link": lambda archive: add(archive, "link.png", type=tarfile.LNKTYPE, linkname="/etc/passwd"),
    "symlink to root": lambda archive: add(archive, "d", type=tarfile.SYMTYPE, linkname="/"),
    "character device": lambda archive: add(archive, "null.png", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
    "block device": lambda archive: add(archive, "disk.png", type=tarfile.BLKTYPE),
    "fifo": lambda archive: add(archive, "pipe.png", type=tarfile.FIFOTYPE),
    "newline": lambda archive: add(archive, "a\nb.png", picture()),
    "escape": lambda archive: add(archive, "\x1b[31m.png", picture()),
    "not utf-8": lambda archive: add(archive, "\udcff\udcfe.png", picture()),
    "duplicate": lambda archive: add(archive, "good.png", picture(9)),
    "nul in a pax name": lambda archive: add(archive, "x.png", picture(), pax_headers={"path": "a\0b.png"}),
    "pax parent": lambda archive: add(archive, "x.png", picture(), pax_headers={"path": "../up.png"}),
    "pax absolute": lambda archive: add(archive, "x.png", picture(), pax_headers={"path": "/abs.png"}),
}


@pytest.mark.fault
@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_members_are_counted_and_nothing_is_written(kind: str, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        add(archive, "good.png", picture())
        HOSTILE[kind](archive)
        add(archive, "last.png", picture(2))
    with Trials(21) as trials:
        images, skipped = walked(tmp_path)
        assert [image.image_id for image in images] == ["a.tar/good.png", "a.tar/last.png"]
        assert len(skipped) == 1
        assert skipped[0].name.isprintable()
        skipped[0].name.encode()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar"]
        trials.note("detected")


@pytest.mark.fault(21, "detected")
def test_a_member_that_claims_to_be_huge_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_kinds, "MAX_FILE_BYTES", 1000)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        add(archive, "big.png", bytes(1001))
        add(archive, "good.png", picture())
    (tmp_path / "big.png").write_bytes(bytes(1001))
    images, skipped = walked(tmp_path)
    assert [image.image_id for image in images] == ["a.tar/good.png"]
    assert ["more than the limit" in item.reason for item in skipped] == [True, True]


@pytest.mark.fault(21, "detected")
@pytest.mark.parametrize("cut", [0, 1, 100, 511, 513, 700])
def test_a_cut_or_empty_tar_is_refused_by_name(tmp_path: Path, cut: int) -> None:
    with tarfile.open(tmp_path / "whole", "w") as archive:
        add(archive, "big.png", bytes(5000))
    (tmp_path / "a.tar").write_bytes((tmp_path / "whole").read_bytes()[:cut])
    (tmp_path / "whole").unlink()
    with pytest.raises(BadInput, match=r"a\.tar is not a readable tar"):
        walked(tmp_path)


@pytest.mark.fault(21, "detected")
def test_mutated_tars_give_images_skips_or_our_error(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "whole", "w", format=tarfile.PAX_FORMAT) as archive:
        for n in range(3):
            add(archive, f"{n}é.png", picture(n), pax_headers={"comment": "x" * 40})
            add(archive, f"{n}é.cls", b"1")
    good, random = (tmp_path / "whole").read_bytes(), np.random.default_rng(0)
    (tmp_path / "whole").unlink()
    for _ in range(200):
        data = bytearray(good)
        for _ in range(4):
            data[random.integers(len(data))] = int(random.integers(256))
        (tmp_path / "a.tar").write_bytes(bytes(data))
        try:
            images, _ = walked(tmp_path)
        except BadInput:
            continue
        assert all(read_bytes(str(tmp_path), image.path, "tar", image.offset, len(image.data)) == image.data for image in images)


def test_a_compressed_archive_is_left_out_with_advice(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(b"\x1f\x8b")
    _, skipped = walked(tmp_path)
    assert "plain .tar" in skipped[0].reason


@pytest.mark.parametrize("ending", [".avif", ".HEIC", ".jxl"])
def test_images_of_formats_that_are_not_read_are_counted(tmp_path: Path, ending: str) -> None:
    (tmp_path / f"photo{ending}").write_bytes(b"..")
    (tmp_path / "notes.txt").write_bytes(b"not a sample")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, data in ((f"one{ending}", b".."), ("two.png", picture(1)), ("two.cls", b"3")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    images, skipped = walked(tmp_path)
    assert [(image.image_id, image.label) for image in images] == [("a.tar/two.png", "3")]
    assert [item.name for item in skipped] == [f"a.tar/one{ending}", f"photo{ending}"]
    assert all("are not read here" in item.reason for item in skipped)


def hugging_face(path: Path, images: list[bytes | None], labels: list[Any] | None = None, name: str = "image") -> None:
    columns: dict[str, Any] = {name: [None if data is None else {"bytes": data, "path": "x.png"} for data in images]}
    if labels is not None:
        columns["label"] = labels
    pq.write_table(pa.table(columns), path, row_group_size=2)


def test_parquet_in_the_hugging_face_layout_is_read_by_row(tmp_path: Path) -> None:
    hugging_face(tmp_path / "a.parquet", [picture(1), picture(2), None, picture(3)], [4, 5, 6, None])
    images, skipped = walked(tmp_path)
    assert [(image.image_id, image.label) for image in images] == [
        ("a.parquet/0", "4"),
        ("a.parquet/1", "5"),
        ("a.parquet/3", None),
    ]
    assert [item.name for item in skipped] == ["a.parquet/2"]
    for image in images:
        assert read_bytes(str(tmp_path), image.path, "parquet", image.offset, len(image.data)) == image.data
    with pytest.raises(OSError, match="no row 9"):
        read_bytes(str(tmp_path), "a.parquet", "parquet", 9, 0)


def test_parquet_with_plain_binary_is_read_too(tmp_path: Path) -> None:
    pq.write_table(pa.table({"jpg": [picture(1)], "cls": ["x"]}), tmp_path / "a.parquet")
    images, _ = walked(tmp_path)
    assert (images[0].data, images[0].label) == (picture(1), "x")


def test_parquet_without_images_names_its_columns(tmp_path: Path) -> None:
    hugging_face(tmp_path / "a.parquet", [picture()], name="photo")
    with pytest.raises(BadInput, match="it has photo"):
        walked(tmp_path)


def test_mutated_parquet_gives_our_error_or_images(tmp_path: Path) -> None:
    hugging_face(tmp_path / "whole", [picture(n) for n in range(4)], [1, 2, 3, 4])
    good, random = (tmp_path / "whole").read_bytes(), np.random.default_rng(0)
    (tmp_path / "whole").unlink()
    for _ in range(150):
        data = bytearray(good)
        for _ in range(4):
            data[random.integers(len(data))] = int(random.integers(256))
        (tmp_path / "a.parquet").write_bytes(bytes(data))
        try:
            walked(tmp_path)
        except BadInput:
            continue


def test_a_source_that_is_not_there_is_an_error_that_the_user_can_correct(tmp_path: Path) -> None:
    for url in (str(tmp_path / "none"), "nosuchprotocol://x", str(tmp_path / "a\0b")):
        with pytest.raises(BadInput, match="source"):
            open_source(url)


def test_an_image_that_cannot_be_read_is_counted(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "bad\udcff.png").write_bytes(picture())
    images, skipped = walked(tmp_path)
    assert [image.image_id for image in images] == ["a.png"]
    assert len(skipped) == 2


class _Listing(http.server.SimpleHTTPRequestHandler):
    """A web server that lists folders and, like this one, knows no ranges."""

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """The URL of a web server over `tmp_path`."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Listing, directory=str(tmp_path))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("ending", ["", "/", "/a.tar", "/b.parquet", "/c.png"])
def test_sources_on_a_web_server_are_read_in_place(tmp_path: Path, web: str, ending: str) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for n in range(3):
            member = tarfile.TarInfo(f"{n}.png")
            member.size = len(picture(n))
            archive.addfile(member, io.BytesIO(picture(n)))
    hugging_face(tmp_path / "b.parquet", [picture(4), picture(5)])
    (tmp_path / "c.png").write_bytes(picture(6))
    filesystem, root = open_source(web + ending)
    items = [item for path in list_files(filesystem, root) for item in walk(filesystem, root, path)]
    found = [image for image in items if not isinstance(image, TarEnd)]
    assert len(found) == {"": 6, "/": 6, "/a.tar": 3, "/b.parquet": 2, "/c.png": 1}[ending]
    for image in found:
        assert isinstance(image, SourceImage)
        assert read_bytes(web + ending, image.path, image.container, image.offset, len(image.data)) == image.data


@pytest.mark.fault(27, "detected")
@pytest.mark.parametrize(
    "url",
    ["s3://KEY:hunter2@bucket/x", "https://me:hunter2@host/x", "https://host/x.tar?sig=hunter2", "zip://x::s3://KEY:hunter2@bucket/y"],
)
def test_a_source_with_secrets_in_its_url_is_refused_without_repeating_them(url: str) -> None:
    with pytest.raises(BadInput, match="environment") as refused:
        open_source(url)
    assert "hunter2" not in str(refused.value)


def test_what_is_left_of_a_url_is_no_folder() -> None:
    with pytest.raises(BadInput, match=r"did you mean 's3://bucket/x'"):
        is_url("s3:/bucket/x")
