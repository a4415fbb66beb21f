"""Render a shard's views at each teacher's input, in batches that are made ahead of the device (see `storage.views.pixels`).

Teachers with the same input, and the views' own stored pixels, share one rendering; distortions come later, on the device. A source image
is held only while its own views are cut, so that a shard of large photos needs the memory of one of them. An image that cannot be decoded
leaves zeros behind and its id and reason in `failed`. Where the device resizes, a batch holds cut views instead. Views whose statistics
were measured were rendered before: what was kept of them (`keep_batch`) is taken again.
"""

import json
import time
from collections import deque
from collections.abc import Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import torch

from ...storage.features.kept_forwards import KeptForwards
from ...storage.sources.decode import Pixels
from ...storage.views.input_size import size_text
from ...storage.views.pixels import Output, fill_pixels
from ...storage.views.view_set import ViewSet
from ...storage.views.view_spec import Input, StoredPixels, Views, in_order
from ...teachers.runtime.device_resize import CutViews


@dataclass
class RenderedBatch:
    """The `count` views of some neighbouring images; `first` is the row of the first view in its shard."""

    first: int
    count: int
    pixels: dict[Input, Pixels]  # (count, height, width, 3) uint8 by size and interpolation
    cut: dict[Input, CutViews]  # by input, of those that the device resizes
    failed: dict[str, str]  # image id → reason
    seconds: float

    def seen(self, model_input: Input) -> Pixels | CutViews:
        """Return the views at an input, rendered or cut."""
        return self.pixels[model_input] if model_input in self.pixels else self.cut[model_input]

    @property
    def rows(self) -> slice:
        """The views' rows in their shard."""
        return slice(self.first, self.first + self.count)


@dataclass
class FreshViews:
    """A shard's views that are drawn now and not committed yet; `pixels` (rows, height, width, 3) of them where the spec stores pixels."""

    stored: StoredPixels | None
    pixels: Pixels | None

    @classmethod
    def of(cls, views: ViewSet, rows: int) -> "FreshViews":
        """Allocate the pixels of a shard of so many rows."""
        stored = views.spec.pixels
        return cls(stored, None if stored is None else np.zeros((rows, *stored.input.shape), np.uint8))


class RenderedShard(AbstractContextManager["RenderedShard"]):
    """Iterates the batches of about `views_per_batch` rendered views of a shard, in the order of its rows.

    `threads` batches are under way from the moment it is made, before the first is asked for: a shard whose turn at the device comes next
    is ready when it comes. Leaving the context drops what was not asked for. With `fresh`, digests and stored pixels of new views are
    filled in on the way: those of a batch are there when the batch is.
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
        start: int = 0,
        kept: KeptForwards | None = None,
        *,
        cut: bool = False,
    ) -> None:
        """Begin with the shard's row `start`, the first of an image; fresh views that are `kept` are not rendered again.

        With `cut` the device resizes what is not stored.
        """
        self._view_set, self._shard, self._views, self._inputs, self._fresh = (
            view_set,
            shard,
            views,
            in_order(inputs),
            fresh,
        )  # one order: it names what is kept
        self._kept, self._cut = kept if fresh is not None else None, cut
        self._first_row, rows = view_set.group.shard_span(shard)[0], len(views.crop)
        per_batch = max(1, views_per_batch // view_set.views_per_image) * view_set.views_per_image
        self._todo = iter([(start, min(per_batch, rows - start)) for start in range(start, rows, per_batch)])
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="render")
        self._under_way: deque[Future[RenderedBatch]] = deque()
        for _ in range(threads):
            self._begin_one()

    def _begin_one(self) -> None:
        span = next(self._todo, None)
        if span is not None:
            self._under_way.append(self._pool.submit(self._render, *span))

    def __iter__(self) -> Iterator[RenderedBatch]:
        while self._under_way:
            batch = self._under_way.popleft().result()
            self._begin_one()
            yield batch

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _render(self, first: int, count: int) -> RenderedBatch:
        started, fresh = time.perf_counter(), self._fresh
        batch = RenderedBatch(first, count, {}, {}, {}, 0.0)
        stored = {} if fresh is None or fresh.stored is None or fresh.pixels is None else {fresh.stored.input: fresh.pixels[batch.rows]}
        others = [model_input for model_input in self._inputs if model_input not in stored]
        if self._cut:
            letterbox, pin = self._view_set.spec.letterbox, torch.cuda.is_available()
            batch.cut = {model_input: CutViews.allocate(model_input, letterbox, count, pin=pin) for model_input in others}
        rendered = {model_input: np.zeros((count, *model_input.shape), np.uint8) for model_input in others if not self._cut}
        batch.pixels = rendered | stored
        recorded = self._views.part(batch.rows)
        if self._kept is None or not _take_batch(self._kept, self._shard, batch, recorded):
            rows = self._first_row + np.arange(first, first + count)
            outputs: list[Output] = [*batch.pixels.items()]
            outputs += [(model_input, cut.part(0, count)) for model_input, cut in batch.cut.items()]
            fill_pixels(self._view_set, rows, recorded, outputs, drawn_now=fresh is not None, failed=batch.failed)
        batch.seconds = time.perf_counter() - started
        return batch


def keep_batch(kept: KeptForwards, shard: int, batch: RenderedBatch, views: Views) -> None:
    """Keep the pixels of a batch of a shard's fresh `views`, their digests and what could not be decoded, until the shard is computed."""
    failed = np.frombuffer(json.dumps(batch.failed).encode(), np.uint8)
    kept.keep_arrays(_batch_key(shard, batch), [views.digest[batch.rows], failed, *batch.pixels.values()])


def _take_batch(kept: KeptForwards, shard: int, batch: RenderedBatch, recorded: Views) -> bool:
    """Fill a batch and the digests of its views with what was kept of them; return False where that is not there."""
    arrays = kept.take_arrays(_batch_key(shard, batch))
    if arrays is None:
        return False
    recorded.digest[:], failed = arrays[0], arrays[1]
    for out, pixels in zip(batch.pixels.values(), arrays[2:], strict=True):
        out[:] = pixels
    batch.failed |= json.loads(failed.tobytes())
    return True


def _batch_key(shard: int, batch: RenderedBatch) -> str:
    inputs = "+".join(f"{size_text(model_input.size_px)}-{model_input.interpolation}" for model_input in batch.pixels)
    return f"views-{shard}-{batch.first}-{batch.count}-{inputs}"
