"""The pixels of a batch: read from the views' store where it keeps them, else decoded, cut and resized from the images.

Stored pixels serve a step when every input that it wants has their size and interpolation; they are checked like tokens, and the images
are not touched. Any other step decodes the images, whose pixels are compared with the recorded digest: a changed decoder or image is an
error. The choice is a step's, all or nothing, and a run says at its start which it will be; nothing falls back to another size. Both ways
give the same bytes, undistorted: distortions are applied later, on the device.
"""

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from ...storage.core.errors import CacheMismatch
from ...storage.sources.decode import Pixels
from ...storage.views.view_spec import Views, cut, pixel_digest, resize
from .joined import AnyViews
from .targets import Rendering

Input = tuple[int, str]  # side in px, interpolation


def are_stored(views: AnyViews, inputs: Collection[Input]) -> bool:
    """Whether the views' stored pixels serve all of these inputs."""
    stored = views.spec.pixels
    return stored is not None and all(one == (stored.size_px, stored.interpolation) for one in inputs)


def origin(views: AnyViews, inputs: Collection[Input]) -> str:
    """Where a run with these inputs will take its pixels from, in words."""
    stored = views.spec.pixels
    if stored is None:
        return "the images"
    named = f"the pixels stored with the views ({stored.size_px} px, {stored.interpolation})"
    others = sorted({one for one in inputs if not are_stored(views, [one])})
    if not others:
        return named
    return f"the images; {named} do not serve {', '.join(f'{size} px {kind}' for size, kind in others)}"


def fill_pixels(
    views: AnyViews, rows_b: NDArray[np.int64], images_b: NDArray[np.int64], drawn: Views, outputs: Sequence[tuple[Rendering, Pixels]]
) -> None:
    """Put the views of some rows of these images into each output (b, size, size, 3); raises `CacheMismatch` for images that changed."""
    if are_stored(views, {(one.size_px, one.interpolation) for one, _ in outputs}):
        first, *others = [out for _, out in outputs]
        views.read_pixels(rows_b, first)
        for out in others:
            out[...] = first
        return
    for n, image in enumerate(images_b.tolist()):
        crop = np.ascontiguousarray(cut(views.dataset.read_image(image), drawn.crop[n]))  # once for digest and resizing
        if pixel_digest(crop) != drawn.digest[n].tobytes():
            raise _changed(views, image)
        for rendering, out in outputs:
            out[n] = resize(crop, bool(drawn.flip[n]), rendering.size_px, rendering.interpolation)


def _changed(views: AnyViews, image: int) -> CacheMismatch:
    image_id = views.dataset.row(image).id
    return CacheMismatch(
        f"image {image_id} of {views.dataset.key} decodes to other pixels than its recorded view {views.key} "
        "(pixel digest differs): another version of the image library? Install the recorded one or extract again"
    )
