"""JPEG bytes to RGB pixels by libjpeg-turbo itself (simplejpeg): the pixels that Pillow gives, in two thirds of its time.

Pillow decodes by the same library into four bytes a pixel, and copies them twice on the way to an array; simplejpeg writes the array. Both
take the accurate DCT and the smooth upsampling of colour. What it refuses or only half decodes (CMYK, 12 bits, arithmetic coding, a file
that is cut off or damaged) is left to Pillow, so that an image is good or bad, and why, whichever of the two a set of views names.
Limits: whole images at full size. Decoding only the rows of a crop would save a seventh of the time and no wheel offers it; the DCT's own
reduction by two gives other pixels than the filters that teachers were trained with (docs/decisions/0052).
"""

import importlib.util
from functools import cache
from typing import Any

from ..core.choices import Orientation
from ..core.errors import BadInput
from ..sources.decode import MAX_FILE_BYTES, MAX_PIXELS, BadImage, Pixels, orient_jpeg

LIBRARY = "simplejpeg"
_START = b"\xff\xd8\xff"
_COLOURS = ("Gray", "YCbCr", "RGB")


@cache
def is_installed() -> bool:
    """Return whether the library is there, without importing it."""
    return importlib.util.find_spec(LIBRARY) is not None


@cache
def _library() -> Any:
    try:
        import simplejpeg
    except ImportError as error:
        raise BadInput(
            f"these views are of images that {LIBRARY} decoded, which is not installed here ({error}); run: pip install {LIBRARY}"
        ) from error
    return simplejpeg


def described() -> dict[str, str]:
    """Return library, version and mode, for the identity of views; raise `BadInput` where it is not installed."""
    return {"library": LIBRARY, "version": str(_library().__version__), "mode": "accurate DCT, smooth upsampling"}


def decode_jpeg(data: bytes, orientation: Orientation) -> Pixels | None:
    """Return a JPEG as (height, width, 3) uint8 RGB, oriented; None for anything that Pillow should judge; raise `BadInput`."""
    library = _library()
    if not data.startswith(_START) or len(data) > MAX_FILE_BYTES:
        return None
    try:
        height, width, colours, _ = library.decode_jpeg_header(data)
        if colours not in _COLOURS or height * width > MAX_PIXELS:
            return None
        return orient_jpeg(library.decode_jpeg(data, "RGB", strict=True), data, orientation)
    except (ValueError, BadImage):  # a ValueError is what it raises for every fault of a file
        return None
