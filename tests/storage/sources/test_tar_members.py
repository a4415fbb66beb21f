"""A tar is read to its last byte: what was cut, flipped, overwritten or joined is refused with its place (FAULTS 28)."""

import gzip
import io
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.sources.tar_members import TarMembers
from eupe_pipeline.storage.store import FeatureStore

from ...fault_log import Trials
from ..damaged_tars import LONG, Pristine, indexed, pack, picture, pristine

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore.create(str(tmp_path / "store"))


@pytest.fixture(params=FORMATS)
def good(request: pytest.FixtureRequest) -> Pristine:
    names = ("0001", "0002", "é3", "a/0004") if request.param == "ustar" else ("0001", "é2", LONG + "3", "a/0004")
    return pristine(FORMATS[request.param], names)


def members(data: bytes) -> list[str]:
    return [member.name for member in TarMembers(io.BytesIO(data), "a.tar")]


def indexed_or_refused(store: FeatureStore, folder: Path, data: bytes) -> tuple[dict[str, str | None], bool] | None:
    """The labels of a damaged tar's images by id, and whether something is said; None where it is refused, with its name and a byte."""
    folder.mkdir(exist_ok=True)
    (folder / "a.tar").write_bytes(data)
    refused = None
    try:
        dataset, labels = indexed(store, folder)
        return labels, bool(dataset.left_out)
    except BadInput as error:
        refused = str(error)
    assert "a.tar is not a readable tar" in refused
    assert "at byte" in refused
    return None


def tried(store: FeatureStore, folder: Path, data: bytes, good: Pristine, trials: Trials) -> None:
    """Index a damaged tar: it must be refused, or give every image with its own label."""
    found = indexed_or_refused(store, folder, data)
    assert found is None or found[0] == good.labels
    trials.note("right" if found else "detected")


def test_a_good_tar_of_each_format_is_read_whole(good: Pristine, store: FeatureStore, tmp_path: Path) -> None:
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars/a.tar").write_bytes(good.data)
    dataset, labels = indexed(store, tmp_path / "tars")
    assert labels == good.labels
    assert (dataset.skipped, dataset.left_out) == ({}, {})


