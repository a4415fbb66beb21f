"""The fast decoder gives Pillow's pixels, and leaves to Pillow what it cannot judge."""

import io
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.images import fast_jpeg
from eupe_pipeline.storage.images.fast_jpeg import decode_jpeg
from eupe_pipeline.storage.images.indexing import build_index
from eupe_pipeline.storage.sources import decode
from eupe_pipeline.storage.sources.decode import BadImage, decode_image
from eupe_pipeline.storage.store import FeatureStore
from numpy.typing import NDArray
from PIL import Image

pytest.importorskip("simplejpeg")


def picture(height: int = 37, width: int = 61) -> Image.Image:
    coarse = Image.fromarray(np.random.default_rng(0).integers(0, 256, (7, 9, 3), np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def turned(orientation: int, **options: object) -> bytes:
    image = picture()
    exif = image.getexif()
    exif[0x0112] = orientation
    return jpeg(image, exif=exif, **options)


def kinds() -> Iterator[tuple[str, bytes]]:
    for subsampling, progressive in itertools.product((0, 1, 2), (False, True)):
        yield f"subsampling {subsampling}, progressive {progressive}", jpeg(picture(), subsampling=subsampling, progressive=progressive)
    for size in ((1, 1), (1, 40), (40, 1), (16, 16), (17, 15), (64, 8)):
        yield f"size {size}", jpeg(picture(*size))
    yield "grey", jpeg(picture().convert("L"))
    yield "kept as RGB", jpeg(picture(), keep_rgb=True)
    yield "restart markers", jpeg(picture(), restart_marker_blocks=2)
    yield "poor", jpeg(picture(), quality=3)
    yield "bytes behind the end", jpeg(picture()) + b"more"


@pytest.mark.parametrize(("name", "data"), [pytest.param(*kind, id=kind[0]) for kind in kinds()])
def test_the_pixels_are_pillows(name: str, data: bytes) -> None:
    found = decode_jpeg(data, "stored")
    assert found is not None, name
    np.testing.assert_array_equal(found, decode_image(data, where="x"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_orientation_is_applied_or_left_as_pillow_does_it(orientation: int) -> None:
    data = turned(orientation)
    for way in ("stored", "upright"):
        found = decode_jpeg(data, way)
        assert found is not None
        np.testing.assert_array_equal(found, decode_image(data, where="x", orientation=way))


def test_an_orientation_in_xmp_is_applied() -> None:
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    data = jpeg(picture(), xmp=xmp)
    found = decode_jpeg(data, "upright")
    assert found is not None
    assert found.shape == (61, 37, 3)
    np.testing.assert_array_equal(found, decode_image(data, where="x", orientation="upright"))


def cmyk() -> bytes:
    return jpeg(picture().convert("CMYK"))


def test_what_pillow_judges_is_left_to_it() -> None:
    good = jpeg(picture(200, 300))
    damaged = bytearray(good)
    damaged[len(good) // 2 : len(good) // 2 + 9] = b"\xff\x01" * 4 + b"\xff"
    for data in (cmyk(), good[: len(good) // 2], good[:200], bytes(damaged), b"\xff\xd8\xff", b"", b"\x89PNG\r\n\x1a\n", good[1:]):
        assert decode_jpeg(data, "upright") is None


def test_images_over_the_limits_are_left_to_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    data = jpeg(picture())
    monkeypatch.setattr(fast_jpeg, "MAX_PIXELS", 37 * 61 - 1)
    assert decode_jpeg(data, "stored") is None
    monkeypatch.undo()
    monkeypatch.setattr(fast_jpeg, "MAX_FILE_BYTES", len(data) - 1)
    assert decode_jpeg(data, "stored") is None
    monkeypatch.undo()
    assert [vars(fast_jpeg)[name] for name in ("MAX_PIXELS", "MAX_FILE_BYTES")] == [decode.MAX_PIXELS, decode.MAX_FILE_BYTES]


def read_both(folder: Path, files: dict[str, bytes]) -> Iterator[tuple[str, NDArray[np.uint8] | str, NDArray[np.uint8] | str]]:
    """Each image, or why it is none, by Pillow and by the fast decoder."""
    (folder / "images").mkdir()
    for name, data in files.items():
        (folder / "images" / name).write_bytes(data)
    dataset = build_index(FeatureStore.create(str(folder / "store")).objects, str(folder / "images"), "photos")
    for n, image_id in enumerate(dataset.ids(0, len(dataset))):
        found: list[NDArray[np.uint8] | str] = []
        for one in (dataset, dataset.read_as(dataset.orientation, "simplejpeg")):
            try:
                found.append(one.read_image(n))
            except BadImage as error:
                found.append(str(error))
        yield image_id, found[0], found[1]


def test_a_dataset_gives_the_same_images_and_the_same_reasons_by_either_decoder(tmp_path: Path) -> None:
    good, png = jpeg(picture(200, 300)), io.BytesIO()
    picture().save(png, "PNG")
    files = {
        "good.jpg": good, "turned.jpg": turned(6, quality=80), "cut.jpg": good[: len(good) // 2], "cmyk.jpg": cmyk(),
        "other.png": png.getvalue(), "a png.jpg": png.getvalue(),
    }  # fmt: skip
    found = {image_id: (left, right) for image_id, left, right in read_both(tmp_path, files)}
    assert set(found) == set(files)
    for left, right in found.values():
        np.testing.assert_array_equal(left, right)
    assert [image_id for image_id, (left, _) in found.items() if isinstance(left, str)] == ["cut.jpg"]
    assert found["turned.jpg"][1].shape == (61, 37, 3)  # type: ignore[union-attr]  # it is an image


def test_a_dataset_is_itself_where_nothing_changes(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(jpeg(picture()))
    dataset = build_index(FeatureStore.create(str(tmp_path / "store")).objects, str(tmp_path / "images"), "photos")
    fast = dataset.read_as("upright", "simplejpeg")
    assert dataset.read_as("upright") is dataset
    assert fast is not dataset
    assert fast.read_as("stored") is fast
    assert (fast.jpeg_decoder, dataset.jpeg_decoder) == ("simplejpeg", "pillow")
    assert fast.read_as("stored", "pillow").jpeg_decoder == "pillow"


def test_a_machine_without_the_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    fast_jpeg._library.cache_clear()
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    with pytest.raises(BadInput, match="pip install simplejpeg"):
        decode_jpeg(jpeg(picture()), "stored")
    monkeypatch.undo()
    assert fast_jpeg.described()["library"] == "simplejpeg"
