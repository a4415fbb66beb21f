"""The pixels of recorded views: read from the views' store where it keeps them, else cut from the images and compared with the record.

Everything that shows a recorded view to a model or a person gets its pixels here, so that one rule holds for all: a crop whose digest is
not the recorded one is refused, because tokens belong to the pixels that the teacher saw and to no others. Stored pixels serve when every
input that is wanted has their size and interpolation; they are checked like tokens, and the images are not touched. The choice is a
call's, all or nothing, and nothing falls back to another size. Both ways give the same bytes, undistorted: distortions are applied later,
by whoever has torch, and so is the resizing of an output that takes `CutPixels`. An image is decoded once for neighbouring rows of it.
Axes: n views.
"""

from collections.abc import Collection, Iterable, Sequence
from itertools import groupby
from typing import Protocol

import numpy as np
import PIL
from numpy.typing import NDArray

from ..core.errors import CacheMismatch
from ..images.dataset import ImageRow
from ..sources.decode import BadImage, Pixels
from .cut_pixels import CutPixels
from .input_size import size_text
from .renderers import Renderer
from .view_spec import DIGEST_BYTES, Input, Views, ViewSpec, cut, draw, fit, in_order, pixel_digest, render

Int64s = NDArray[np.int64]
Output = tuple[Input, Pixels | CutPixels]
"""An input and the memory (n, height, width, 3) for it, or for what a device will make it from."""
_NO_DIGEST = bytes(DIGEST_BYTES)
"""Recorded of an image that could not be decoded."""


class ReadableImages(Protocol):
    """The images of one dataset or of several that are numbered as one."""

    @property
    def key(self) -> str:
        """Name and digest, for error messages."""

    def row(self, index: int) -> ImageRow:
        """Return what is known of one image."""

    def read_image(self, index: int) -> Pixels:
        """Return one image as (height, width, 3) uint8 RGB."""


class ReadableViews(Protocol):
    """Recorded views of one dataset (`ViewSet`) or of several that are numbered as one."""

    @property
    def key(self) -> str:
        """Name and digest, for error messages."""

    @property
    def spec(self) -> ViewSpec:
        """The kind of views and its parameters; `pixels` says whether and at which input their pixels are stored."""

    @property
    def rows(self) -> int:
        """Number of recorded views, failed images included."""

    @property
    def dataset(self) -> ReadableImages:
        """The images that were cropped."""

    def images_of(self, rows: Int64s) -> Int64s:
        """Return the image of each row."""

    def read(self, which: Int64s) -> Views:
        """Return the committed views of some rows."""

    def read_pixels(self, which: Int64s, out: Pixels) -> Pixels:
        """Return the stored pixels of some rows, into `out`."""

    def prefetch(self, rows: Int64s) -> None:
        """Announce rows that will be read soon."""

    def renderer_of(self, image: int) -> Renderer:
        """Return what renders the views of an image."""

    def failure(self, image: int) -> str:
        """Return why an image could not be decoded when its views were committed."""


def are_stored(views: ReadableViews, inputs: Collection[Input]) -> bool:
    """Return whether the views' stored pixels serve all of these inputs; no input is served by none."""
    stored = views.spec.pixels
    return bool(inputs) and stored is not None and all(wanted == stored.input for wanted in inputs)


def origin_of_pixels(views: ReadableViews, inputs: Collection[Input]) -> str:
    """Return in words where pixels at these inputs will come from."""
    stored = views.spec.pixels
    if stored is None:
        return "the images"
    stored_pixels = f"the pixels stored with the views ({size_text(stored.size_px)} px, {stored.interpolation})"
    others = in_order(wanted for wanted in inputs if not are_stored(views, [wanted]))
    if not others:
        return stored_pixels
    return f"the images; {stored_pixels} do not serve {', '.join(wanted.text for wanted in others)}"


def view_pixels(views: ReadableViews, rows: Int64s, wanted: Input) -> Pixels:
    """Return the committed views of some rows at one input, (n, height, width, 3) uint8; raise as `fill_pixels` does."""
    out = np.empty((len(rows), *wanted.shape), np.uint8)
    fill_pixels(views, rows, views.read(rows), [(wanted, out)])
    return out


