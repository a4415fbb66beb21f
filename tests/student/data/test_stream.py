"""The stream: the right pixels and tokens at the right place, in order, from any start, in bounded memory, with loud errors."""

from typing import Any

import numpy as np
import pytest
from eupe_pipeline.storage.core.errors import CacheMismatch
from eupe_pipeline.storage.views.view_spec import render
from eupe_pipeline.student.data.order import Order
from eupe_pipeline.student.data.shard_order import ShardOrder
from eupe_pipeline.student.data.stream import Stream
from eupe_pipeline.student.data.targets import STUDENT, CachedTargets, LiveTargets, Rendering, TargetSource
from eupe_pipeline.student.model.ranks import Ranks

BATCH = 7


def make(tiny: Any, source: TargetSource | None = None, sizes: tuple[int, ...] = (16,), **options: Any) -> Stream:
    reader = tiny.features()
    order = Order(len(reader.views.dataset), reader.views.views_per_image, 11)
    found = source if source is not None else CachedTargets({"t": reader})
    return Stream(
        reader.views, found, order, lambda step: Rendering(STUDENT, sizes[step % len(sizes)], "bicubic"), batch_size=BATCH,
        largest_px={STUDENT: max(sizes), **found.largest_px()}, **options,
    )  # fmt: skip


class Watched(CachedTargets):
    """Remembers in which order rows were announced (True) and asked for (False)."""

    def __init__(self, readers: Any) -> None:
        super().__init__(readers)
        self.seen: list[tuple[bool, list[int]]] = []

    def prefetch(self, rows_b: Any, step: int) -> None:
        self.seen.append((True, rows_b.tolist()))

    def fill(self, rows_b: Any, memory: Any, start: int) -> None:
        self.seen.append((False, rows_b.tolist()))
        super().fill(rows_b, memory, start)


def snapshot(stream: Stream, first: int, last: int) -> list[dict[str, Any]]:
    return [{name: one.clone().numpy() for name, one in batch.tensors.items()} for batch in stream.batches(first, last)]


def test_each_place_holds_its_own_view_and_tokens(tiny_store: Any) -> None:
    reader = tiny_store.features()
    for batch in make(tiny_store).batches(0, 5):
        rows = batch.plan.indices.row_B
        views, tokens = reader.views.read(rows), reader.read(rows)
        assert np.array_equal(batch.tensors["t/patch"].numpy(), tokens.patch)
        assert np.array_equal(batch.tensors["t/cls"].numpy(), tokens.cls)
        for n, row in enumerate(rows.tolist()):
            expected = render(
                reader.views.dataset.read_image(row // 2), views.crop[n], bool(views.flip[n]), 16, renderer=reader.views.renderer
            )
            assert np.array_equal(batch.tensors["pixels/student"][n].numpy(), expected)


@pytest.mark.parametrize(("threads", "slots"), [(1, 2), (3, 3), (16, 6)])
def test_threads_and_prefetch_change_nothing(tiny_store: Any, threads: int, slots: int) -> None:
    one = snapshot(make(tiny_store), 0, 6)
    other = snapshot(make(tiny_store, threads=threads, slots=slots), 0, 6)
    for a, b in zip(one, other, strict=True):
        assert all(np.array_equal(a[name], b[name]) for name in a)


def test_starting_at_any_step_gives_the_same_batches(tiny_store: Any) -> None:
    whole = snapshot(make(tiny_store), 0, 8)
    for first in (1, 4, 7):
        for a, b in zip(whole[first:], snapshot(make(tiny_store), first, 8), strict=True):
            assert all(np.array_equal(a[name], b[name]) for name in a)


def test_an_epoch_has_each_image_once(tiny_store: Any) -> None:
    images = [image for batch in make(tiny_store).batches(0, 24) for image in batch.plan.indices.image_B.tolist()]
    assert sorted(images[:24]) == list(range(24))
    assert len(images) == 24 * BATCH


def test_live_teachers_get_their_own_rendering_of_the_same_crop(tiny_store: Any) -> None:
    source = LiveTargets({"t": tiny_store.teacher}, {"t": tiny_store.features().statistics}, sizes_px=(16, 24))
    stream = make(tiny_store, source, sizes=(16, 32))
    for batch in stream.batches(0, 4):
        side = batch.plan.size_px("t")
        assert batch.tensors["pixels/t"].shape == (BATCH, side, side, 3)
        assert batch.tensors["pixels/student"].shape[1] == (16, 32)[batch.plan.step % 2]
        if side == batch.plan.size_px(STUDENT):
            assert np.array_equal(batch.tensors["pixels/t"].numpy(), batch.tensors["pixels/student"].numpy())


def test_memory_is_reused(tiny_store: Any) -> None:
    stream = make(tiny_store, slots=3)
    addresses = {batch.tensors["t/patch"].data_ptr() for batch in stream.batches(0, 12)}
    assert len(addresses) == 3


def test_photometric_parameters_come_along(tiny_store: Any) -> None:
    batch = next(iter(make(tiny_store).batches(0, 1)))
    assert batch.tensors["photometric"].shape == (BATCH, 8)


def test_an_error_in_a_thread_is_raised_at_its_step(tiny_store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = make(tiny_store)
    bad = int(stream.plan(2).indices.image_B[0])
    read = stream.views.dataset.read_image

    def broken(image: int) -> Any:
        if image == bad:
            raise OSError("the disk is gone")
        return read(image)

    monkeypatch.setattr(stream.views.dataset, "read_image", broken)
    seen = []
    with pytest.raises(OSError, match="the disk is gone"):
        seen += [batch.plan.step for batch in stream.batches(0, 6)]
    monkeypatch.undo()
    first_bad = next(step for step in range(6) if bad in stream.plan(step).indices.image_B)
    assert seen == [] or max(seen) < first_bad


def test_pixels_that_decode_to_something_else_are_refused(tiny_store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = make(tiny_store)
    read = stream.views.dataset.read_image
    monkeypatch.setattr(stream.views.dataset, "read_image", lambda image: read(image) ^ np.uint8(1))
    with pytest.raises(CacheMismatch, match=r"image class\d/\d+"):
        next(iter(stream.batches(0, 1)))


def test_leaving_early_stops_the_threads(tiny_store: Any) -> None:
    import threading

    batches = make(tiny_store).batches(0, 1000)
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("stream")]


@pytest.mark.parametrize("ranks", [Ranks(), Ranks(1, 2)])
def test_shards_are_announced_a_window_before_they_are_read(tiny_store: Any, ranks: Ranks) -> None:
    reader = tiny_store.features()
    source = Watched({"t": reader})
    order = ShardOrder(24, 2, 11, images_per_shard=8, window_shards=1)
    stream = Stream(
        reader.views, source, order, lambda step: Rendering(STUDENT, 16, "bicubic"), batch_size=4, largest_px={STUDENT: 16}, threads=1,
        slots=2, ranks=ranks,
    )  # fmt: skip
    assert order.reach(4) == 2
    list(stream.batches(3, 15))
    read = [rows for announced, rows in source.seen if not announced]
    assert read == [rows for announced, rows in source.seen if announced], "all of it, in order, and nothing else"
    steps = -1
    for at, (announced, _) in enumerate(source.seen):
        steps += not announced
        if not announced:
            assert sum(announced for announced, _ in source.seen[:at]) >= min(steps + order.reach(4), 12)


def test_a_global_order_announces_nothing(tiny_store: Any) -> None:
    source = Watched({"t": tiny_store.features()})
    list(make(tiny_store, source).batches(0, 4))
    assert not [rows for announced, rows in source.seen if announced]
