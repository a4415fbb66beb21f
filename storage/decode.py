"""Image bytes to RGB pixels, with limits, and nothing else.

Pillow decodes every format; the decoder and its version stand in the identity of a set of views because two versions may round
differently. EXIF orientation is ignored, as the vision community's loaders do. Of 16 bits a channel the upper 8 are taken, in grey as
Pillow does in colour; floating-point pixels are refused, because no file says what is white. Limits keep a hostile file from taking the
machine: 100 MB of file, 50 million pixels (checked in the header, before any pixel is decoded).
"""

import io
import warnings

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from .errors import EupeError

MAX_FILE_BYTES = 100_000_000
MAX_PIXELS = 50_000_000
_NO_RANGE = {"F": "a floating-point number", "I": "a 32-bit integer"}
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")

# Set once for the process: `warnings.catch_warnings` around each call would race between the threads that decode.
warnings.filterwarnings("ignore", module=r"PIL\.")

Pixels = NDArray[np.uint8]


class BadImage(EupeError, ValueError):
    """These bytes are not an image that we can or will decode; the text names where they came from."""


def decoder_identity() -> dict[str, str]:
    """What decodes, for the identity of views: another version may give other pixels."""
    return {"library": "pillow", "version": PIL.__version__, "orientation": "as stored"}


def _open(data: bytes, where: str) -> Image.Image:
    if len(data) > MAX_FILE_BYTES:
        raise BadImage(f"{where}: {len(data):,} bytes, more than the limit of {MAX_FILE_BYTES:,}")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    # Pillow's plugins raise many kinds on hostile headers, and its warning about bombs comes only above our own limit.
    except Exception as error:
        unknown = isinstance(error, PIL.UnidentifiedImageError)  # its text has a memory address in it
        why = "of no known format, or broken at its start" if unknown else f"{type(error).__name__}: {error}"
        raise BadImage(f"{where}: not an image ({why})") from error
    if image.width * image.height > MAX_PIXELS:
        raise BadImage(f"{where}: {image.width} × {image.height} pixels, more than the limit of {MAX_PIXELS:,}")
    if image.mode in _NO_RANGE and not _of_16_bits(image):
        raise BadImage(f"{where}: {_NO_RANGE[image.mode]} a pixel, whose range no file says; write it with 8 or 16 bits a channel")
    return image


def _of_16_bits(image: Image.Image) -> bool:
    """Whether these are grey levels from 0 to 65,535; Pillow scales those of a PGM to that."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")


def image_size_hw(data: bytes, *, where: str) -> tuple[int, int]:
    """Height and width in pixels from the header alone; raises `BadImage`."""
    image = _open(data, where)
    return image.height, image.width


def decode_image(data: bytes, *, where: str) -> Pixels:
    """The image as (height, width, 3) uint8 RGB; raises `BadImage` naming `where` for anything broken or too large."""
    image = _open(data, where)
    try:
        if _of_16_bits(image):  # Pillow's own conversion cuts at 255: all but black would be white
            return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=2)
        return np.asarray(image.convert("RGB"))
    # Pillow's decoders raise many kinds on hostile bytes; each of them means the same to the caller.
    except Exception as error:
        raise BadImage(f"{where}: cannot be decoded ({type(error).__name__}: {error})") from error
