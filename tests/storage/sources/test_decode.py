"""Hostile and broken images become `BadImage` with their name, within bounded memory (FAULTS 22)."""

import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from eupe_pipeline.storage.sources import decode
from eupe_pipeline.storage.sources.decode import BadImage, decode_image, decoder_identity, image_size_hw
from PIL import Image

from ...fault_log import Trials


def encoded(kind: str, mode: str = "RGB", size: tuple[int, int] = (13, 9)) -> bytes:
    random = np.random.default_rng(0)
    image = Image.fromarray(random.integers(0, 256, (size[1], size[0], 3), np.uint8)).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_give_the_pixels_that_went_in(kind: str) -> None:
    wanted = np.random.default_rng(0).integers(0, 256, (9, 13, 3), np.uint8)
    np.testing.assert_array_equal(decode_image(encoded(kind), where="x"), wanted)
    assert image_size_hw(encoded(kind), where="x") == (9, 13)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "I;16", "CMYK"])
def test_other_modes_become_rgb(mode: str) -> None:
    pixels = decode_image(encoded("TIFF" if mode in ("CMYK", "I;16") else "PNG", mode), where="x")
    assert pixels.shape == (9, 13, 3)
    assert pixels.dtype == np.uint8


def test_orientation_is_taken_as_stored() -> None:
    image, buffer = Image.new("RGB", (20, 10)), io.BytesIO()
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(buffer, "JPEG", exif=exif)
    assert decode_image(buffer.getvalue(), where="x").shape == (10, 20, 3)
    assert decoder_identity()["orientation"] == "as stored"


def png(width: int, height: int, rows: bytes) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.fault(22, "detected")
@pytest.mark.parametrize(("width", "height"), [(8000, 6251), (100_000, 100_000), (2**31 - 1, 1), (1, 2**31 - 1), (0, 5)])
def test_bombs_are_refused_by_their_header(width: int, height: int) -> None:
    for function in (decode_image, image_size_hw):
        with pytest.raises(BadImage, match=r"bomb\.png"):
            function(png(width, height, b""), where="bomb.png")


def bmp(width: int, height: int) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + header


def gif(width: int, height: int) -> bytes:
    size = struct.pack("<HH", min(width, 65_535), min(height, 65_535))
    return b"GIF89a" + size + bytes(3) + b"," + bytes(4) + size + b"\0\x02\0;"


HEADERS: dict[str, Callable[[int, int], bytes]] = {
    "png": lambda width, height: png(width, height, b""),
    "ppm": lambda width, height: f"P6 {width} {height} 255\n".encode(),
    "bmp": bmp,
    "gif": gif,
}
CLAIMS = [
    (7100, 7100),
    (50_000, 1001),
    (1001, 50_000),
    (60_000, 60_000),
    (65_535, 65_535),
    (2**31 - 1, 20_000),
    (20_000, 2**31 - 1),
    (2**30, 2**30),
]


@pytest.mark.fault
def test_bombs_of_every_format_that_tells_its_size_first_are_refused() -> None:
    with Trials(22) as trials:
        for name, header in HEADERS.items():
            for width, height in CLAIMS:
                for function in (decode_image, image_size_hw):
                    with pytest.raises(BadImage, match=f"bomb.{name}"):
                        function(header(width, height), where=f"bomb.{name}")
                trials.note("detected")


def test_files_over_the_limit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "MAX_FILE_BYTES", 100)
    with pytest.raises(BadImage, match="more than the limit of 100"):
        decode_image(encoded("PNG"), where="x")


BROKEN: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "text": lambda: b"<html>404 not found</html>",
    "only a signature": lambda: b"\x89PNG\r\n\x1a\n",
    "cut png": lambda: encoded("PNG")[:-60],
    "cut jpeg": lambda: encoded("JPEG")[:-80],
    "cut webp": lambda: encoded("WEBP")[:40],
    "svg": lambda: b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "postscript": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
    "zeros": lambda: bytes(4096),
    "rows missing": lambda: png(64, 64, bytes(10)),
    "gzip": lambda: b"\x1f\x8b\x08" + bytes(50),
}


@pytest.mark.fault
@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_named(name: str) -> None:
    with Trials(22) as trials:
        with pytest.raises(BadImage, match=r"folder/x\.png"):
            decode_image(BROKEN[name](), where="folder/x.png")
        trials.note("detected")


def mutated(n: int, random: np.random.Generator) -> bytes:
    """A small picture in one of seven formats with a few bytes changed, one of five also cut."""
    data = bytearray(encoded(("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM")[n % 7]))
    for _ in range(random.integers(1, 6)):
        data[random.integers(len(data))] = int(random.integers(256))
    if n % 5 == 0:
        del data[random.integers(len(data)) :]
    return bytes(data)


@pytest.mark.fault
@pytest.mark.parametrize("mutations", [500, pytest.param(20_000, marks=pytest.mark.long)])
def test_mutated_files_give_pixels_or_our_error_and_nothing_else(mutations: int) -> None:
    random = np.random.default_rng(1)
    with Trials(22) as trials:
        for n in range(mutations):
            try:
                pixels = decode_image(mutated(n, random), where="x")
                assert pixels.ndim == 3
                assert pixels.shape[2] == 3
                trials.note("right")
            except BadImage:
                trials.note("detected")
    assert min(trials.counts["right"], trials.counts["detected"]) > 50


def test_a_worker_stays_below_a_gigabyte_on_the_largest_image_that_is_allowed() -> None:
    """49 Mpx of zeros in 50 kB of file, in a process of its own, so that the peak is its own."""
    script = (
        "import re, sys; from eupe_pipeline.storage.sources.decode import decode_image\n"
        "pixels = decode_image(sys.stdin.buffer.read(), where='x'); assert pixels.shape == (7000, 7000, 3)\n"
        "print(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1])\n"  # ru_maxrss would begin with the parent's peak
    )
    data = png(7000, 7000, bytes(7000 * (1 + 3 * 7000)))
    done = subprocess.run([sys.executable, "-c", script], input=data, capture_output=True, check=True)
    assert int(done.stdout) < 1_000_000


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_of_sixteen_bits_the_upper_eight_are_taken(kind: str) -> None:
    levels = (np.arange(1200).reshape(30, 40) * 54).astype(np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, kind)
    pixels = decode_image(buffer.getvalue(), where="x")
    np.testing.assert_array_equal(pixels, np.repeat((levels >> 8).astype(np.uint8)[..., None], 3, axis=2))
    assert pixels.dtype == np.uint8


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_without_a_known_range_are_refused_by_their_header(dtype: type) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.ones((3, 4), dtype)).save(buffer, "TIFF")
    for read in (decode_image, image_size_hw):
        with pytest.raises(BadImage, match="whose range no file says"):
            read(buffer.getvalue(), where="x")
