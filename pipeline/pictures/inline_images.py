"""Pictures as data URIs, so that a page needs nothing beside itself: PNG for what has few colours, JPEG for photos.

Small pictures are enlarged by the reader's browser without smoothing (`image-rendering: pixelated`), not here: a grid of tokens stays a few
hundred bytes. Photos are reduced to PHOTO_PX first, which a page for a phone needs no more of.
"""

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Rgb = NDArray[np.uint8]
PHOTO_PX = 360
SMALL_PX = 96  # up to here a PNG is smaller than a good JPEG, and has no artefacts
_JPEG_QUALITY = 86


def data_uri(image: Image.Image, kind: str = "PNG") -> str:
    """Return the image as a data URI of a PNG or a JPEG."""
    out = io.BytesIO()
    if kind == "JPEG":
        image.save(out, kind, optimize=True, quality=_JPEG_QUALITY)
    else:
        image.save(out, kind, optimize=True)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(out.getvalue()).decode()


def png_data_uri(rgb_HW3: Rgb, *, longest_px: int = 0) -> str:
    """Return the image as a data URI of a PNG; enlarged by whole pixels, without smoothing, towards `longest_px`."""
    factor = max(1, longest_px // max(rgb_HW3.shape[:2]))
    return data_uri(Image.fromarray(rgb_HW3.repeat(factor, 0).repeat(factor, 1)))


def photo_data_uri(rgb_HW3: Rgb, *, longest_px: int = PHOTO_PX) -> str:
    """Return a photo as a data URI, reduced to at most `longest_px` a side."""
    image = Image.fromarray(np.ascontiguousarray(rgb_HW3))
    if max(image.size) <= SMALL_PX:
        return data_uri(image)
    image.thumbnail((longest_px, longest_px), Image.Resampling.LANCZOS)
    return data_uri(image, "JPEG")


def palette_data_uri(codes_HW: NDArray[np.uint8], palette_N3: Rgb) -> str:
    """Return a picture of palette entries as a data URI of a PNG."""
    image = Image.fromarray(codes_HW, "P")
    image.putpalette(palette_N3.tobytes())
    return data_uri(image)
