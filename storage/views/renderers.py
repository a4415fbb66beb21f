"""What makes pixels of recorded views: the decoder of JPEGs and the resizer, which a set of views names in its identity.

There is one way from an image to a view (`view_spec.fit`), and two kernels for its dear steps. `PILLOW` is what every set of before has,
whose identity says nothing of it, and what evaluations use, as the official code resizes by Pillow. `fast()` decodes JPEGs by simplejpeg
(the same pixels) and resizes by torch (the same filters, other roundings), at two to three times the rate. `on_nvjpeg()` has a GPU decode,
to other pixels. A set is rendered by what its identity names and by nothing else: a machine that lacks it, or whose version gives other
pixels, refuses and says what to install. The resizer's version is not compared but what it does to made-up pictures (`check`); of the
decoder, the digests of crops are compared.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..core.choices import JpegDecoder, RendererName
from ..core.errors import CacheMismatch, unknown_name
from ..images import fast_jpeg, nvjpeg
from . import torch_resize

Pixels = NDArray[np.uint8]
Described = Mapping[str, str]
"""Library, version, mode, and of a resizer its `check`."""

_JPEG_DECODERS: dict[str, JpegDecoder] = {fast_jpeg.LIBRARY: "simplejpeg", nvjpeg.LIBRARY: "nvjpeg"}
"""By library, as identities have it."""
INTERPOLATIONS: dict[str, Image.Resampling] = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "nearest": Image.Resampling.NEAREST,
}


def _resize_by_pillow(out: Pixels, crop: Pixels, flip: bool, interpolation: str) -> None:
    height, width, _ = out.shape
    picture = Image.fromarray(np.ascontiguousarray(crop)).resize((width, height), INTERPOLATIONS[interpolation])
    if flip:  # by Pillow: numpy copies a mirrored view three bytes at a time, in ten times as long
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    out[:] = np.asarray(picture)


@dataclass(frozen=True)
class Renderer:
    """What decodes JPEGs and what resizes, as an identity describes them; None is Pillow."""

    jpeg: Described | None = None
    resizer: Described | None = None

    @classmethod
    def of(cls, identity: Mapping[str, Any]) -> "Renderer":
        """Return the renderer that an identity of views names; raise ValueError for a description that is none."""
        parts = (identity["decoder"].get("jpeg"), identity.get("resizer"))
        for part in parts:
            if part is not None and not (isinstance(part, dict) and type(part.get("library")) is type(part.get("version")) is str):
                raise ValueError(f"a renderer of {part!r}")
        return cls(*parts)

    @property
    def jpeg_decoder(self) -> JpegDecoder:
        """Which decoder a dataset is to be read by."""
        return "pillow" if self.jpeg is None else _JPEG_DECODERS.get(self.jpeg["library"], "pillow")

    @property
    def is_on_devices(self) -> bool:
        """Whether a device can resize to the same bytes (`teachers.runtime.device_resize`)."""
        return self.resizer is not None

    @property
    def name(self) -> RendererName:
        """Return what asks for it on this machine; auto for that of another version, which only a store's views can name."""
        if self.jpeg_decoder == "nvjpeg":
            return "nvjpeg" if not nvjpeg.flaw() and self == on_nvjpeg() else "auto"
        return "pillow" if self == PILLOW else "fast" if self == fast() else "auto"

    @property
    def text(self) -> str:
        """Return in words what decodes JPEGs and what resizes."""
        decoder, resizer = ("Pillow" if part is None else f"{part['library']} {part['version']}" for part in (self.jpeg, self.resizer))
        if self.jpeg is not None and self.jpeg_decoder == "nvjpeg":
            decoder += f" ({self.jpeg.get('mode')})"
        return f"JPEGs decoded by {decoder}, crops resized by {resizer}"

    def flaw(self) -> str:
        """Return why this machine cannot render as it says, and what would help; "" where it can."""
        if self.jpeg is not None:
            if self.jpeg["library"] not in _JPEG_DECODERS:
                return f"{self.jpeg['library']} decoded their JPEGs, which this version of eupe-pipeline does not know; use a later one"
            if self.jpeg_decoder == "nvjpeg":
                if why := nvjpeg.flaw():
                    return f"{self.jpeg['library']} {self.jpeg['version']} decoded their JPEGs ({self.jpeg.get('mode')}), and {why}"
            elif not fast_jpeg.is_installed():
                return f"{fast_jpeg.LIBRARY} decoded their JPEGs, which is not installed here; run: pip install '{_pin(self.jpeg)}'"
        if self.resizer is None:
            return ""
        if self.resizer["library"] != torch_resize.LIBRARY or self.resizer.get("mode") != torch_resize.MODE:
            named = f"{self.resizer['library']} ({self.resizer.get('mode')})"
            return f"{named} resized them, which this version of eupe-pipeline does not know; use a later one"
        if self.resizer.get("check") != torch_resize.check():
            here = f"torch {torch_resize.version()} here gives other pixels"
            return f"torch {self.resizer['version']} resized them, and {here}; run: pip install '{_pin(self.resizer)}'"
        return ""

    def require(self, views: str) -> None:
        """Raise `CacheMismatch` where this machine cannot render a set of views as it says."""
        if flaw := self.flaw():
            raise CacheMismatch(f"pixels of views/{views} cannot be made here: {flaw}, or extract again with other views (--seed)")

    def resize_into(self, out: Pixels, crop: Pixels, flip: bool, interpolation: str) -> None:
        """Write the crop, stretched to the size of `out` (height, width, 3), antialiased, then mirrored when `flip`."""
        if interpolation not in INTERPOLATIONS:
            raise unknown_name("interpolation", interpolation, INTERPOLATIONS)
        (_resize_by_pillow if self.resizer is None else torch_resize.resize_into)(out, crop, flip, interpolation)


def _pin(described: Described) -> str:
    return f"{described['library']}=={described['version']}"


PILLOW = Renderer()


def fast() -> Renderer:
    """Return the fastest renderer of this machine: without simplejpeg, Pillow decodes JPEGs."""
    return Renderer(fast_jpeg.described() if fast_jpeg.is_installed() else None, torch_resize.described())


def on_nvjpeg() -> Renderer:
    """Return the renderer whose JPEGs a GPU decodes; raise `BadInput` where none does."""
    return Renderer(nvjpeg.described(), torch_resize.described())


class RendererParts(NamedTuple):
    """What of an identity names a renderer: in `decoder`, and beside it; empty of Pillow."""

    in_decoder: dict[str, Described]
    beside: dict[str, Described]


def identity_parts(renderer: Renderer) -> RendererParts:
    """Return what a renderer adds to an identity of views."""
    return RendererParts(
        {} if renderer.jpeg is None else {"jpeg": renderer.jpeg}, {} if renderer.resizer is None else {"resizer": renderer.resizer}
    )