def fill_pixels(
    views: ReadableViews,
    rows: Int64s,
    recorded: Views,
    outputs: Sequence[Output],
    *,
    drawn_now: bool = False,
    failed: dict[str, str] | None = None,
) -> None:
    """Fill each output with the pixels of some rows, whose views are `recorded`; without outputs only compare digests.

    Views that are `drawn_now` have no digests yet: they are written into `recorded.digest`. Raise `CacheMismatch` for an image that gives
    other pixels than were recorded, or views that cannot be rendered here as theirs are, and `BadImage` for one that cannot be decoded, or
    could not when its views were committed; with `failed` such an image is noted there (id → reason) instead, and its rows of the outputs
    are not written.
    """
    if not drawn_now and are_stored(views, [wanted for wanted, _ in outputs]):
        _read_stored(views, rows, recorded, [out for _, out in outputs], failed)
        return
    images = views.images_of(rows).tolist()
    for image, positions in groupby(range(len(images)), key=images.__getitem__):
        try:
            _cut_from_image(views, image, positions, recorded, outputs, drawn_now)
        except BadImage as error:
            if failed is None:
                raise
            failed[views.dataset.row(image).id] = str(error)


def _cut_from_image(
    views: ReadableViews, image: int, positions: Iterable[int], recorded: Views, outputs: Sequence[Output], drawn_now: bool
) -> None:
    source: Pixels | None = None
    letterbox, renderer = views.spec.letterbox, views.renderer_of(image)
    renderer.require(views.key)
    for n in positions:
        known = recorded.digest[n].tobytes()
        if not drawn_now and known == _NO_DIGEST:
            raise BadImage(views.failure(image))
        source = views.dataset.read_image(image) if source is None else source
        crop = np.ascontiguousarray(cut(source, recorded.crop[n]))  # once for digest and resizing
        digest = pixel_digest(crop)
        if drawn_now:
            recorded.digest[n] = np.frombuffer(digest, np.uint8)
        elif digest != known:
            raise _differing_pixels(views, image)
        for wanted, out in outputs:
            if isinstance(out, CutPixels):
                out.put(n, crop, bool(recorded.flip[n]), letterbox, renderer)
            else:
                fit(crop, bool(recorded.flip[n]), wanted, letterbox, renderer, out[n])


def _differing_pixels(views: ReadableViews, image: int) -> CacheMismatch:
    renderer = views.renderer_of(image)
    return CacheMismatch(
        f"image {views.dataset.row(image).id} of {views.dataset.key} decodes to other pixels than those of its recorded view (pixel digest "
        f"differs, {views.key}): another version of the image library? This is Pillow {PIL.__version__}, and the views have "
        f"{renderer.text}; install the versions that identity.json of the views names, or extract again with other views (--seed)"
    )


def _read_stored(
    views: ReadableViews, rows: Int64s, recorded: Views, outputs: Sequence[Pixels | CutPixels], failed: dict[str, str] | None
) -> None:
    good = np.asarray(recorded.digest.any(axis=1))  # a failed image has views, but neither a digest nor pixels
    first, *others = [out.put_rendered(good) if isinstance(out, CutPixels) else out for out in outputs]
    if good.all():
        views.read_pixels(rows, first)
    else:
        for image in dict.fromkeys(views.images_of(rows[~good]).tolist()):
            if failed is None:
                raise BadImage(views.failure(image))
            failed[views.dataset.row(image).id] = views.failure(image)
        first[good] = views.read_pixels(rows[good], np.empty((int(good.sum()), *first.shape[1:]), np.uint8))
    for out in others:
        out[good] = first[good]


def center_views(wanted: Input, crop_fraction: float = 1.0) -> ViewSpec:
    """Return centre views of an input's aspect ratio, so that nothing is stretched."""
    height, width, _ = wanted.shape
    return ViewSpec(kind="center", crop_fraction=crop_fraction, crop_ratio=width / height)


def center_square(image: Pixels, wanted: Input, crop_fraction: float = 1.0) -> Pixels:
    """Return the centre of an image that no view is recorded of, (height, width, 3) uint8: a square, or of the input's aspect ratio."""
    crop = draw(center_views(wanted, crop_fraction), [""], np.array([image.shape[:2]], np.int32)).crop[0]
    return render(image, crop, False, wanted.size_px, wanted.interpolation)