def flip(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def flipped_in_headers(store: FeatureStore, folder: Path, good: Pristine, flips: int, seed: int) -> None:
    """Flip single bits of headers and of what extends them.

    No checksum covers a letter of a name that stands in one place only: it becomes another name, and its label belongs to no image.
    """
    random = np.random.default_rng(seed)
    with Trials(28) as trials:
        for header in random.choice(good.headers[:-1], flips):
            bit = int(header) * 8 + int(random.integers(512 * 8))
            found = indexed_or_refused(store, folder, flip(good.data, bit))
            if found is not None and found[0] != good.labels:
                assert_one_name_changed(found[0], good.labels)
                assert found[1], "the label that lost its image is said"
            trials.note("right" if found is not None and found[0] == good.labels else "detected")


def assert_one_name_changed(labels: dict[str, str | None], wanted: dict[str, str]) -> None:
    """No image is lost, and none has the label of another one."""
    assert len(labels) >= len(wanted) - 1
    strangers = [label for name, label in labels.items() if name not in wanted]
    assert strangers in ([], [None])
    assert all(label in (wanted[name], None) for name, label in labels.items() if name in wanted)


@pytest.mark.fault
def test_a_flipped_bit_of_a_header_is_found(good: Pristine, store: FeatureStore, tmp_path: Path) -> None:
    flipped_in_headers(store, tmp_path / "tars", good, 40, 0)


@pytest.mark.long
@pytest.mark.fault
def test_many_flipped_bits_of_headers_are_found(good: Pristine, store: FeatureStore, tmp_path: Path) -> None:
    flipped_in_headers(store, tmp_path / "tars", good, 620, 1)


@pytest.mark.fault
def test_zeros_over_a_header_are_found(good: Pristine, store: FeatureStore, tmp_path: Path) -> None:
    with Trials(28) as trials:
        for at in good.headers[:-1]:
            tried(store, tmp_path / "tars", good.data[:at] + bytes(512) + good.data[at + 512 :], good, trials)


@pytest.mark.fault
def test_a_cut_at_or_inside_a_header_or_a_member_is_found(good: Pristine, store: FeatureStore, tmp_path: Path) -> None:
    with Trials(28) as trials:
        for at in good.headers[1::3]:
            for cut in (at - 1, at, at + 1, at + 511, at + 512):
                tried(store, tmp_path / "tars", good.data[:cut], good, trials)


def test_a_tar_without_its_closing_zeros_may_have_been_cut_and_is_refused(good: Pristine) -> None:
    assert len(members(good.data[: good.end + 512])) == 8, "one block of zeros is enough"
    for cut in (good.end, good.end + 511):
        with pytest.raises(BadInput, match=r"without the zeros|within a header"):
            members(good.data[:cut])


JOINED: dict[str, Callable[[bytes], bytes]] = {
    "two tars": lambda data: data + data,
    "two tars, one a hair longer": lambda data: data + pack({"9.png": picture(9)}),
    "a tar behind single zeros": lambda data: data[: -len(data) % 512 or None] + b"\0" * 7 + data,
    "letters behind the end": lambda data: data + b"garbage",
    "one letter far behind": lambda data: data + bytes(3_000_000) + b"x",
}


@pytest.mark.fault
@pytest.mark.parametrize("what", JOINED)
def test_what_stands_behind_the_end_is_found(good: Pristine, store: FeatureStore, tmp_path: Path, what: str) -> None:
    with Trials(28) as trials:
        tried(store, tmp_path / "tars", JOINED[what](good.data), good, trials)
        assert trials.counts["detected"] == 1


def test_the_error_names_the_tar_the_byte_and_the_last_good_member() -> None:
    data = pack({"0.png": picture(0), "1.png": picture(1), "2.png": picture(2)})
    third = 4 * 512  # each image has a block of its own
    with pytest.raises(BadInput, match=r"a\.tar .* at byte 2,048; the last good member is 1\.png"):
        members(flip(data, third * 8 + 3))
    with pytest.raises(BadInput, match=r"a\.tar .*begin at byte 2,048, .*at byte 2,560; the last good member is 1\.png"):
        members(data[:third] + bytes(512) + data[third + 512 :])
    with pytest.raises(BadInput, match=r"begin at byte 3,072, and something follows .*at byte 10,240"):
        members(data + data)


@pytest.mark.parametrize("data", [gzip.compress(pack({"0.png": picture(0)})), b"<html>" * 200, b"PK\3\4" + bytes(600)])
def test_what_is_no_tar_at_all_is_said(data: bytes) -> None:
    with pytest.raises(BadInput, match=r"does not begin as a tar does .*is it compressed, at byte 0; no member|within a header"):
        members(data)


def test_padding_and_more_zeros_are_no_damage() -> None:
    data = pack({"0.png": picture(0)})
    assert members(data) == members(data + bytes(1 << 21)) == ["0.png"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"path=", b"qath="),  # one bit: the name would be the shortened one
        (b"path=", b"path\x3c"),
        (b"2 path=", b"3 path="),
        (b"162 path=", b"122 path="),
        (b"3.png\n", b"3.png\x0b"),
        (b"path=long", b"path=lonf"),
    ],
)
def test_an_altered_record_of_a_long_name_is_found(old: bytes, new: bytes) -> None:
    name = LONG + "x" * 27 + "3.png"
    data = pack({name: picture(0)}, tarfile.PAX_FORMAT)
    assert members(data) == [name]
    assert data.count(old) == 1
    with pytest.raises(BadInput, match=r"(a header was altered|does not begin as a tar) .*at byte (0|1,024);"):
        members(data.replace(old, new))


@pytest.mark.parametrize("size", [b"100", b"99999999999", b"-1", b"9" * 30, b"1x3"])
def test_a_record_of_another_size_than_the_header_is_refused(size: bytes) -> None:
    data = pack({"0.png": picture(0)}, tarfile.PAX_FORMAT, pax_headers={"size": f"{len(picture(0)):012}"})
    assert members(data) == ["0.png"]
    altered = data.replace(b"%012d" % len(picture(0)), size.rjust(12, b"0")[:12] if size.isdigit() else size.ljust(12, b"x"))
    with pytest.raises(BadInput, match=r"a header was altered|does not begin|ends within"):
        members(altered)


def test_a_long_name_that_lost_a_bit_is_found() -> None:
    data = pack({LONG + "3.png": picture(0)})
    at = data.index(LONG.encode())
    with pytest.raises(BadInput, match="one bit apart"):
        members(flip(data, (at + 5) * 8))


