"""What becomes of palettes, alpha, CMYK, 1 to 16 bits and white that is zero: the pixels that docs/images.md promises."""

import io
import struct
from typing import Any

import numpy as np
import pytest
from eupe_pipeline.storage.sources.decode import BadImage, decode_image, image_size_hw
from numpy.typing import NDArray
from PIL import Image

GREY = np.random.default_rng(0).integers(0, 256, (9, 16), np.uint8)
RGB = np.random.default_rng(1).integers(0, 256, (9, 16, 3), np.uint8)


def saved(image: Image.Image, kind: str, **values: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **values)
    return buffer.getvalue()


def tiff(body: bytes, bits: int, photometric: int, order: str = "<", samples: int = 1, width: int = 16, height: int = 9) -> bytes:
    """An uncompressed TIFF of one strip, as its specification says, tag by tag."""
    tags: list[tuple[int, int, int, int]] = [
        (256, 3, 1, width), (257, 3, 1, height), (258, 3, 1, bits), (259, 3, 1, 1), (262, 3, 1, photometric), (273, 4, 1, 0),
        (277, 3, 1, samples), (278, 3, 1, height), (279, 4, 1, len(body)),
    ]  # fmt: skip
    start = 8 + 2 + 12 * len(tags) + 4 + 8
    out = (b"II" if order == "<" else b"MM") + struct.pack(order + "HIH", 42, 8, len(tags))
    for tag, kind, count, value in tags:
        value, count = (start, 1) if tag == 273 else (value, count)
        if tag == 258 and samples > 1:
            out += struct.pack(order + "HHII", tag, 3, samples, start - 8)
        else:
            out += struct.pack(order + "HHI", tag, kind, count) + struct.pack(
                order + ("HH" if kind == 3 else "I"), *((value, 0) if kind == 3 else (value,))
            )
    return out + bytes(4) + struct.pack(order + "HHHH", bits, bits, bits, bits) + body


def as_rgb(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.repeat(grey[..., None], 3, axis=2)


def packed(levels: NDArray[np.uint8], bits: int) -> bytes:
    return np.packbits(np.unpackbits(levels[..., None], axis=2)[..., 8 - bits :].reshape(len(levels), -1), axis=1).tobytes()


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_white_that_is_zero_is_white(bits: int, order: str) -> None:
    most = 2**bits - 1
    levels = np.random.default_rng(bits).integers(0, most + 1, (9, 16)).astype(np.uint16)
    levels[0, :2] = 0, most
    body = levels.astype(f"{order}u2").tobytes() if bits == 16 else packed(levels.astype(np.uint8), bits)
    black_is_zero = (levels >> 8).astype(np.uint8) if bits == 16 else (levels * (255 // most)).astype(np.uint8)
    np.testing.assert_array_equal(decode_image(tiff(body, bits, 1, order), where="x"), as_rgb(black_is_zero))
    if bits == 16 and order == ">":  # Pillow knows none of these
        with pytest.raises(BadImage):
            image_size_hw(tiff(body, bits, 0, order), where="x")
        return
    np.testing.assert_array_equal(decode_image(tiff(body, bits, 0, order), where="x"), as_rgb(255 - black_is_zero))


def test_twelve_bits_are_scaled_as_twelve() -> None:
    levels = (np.arange(144).reshape(9, 16) * 28).astype(np.uint16)
    pairs = levels.reshape(-1, 2)
    body = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], axis=1).astype(np.uint8).tobytes()
    np.testing.assert_array_equal(decode_image(tiff(body, 12, 1), where="x"), as_rgb((levels >> 4).astype(np.uint8)))


@pytest.mark.parametrize("order", "<>")
def test_sixteen_bits_a_colour_keep_their_upper_eight(order: str) -> None:
    levels = np.random.default_rng(2).integers(0, 65_536, (9, 16, 3)).astype(np.uint16)
    found = decode_image(tiff(levels.astype(f"{order}u2").tobytes(), 16, 2, order, samples=3), where="x")
    np.testing.assert_array_equal(found, (levels >> 8).astype(np.uint8))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_alpha_is_dropped_and_colours_stay(kind: str) -> None:
    image = Image.fromarray(np.dstack([RGB, GREY]))
    data = saved(image, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    np.testing.assert_array_equal(decode_image(data, where="x"), RGB)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_grey_with_alpha_is_grey(kind: str) -> None:
    np.testing.assert_array_equal(decode_image(saved(Image.merge("LA", [Image.fromarray(GREY)] * 2), kind), where="x"), as_rgb(GREY))


def test_a_palette_gives_its_colours_and_its_transparent_entry_too() -> None:
    palette = np.random.default_rng(3).integers(0, 256, 768).astype(np.uint8)
    image = Image.fromarray(GREY).convert("P")
    image.putpalette(palette.tobytes())
    image.putdata(GREY.ravel().tolist())
    for kind, values in (("PNG", {"transparency": 7}), ("GIF", {}), ("TIFF", {})):
        np.testing.assert_array_equal(decode_image(saved(image, kind, **values), where="x"), palette.reshape(256, 3)[GREY])


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_becomes_the_colours_that_it_stands_for(kind: str) -> None:
    ramp = np.repeat(np.linspace(20, 235, 16).astype(np.uint8)[None, :, None], 16, axis=0)
    colours = np.concatenate([ramp, ramp[:, ::-1], np.full_like(ramp, 90)], axis=2)
    data = saved(Image.fromarray(colours).convert("CMYK"), kind, **({"quality": 100} if kind == "JPEG" else {}))
    if kind == "JPEG":
        assert b"Adobe" in data  # whose CMYK is stored inverted
    difference = np.abs(decode_image(data, where="x").astype(int) - colours)
    assert difference.max() < 12


def test_profiles_change_nothing_and_of_moving_pictures_the_first_is_taken() -> None:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    np.testing.assert_array_equal(decode_image(saved(Image.fromarray(RGB), "PNG", icc_profile=profile), where="x"), RGB)
    frames = [Image.fromarray(RGB), Image.fromarray(~RGB)]
    for kind, values in (("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})):
        data = saved(frames[0], kind, save_all=True, append_images=frames[1:], **values)
        np.testing.assert_array_equal(decode_image(data, where="x"), RGB)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_numbers_without_a_range_are_refused(dtype: type) -> None:
    with pytest.raises(BadImage, match="whose range no file says"):
        image_size_hw(saved(Image.fromarray(GREY.astype(dtype)), "TIFF"), where="x")
