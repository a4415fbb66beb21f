"""Images of a shard to what each teacher takes: decode once, cut the recorded views, resize to each input that is wanted.

Teachers with the same input, and the views' own stored pixels, share one rendering; distortions come later, on the device. A source image
is held only while its own views are cut, so that a shard of large photos needs the memory of one of them. Where the views keep pixels
that serve every teacher of a later extraction, those are read and no image is decoded. An image that cannot be decoded
leaves zeros behind and its id and reason in `failed`. A crop whose pixels differ from the digest that was recorded with the views is an
error: the image library decodes differently than it did.
"""

import time
from collections import deque
from collections.abc import Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from ...storage.core.errors import CacheMismatch
from ...storage.sources.decode import BadImage, Pixels
from ...storage.views.view_set import ViewSet
from ...storage.views.view_spec import DIGEST_BYTES, StoredPixels, Views, cut, pixel_digest, resize
from ...teachers.registry.spec import TeacherSpec

Input = tuple[int, str]  # side in px, interpolation


def input_of(what: TeacherSpec | StoredPixels) -> Input:
    """How a teacher wants its pixels, or how the views store theirs."""
    wanted = what.preprocessing if isinstance(what, TeacherSpec) else what
    return wanted.size_px, wanted.interpolation


@dataclass
class RenderedBatch:
    """The b views of some neighbouring images; `first` is the place of the first view in its shard."""

    first: int
    pixels: dict[Input, Pixels]  # (b, size, size, 3) uint8 by size and interpolation
    digests: NDArray[np.uint8]  # (b, 16), zero where the image failed
    failed: dict[str, str]  # image id → reason
    seconds: float


@dataclass
class FreshViews:
    """Says that a shard's views are new; `pixels` (rows, R, R, 3) of them where the spec stores pixels."""

    stored: StoredPixels | None
    pixels: Pixels | None

    @classmethod
    def of(cls, views: ViewSet, rows: int) -> "FreshViews":
        """Memory for the pixels of a shard of so many rows."""
        stored = views.spec.pixels
        return cls(stored, None if stored is None else np.zeros((rows, stored.size_px, stored.size_px, 3), np.uint8))

    def take(self, batch: RenderedBatch) -> None:
        """Keep a batch's pixels."""
        if self.stored is not None and self.pixels is not None:
            self.pixels[batch.first : batch.first + len(batch.digests)] = batch.pixels[input_of(self.stored)]


class RenderedShard(AbstractContextManager["RenderedShard"]):
    """Iterates the batches of about `views_per_batch` rendered views of a shard, in the order of its rows.

    `threads` batches are under way from the moment it is made, before the first is asked for: a shard whose turn at the device comes next
    is ready when it comes. Leaving the context drops what was not asked for. `fresh` takes the pixels that new views store.
    """

    def __init__(
        self,
        view_set: ViewSet,
        shard: int,
        views: Views,
        inputs: Collection[Input],
        views_per_batch: int,
        threads: int = 1,
        fresh: FreshViews | None = None,
    ) -> None:
        first, last = view_set.shard_images(shard)
        wanted = {*inputs, *([input_of(fresh.stored)] if fresh is not None and fresh.stored is not None else [])}
        per_batch = max(1, views_per_batch // view_set.views_per_image)
        spans = [range(start, min(start + per_batch, last)) for start in range(first, last, per_batch)]
        self._todo = iter(spans)
        make = _read_stored if _are_stored(view_set, shard, wanted) else _render
        self._render = lambda images: make(view_set, images, first, views, wanted)
        self._fresh = fresh
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="render")
        self._under_way: deque[Future[RenderedBatch]] = deque()
        for _ in range(threads):
            self._begin_one()

    def _begin_one(self) -> None:
        images = next(self._todo, None)
        if images is not None:
            self._under_way.append(self._pool.submit(self._render, images))

    def __iter__(self) -> Iterator[RenderedBatch]:
        while self._under_way:
            batch = self._under_way.popleft().result()
            self._begin_one()
            if self._fresh is not None:
                self._fresh.take(batch)
            yield batch

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


def _are_stored(view_set: ViewSet, shard: int, inputs: Collection[Input]) -> bool:
    """Whether a shard's views are committed with pixels that serve all of these inputs."""
    stored = view_set.spec.pixels
    return stored is not None and set(inputs) == {input_of(stored)} and view_set.group.record(shard) is not None


def _read_stored(view_set: ViewSet, images: range, first_image: int, views: Views, inputs: Collection[Input]) -> RenderedBatch:
    """What `_render` gives, from the pixels that were stored when it was done first; checked like tokens, and no image is touched."""
    started, views_per_image = time.perf_counter(), view_set.views_per_image
    first, count = (images.start - first_image) * views_per_image, len(images) * views_per_image
    known = view_set.failed_images(first_image // view_set.images_per_shard)
    failed = {image_id: known[image_id] for image_id in view_set.dataset.ids(images.start, images.stop) if image_id in known}
    digests = views.digest[first : first + count]
    good = digests.any(axis=1)  # a failed image has views, but neither a digest nor pixels
    [side] = {size for size, _ in inputs}
    pixels = np.zeros((count, side, side, 3), np.uint8)
    pixels[good] = view_set.read_pixels(images.start * views_per_image + np.flatnonzero(good))
    return RenderedBatch(first, dict.fromkeys(inputs, pixels), digests, failed, time.perf_counter() - started)


def _render(view_set: ViewSet, images: range, first_image: int, views: Views, inputs: Collection[Input]) -> RenderedBatch:
    started, views_per_image = time.perf_counter(), view_set.views_per_image
    first, count = (images.start - first_image) * views_per_image, len(images) * views_per_image
    pixels = {one: np.zeros((count, one[0], one[0], 3), np.uint8) for one in inputs}
    batch = RenderedBatch(first, pixels, np.zeros((count, DIGEST_BYTES), np.uint8), {}, 0.0)
    for number, image in enumerate(images):
        try:
            source = view_set.dataset.read_image(image)
        except BadImage as error:
            batch.failed[view_set.dataset.row(image).id] = str(error)
            continue
        for place in range(number * views_per_image, (number + 1) * views_per_image):
            crop = cut(source, views.crop[first + place])
            batch.digests[place] = np.frombuffer(pixel_digest(crop), np.uint8)
            if views.digest[first + place].any() and not np.array_equal(views.digest[first + place], batch.digests[place]):
                raise _other_pixels(view_set, image)
            for one, rendered in pixels.items():
                rendered[place] = resize(crop, bool(views.flip[first + place]), *one)
    batch.seconds = time.perf_counter() - started
    return batch


def _other_pixels(view_set: ViewSet, image: int) -> CacheMismatch:
    return CacheMismatch(
        f"the pixels of image {view_set.dataset.row(image).id} differ from those with which the views {view_set.key} were committed: "
        "the image library decodes differently now. Restore its version, or extract with other views (--seed)"
    )
