"""Image bytes to RGB pixels, with limits, and nothing else.

Pillow decodes every format; the decoder and its version stand in the identity of a set of views because two versions may round
differently. How an image is turned is the caller's choice, the same for every format: as it is stored, or upright, as its orientation
(EXIF's, or XMP's where there is no EXIF) asks for. Pillow turns TIFFs by itself and nothing else; what it turned is turned back or left.
Of 16 bits a channel the upper 8 are taken, in grey as Pillow does in colour; floating-point pixels are refused, because no file says what
is white. Limits keep a hostile file from taking the machine: 100 MB of file, 50 million pixels (checked in the header, before any pixel
is decoded).
"""

import io
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import ExifTags, Image, TiffImagePlugin

from ..core.choices import ORIENTATIONS, Orientation
from ..core.errors import EupeError

MAX_FILE_BYTES = 100_000_000
MAX_PIXELS = 50_000_000
_NO_RANGE = {"F": "a floating-point number", "I": "a 32-bit integer"}
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
_IN_PNG = (b"eXIf", b"XML:com.adobe.xmp", b"Raw profile type")  # where a PNG's orientation may stand, behind its pixels too

# Set once for the process: `warnings.catch_warnings` around each call would race between the threads that decode.
warnings.filterwarnings("ignore", module=r"PIL\.")

Pixels = NDArray[np.uint8]


class BadImage(EupeError, ValueError):
    """Bytes that are not an image we can or will decode; the text names where they came from."""


class Header(NamedTuple):
    """Header of an image: its size as it will be decoded, and its orientation (1: none)."""

    height_px: int
    width_px: int
    orientation: int


def decoder_identity(orientation: Orientation = "stored") -> dict[str, str]:
    """Return library, version and orientation, for the identity of views: another version may give other pixels."""
    orientation_text = "as stored" if orientation == "stored" else orientation
    return {"library": "pillow", "version": PIL.__version__, "orientation": orientation_text}


def orientation_of(decoder: Mapping[str, str]) -> Orientation:
    """Return how images are turned by what `decoder_identity` describes; raise ValueError for what it never says."""
    for orientation in ORIENTATIONS:
        if decoder["orientation"] == decoder_identity(orientation)["orientation"]:
            return orientation
    raise ValueError(f"an orientation of {decoder['orientation']!r}")


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
    if image.mode in _NO_RANGE and not _is_16_bit(image):
        raise BadImage(f"{where}: {_NO_RANGE[image.mode]} a pixel, whose range no file says; write it with 8 or 16 bits a channel")
    return image


def _is_16_bit(image: Image.Image) -> bool:
    """Return whether pixels are grey levels from 0 to 65,535; Pillow scales those of a PGM to that."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")


def _pending_orientation(image: Image.Image, data: bytes) -> int:
    """Return the orientation (1 to 8) that Pillow has not applied; 1 where it is broken or missing."""
    if image.format == "PNG" and not any(marker in data for marker in _IN_PNG):
        return 1  # without a look, for which Pillow would decode the pixels
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # noqa: BLE001 - of hostile tags; the pixels are what they were
        return 1
    return orientation if orientation in range(1, 9) else 1


def _stored_hw(image: Image.Image) -> tuple[int, int]:
    """Return height and width before any rotation; Pillow gives those of a TIFF after it."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return int(image.tag_v2[TiffImagePlugin.IMAGELENGTH]), int(image.tag_v2[TiffImagePlugin.IMAGEWIDTH])
    return image.height, image.width


def image_header(data: bytes, *, where: str, orientation: Orientation = "stored") -> Header:
    """Return size and orientation from the header alone; raise `BadImage`."""
    image = _open(data, where)
    (height, width), carried = _stored_hw(image), _pending_orientation(image, data)
    if orientation == "upright" and carried >= 5:  # a quarter turn
        height, width = width, height
    return Header(height, width, carried)


def image_size_hw(data: bytes, *, where: str, orientation: Orientation = "stored") -> tuple[int, int]:
    """Return height and width in pixels as the image will be decoded, from the header alone; raise `BadImage`."""
    header = image_header(data, where=where, orientation=orientation)
    return header.height_px, header.width_px


def decode_image(data: bytes, *, where: str, orientation: Orientation = "stored") -> Pixels:
    """Return the image as (height, width, 3) uint8 RGB; raise `BadImage` naming `where` for anything broken or too large."""
    return _decode(_open(data, where), data, where, _rgb, orientation)


def stored_values(data: bytes, *, where: str) -> NDArray[Any]:
    """Return the stored numbers (height, width) or (height, width, channels), no palette applied; raise `BadImage`."""
    return _decode(_open(data, where), data, where, np.asarray, "stored")


def _decode(
    image: Image.Image, data: bytes, where: str, convert: Callable[[Image.Image], NDArray[Any]], orientation: Orientation
) -> NDArray[Any]:
    # What is left as stored need not be known, except where Pillow acts on it.
    carried = 1 if orientation == "stored" and not isinstance(image, TiffImagePlugin.TiffImageFile) else _pending_orientation(image, data)
    try:
        image.load()
        values = convert(image)
    # Pillow's decoders raise many kinds on hostile bytes; each of them means the same to the caller.
    except Exception as error:
        raise BadImage(f"{where}: cannot be decoded ({type(error).__name__}: {error})") from error
    is_upright = carried == 1 or _pending_orientation(image, data) == 1  # Pillow has acted on it
    if carried == 1 or is_upright == (orientation == "upright"):
        return values
    return orient(values, carried if orientation == "upright" else _INVERSE.get(carried, carried))


def _rgb(image: Image.Image) -> Pixels:
    if not _is_16_bit(image):
        return np.asarray(image.convert("RGB"))
    # Pillow's own conversion cuts at 255: all but black would be white.
    levels, tags = np.asarray(image), getattr(image, "tag_v2", {})
    bits = tags.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0]
    grey = (levels >> (bits - 8)).astype(np.uint8)
    if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:  # white is zero; Pillow inverts those of 8 bits and fewer only
        grey = ~grey
    return np.repeat(grey[..., None], 3, axis=2)


_TURNED_BY = (b"Exif\0", b"http://ns.adobe.com/xap/")  # the only places where a JPEG can say its orientation


def orient_jpeg(pixels: Pixels, data: bytes, orientation: Orientation) -> Pixels:
    """Return the stored pixels of a JPEG's bytes as `orientation` asks for; raise `BadImage` for a broken header."""
    if orientation == "stored" or not any(marker in data for marker in _TURNED_BY):
        return pixels
    carried = image_header(data, where="a JPEG").orientation
    return pixels if carried == 1 else orient(pixels, carried)


_INVERSE = {6: 8, 8: 6}  # what undoes an orientation; the others undo themselves


def orient(values: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Return an image (height, width, …) rotated and mirrored as EXIF's `orientation` (1 to 8) asks for."""
    axes_swapped = values.swapaxes(0, 1) if orientation >= 5 else values
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return np.ascontiguousarray(axes_swapped[::rows, ::columns])
