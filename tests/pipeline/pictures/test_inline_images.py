"""Pictures inside a page are what they were before, or smaller."""

import base64
import io

import numpy as np
from eupe_pipeline.pipeline.pictures.inline_images import palette_data_uri, photo_data_uri, png_data_uri
from numpy.typing import NDArray
from PIL import Image


def decoded(uri: str) -> tuple[str, NDArray[np.uint8]]:
    kind, _, data = uri.partition(",")
    return kind, np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


def noise(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(8).integers(0, 255, (height, width, 3), dtype=np.uint8)


def test_a_data_uri_is_the_image_enlarged_by_whole_pixels() -> None:
    image = noise(4, 5)
    kind, found = decoded(png_data_uri(image, longest_px=23))
    assert kind == "data:image/png;base64"
    assert found.shape == (16, 20, 3)
    assert (found[::4, ::4] == image).all()
    assert (found[3::4, 3::4] == image).all()


def test_a_small_photo_keeps_every_pixel_and_a_large_one_is_reduced_to_a_jpeg() -> None:
    kind, found = decoded(photo_data_uri(noise(32, 32)))
    assert kind == "data:image/png;base64"
    assert (found == noise(32, 32)).all()
    kind, found = decoded(photo_data_uri(noise(900, 600)))
    assert kind == "data:image/jpeg;base64"
    assert found.shape == (360, 240, 3)


def test_palette_entries_come_back_as_their_colours() -> None:
    palette, codes = noise(1, 48)[0], np.arange(48, dtype=np.uint8).reshape(6, 8)
    assert (decoded(palette_data_uri(codes, palette))[1] == palette[codes]).all()