def test_old_tars_sparse_maps_global_records_and_large_sizes_are_understood() -> None:
    """What other writers write: no magic, a map of holes with its continuation, PAX records for all members, sizes in base 256."""
    v7 = bytearray(pack({"0.png": b"x" * 10}))
    v7[257:265] = bytes(8)
    sparse = tarfile.TarInfo("holes.img")
    sparse.type, sparse.size = tarfile.GNUTYPE_SPARSE, 512
    block = bytearray(sparse.tobuf(tarfile.GNU_FORMAT))
    block[482] = 1
    last = bytes(512)
    first = bytearray(512)
    first[504] = 1
    large = bytearray(tarfile.TarInfo("large.png").tobuf(tarfile.GNU_FORMAT))
    large[124:136] = b"\x80" + (700).to_bytes(11, "big")
    world = pack({"1.png": b"y"}, tarfile.PAX_FORMAT)
    comment = b"19 comment=a world\n"
    header = tarfile.TarInfo("pax_global_header")
    header.type, header.size = tarfile.XGLTYPE, len(comment)
    data = (
        summed(bytes(v7[:512]))
        + bytes(v7[512:1024])
        + (summed(bytes(block)) + bytes(first) + last + bytes(512))
        + (summed(bytes(large)) + bytes(1024))
        + (header.tobuf(tarfile.USTAR_FORMAT) + comment.ljust(512, b"\0"))
        + world
    )
    found = list(TarMembers(io.BytesIO(data), "a.tar"))
    assert [(member.name, member.size, member.is_sparse) for member in found] == [
        ("0.png", 10, False),
        ("holes.img", 512, True),
        ("large.png", 700, False),
        ("1.png", 1, False),
    ]
    assert data[found[3].offset : found[3].offset + 1] == b"y"


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs GNU tar")
@pytest.mark.parametrize("format", ["v7", "oldgnu", "gnu", "ustar", "posix"])
def test_what_gnu_tar_writes_is_read_as_the_standard_library_reads_it(tmp_path: Path, format: str) -> None:
    """Long names, prefixes, links, holes, labels, and folders of an incremental dump: the same members at the same bytes."""
    deep = tmp_path / "src" / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    for name in ("plain.png", "é" * 40 + ".png", f"{deep.name[:9]}.png"):
        (tmp_path / "src" / name).write_bytes(picture(1))
    (deep / "x.png").write_bytes(picture(2))
    (tmp_path / "src" / ("z" * 150 + ".png")).write_bytes(picture(3))
    with (tmp_path / "src/holes.png").open("wb") as file:
        for place in range(0, 4_000_000, 200_000):
            file.seek(place)
            file.write(bytes([1]) * 4096)
    (tmp_path / "src/link.png").symlink_to("plain.png")
    (tmp_path / "src/hard.png").hardlink_to(tmp_path / "src/plain.png")
    more = {"gnu": ["-S", f"--listed-incremental={tmp_path / 'snapshot'}"], "oldgnu": ["-S", "-Va label"], "posix": ["-S"]}.get(format, [])
    command = ["tar", f"--format={format}", "-cf", str(tmp_path / "a.tar"), *more, "-C", str(tmp_path / "src"), "."]
    subprocess.run(command, check="gnu" in format or format == "posix", capture_output=True)  # the others leave long names out, and say so
    data = (tmp_path / "a.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as archive:
        wanted = [(member.name.rstrip("/"), member.type, member.issparse(), member.offset_data) for member in archive]
    found = [(member.name.rstrip("/"), member.kind, member.is_sparse, member.offset) for member in TarMembers(io.BytesIO(data), "a.tar")]
    assert len(found) > 5
    assert any(member[2] for member in found) == (format not in ("v7", "ustar"))
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine[:3] == theirs[:3]
        assert mine[2] or mine[3] == theirs[3]


def summed(block: bytes) -> bytes:
    """A header with the checksum of what stands in it."""
    total = sum(block[:148]) + 8 * 32 + sum(block[156:])
    return block[:148] + b"%06o\0 " % total + block[156:]


def test_a_stream_that_cannot_be_sought_in_is_read_too() -> None:
    class Stream:
        def __init__(self, data: bytes) -> None:
            self._data = io.BytesIO(data)

        def read(self, size: int) -> bytes:
            return self._data.read(min(size, 100))

        def seek(self, offset: int) -> int:
            raise ValueError("cannot seek streaming file")

    data = pack({"0.bin": bytes(3000), "1.png": picture(1)})
    assert [member.name for member in TarMembers(Stream(data), "a.tar")] == ["0.bin", "1.png"]
    with pytest.raises(BadInput, match=r"ends within the member 0\.bin, at byte 2,000"):
        list(TarMembers(Stream(data[:2000]), "a.tar"))


def test_members_that_are_no_images_are_not_held_in_memory() -> None:
    class Counting(io.BytesIO):
        largest = 0

        def read(self, size: int | None = -1) -> bytes:
            data = super().read(size)
            self.largest = max(self.largest, len(data))
            return data

    file = Counting(pack({"film.mp4": bytes(20 << 20), "1.png": picture(1)}))
    assert len(list(TarMembers(file, "a.tar"))) == 2
    assert file.largest <= 1 << 20
