"""Batches of pixels and targets, built by threads straight into preallocated memory.

A step's pixels are read or rendered at every input that a model needs (the student's, live teachers'; see `storage.views.pixels`); its
cached tokens are read into the same batch. A fixed number of equal batches exists (`prefetch` says how many fit), so memory is bounded;
each is split among the threads, which release the interpreter in decoding, resizing and reading. Only uint8 pixels, stored codes and the
views' photometric parameters cross to the device, where `apply_photometric` applies them; where the device resizes, the pixels are of
crops. Everything in a batch is a function of its step, so starting at any step resumes exactly.
"""

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...storage.core.choices import ResizeOn
from ...storage.features.layers import split_target
from ...storage.views.input_size import SizePx, area_px, size_hw
from ...storage.views.pixels import Output, ReadableViews, fill_pixels
from ...storage.views.view_spec import PHOTOMETRIC_PARAMETERS, Input
from ...teachers.encoders.photometric import pixels_seen_by
from ...teachers.runtime.copy_streams import copy_stream
from ...teachers.runtime.device_resize import CutViews, SentViews
from ..model.losses import Places
from ..model.ranks import ALONE, Ranks
from .order import BatchIndices, BatchOrder
from .targets import STUDENT, Memory, Rendering, TargetSource

PLACE = "place"
NOWHERE: Mapping[str, Tensor] = MappingProxyType({})


class Plan(NamedTuple):
    """What one step reads: images and views, and the inputs that are rendered of them."""

    step: int
    indices: BatchIndices
    renderings: Sequence[Rendering]

    def size_px(self, key: str) -> SizePx:
        """Return input size of the student or of one live teacher in this step."""
        return next(rendering.size_px for rendering in self.renderings if rendering.key == key)


@dataclass
class Batch:
    """One step's tensors by name: `pixels/student`, `pixels/<teacher>`, and the target source's own; `photometric` (B, 8).

    Of letterboxed views also `place/student` and `place/<teacher>` (B, 4), of cached teachers too: top, left, bottom, right of the image as
    shares of the input.
    """

    plan: Plan
    tensors: Memory
    cut: Mapping[str, CutViews] = field(default_factory=dict)
    """By model, where the device resizes: `to` gives their `pixels`."""
    copied: torch.cuda.Event | None = None
    """Of the last copy to a CUDA device: this memory must not be filled again before."""

    def to(self, device: str, *, keep: bool = False) -> Memory:
        """Return the tensors on a device; on CUDA they cross on a stream of their own, and what is computed there next waits for them.

        On a CPU they are this batch's own memory, which is filled again, unless `keep` asks for a copy.
        """
        where = torch.device(device)
        if where.type != "cuda":
            return {name: tensor.to(where, copy=keep) for name, tensor in self.tensors.items()} | {
                f"pixels/{key}": cut.to(where).resized() for key, cut in self.cut.items()
            }
        stream, computing = copy_stream(where, "in"), torch.cuda.current_stream(where)
        with torch.cuda.stream(stream):
            moved = {name: tensor.to(where, non_blocking=True) for name, tensor in self.tensors.items()}
            sent = {key: cut.to(where) for key, cut in self.cut.items()}
            self.copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self.copied.record(stream)
        computing.wait_event(self.copied)
        arrived: list[Tensor | SentViews] = [*moved.values(), *sent.values()]
        for each in arrived:
            each.record_stream(computing)  # else its memory would be taken for the next batch while this one is read
        return moved | {f"pixels/{key}": views.resized() for key, views in sent.items()}


def apply_photometric(mode: str, tensors: Memory) -> Memory:
    """Return a batch's tensors with the pixels as the student and each live teacher see them under the views' photometric mode."""
    seen = dict(tensors)
    for name, pixels in tensors.items():
        kind, _, key = name.partition("/")
        if kind == "pixels":
            place = tensors.get(f"{PLACE}/{key}")
            parameters = tensors["photometric"] if place is None else torch.cat([tensors["photometric"], place.float()], dim=1)
            seen[name] = pixels_seen_by("student" if key == STUDENT else "teacher", mode, pixels, parameters)
    return seen


def by_target(places: Mapping[str, Tensor], targets: Iterable[str]) -> dict[str, Places]:
    """Return where the images of letterboxed views lie in the student's and in each target's teacher's input; {} for other views."""
    return {target: Places(places[STUDENT], places[split_target(target)[0]]) for target in targets} if places else {}


def places_of(tensors: Memory) -> dict[str, Tensor]:
    """Return where the image of each letterboxed view lies in each model's input (B, 4), by model; {} for other views."""
    return {name.removeprefix(f"{PLACE}/"): tensor for name, tensor in tensors.items() if name.startswith(f"{PLACE}/")}


@dataclass(frozen=True)
class _Slot:
    """Memory of one batch, reused; a model's pixels lie in one buffer, which is as large as its largest input, rendered or cut."""

    batch_size: int
    fixed: Memory
    pixels: Memory
    cut: Mapping[str, CutViews]

    def tensors(self, plan: Plan, source: TargetSource) -> Memory:
        tensors = source.at_step(self.fixed, plan.step)
        for key, size_px, _ in plan.renderings:
            if key in self.pixels:
                shape = (self.batch_size, *size_hw(size_px), 3)
                tensors[f"pixels/{key}"] = self.pixels[key][: math.prod(shape)].view(shape)
        return tensors

    def cut_at(self, plan: Plan) -> dict[str, CutViews]:
        """Return the memory of cut views at the inputs of a step."""
        return {rendering.key: self.cut[rendering.key].at(rendering.input) for rendering in plan.renderings if rendering.key in self.cut}


class Stream:
    """Iterates over the batches of steps [first, last); a batch is valid until the next one is asked for.

    `batch_size` is the whole step's; each of several ranks builds its span of it. `largest_px` has the largest input of the student and of
    each live teacher, `slots` says how many batches there are: one in use, the others made ahead.
    """

    def __init__(
        self,
        views: ReadableViews,
        source: TargetSource,
        order: BatchOrder,
        student_rendering: Callable[[int], Rendering],
        *,
        batch_size: int,
        largest_px: Mapping[str, SizePx],
        slots: int = 5,
        threads: int = 2,
        pin: bool = False,
        ranks: Ranks = ALONE,
        resize: ResizeOn = "host",
    ) -> None:
        self.views, self.source, self.order, self.student_rendering = views, source, order, student_rendering
        self.global_batch, self.ranks, self.threads, self.pin, self.resize = batch_size, ranks, threads, pin, resize
        self._reach = order.reach(batch_size)
        start, stop = ranks.span(batch_size)
        self.batch_size = stop - start
        self._slots = [self._allocate(largest_px) for _ in range(slots)]

    def _allocate(self, largest_px: Mapping[str, SizePx]) -> _Slot:
        fixed = self.source.allocate(self.batch_size)
        fixed["photometric"] = torch.zeros(self.batch_size, PHOTOMETRIC_PARAMETERS)
        if self.views.spec.letterbox is not None:
            fixed |= {
                f"{PLACE}/{key}": torch.zeros(self.batch_size, 4, dtype=torch.float64) for key in (STUDENT, *self.source.inputs_px(0))
            }
        pixels, cut = Memory(), dict[str, CutViews]()
        for key, size in largest_px.items():
            if self.resize == "device":
                cut[key] = CutViews.allocate(Input(size), self.views.spec.letterbox, self.batch_size, pin=self.pin)
            else:
                pixels[key] = torch.empty(3 * self.batch_size * area_px(size), dtype=torch.uint8, pin_memory=self.pin)
        return _Slot(self.batch_size, {name: tensor.pin_memory() if self.pin else tensor for name, tensor in fixed.items()}, pixels, cut)

    def plan(self, step: int) -> Plan:
        """Return what a step uses on this rank: a pure function of the step."""
        indices = self.order.batch(step, self.global_batch, self.ranks.number, self.ranks.count)
        return Plan(step, indices, (self.student_rendering(step), *self.source.renderings(step)))

    def batches(self, first: int, last: int) -> Iterator[Batch]:
        """Yield the batches of steps [first, last) in order; an error in a thread is raised here, at its step.

        Steps whose data are not in the store yet are not begun ahead of time.
        """
        free: deque[tuple[_Slot, torch.cuda.Event | None]] = deque((slot, None) for slot in self._slots)
        pending: deque[tuple[_Slot, Batch, list[Future[None]]]] = deque()
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="stream")
        for near in range(first, min(first + self._reach, last)):
            self._expect(near)
        try:
            step = first
            while True:
                while free and step < last and (not pending or self.order.ready(step, self.global_batch)):
                    slot, copied = free.popleft()
                    pending.append((slot, *self._submit(pool, slot, step, copied)))
                    if step + self._reach < last:
                        self._expect(step + self._reach)
                    step += 1
                if not pending:
                    return
                slot, batch, parts = pending.popleft()
                for part in parts:
                    part.result()
                yield batch
                free.append((slot, batch.copied))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _expect(self, step: int) -> None:
        """Have a step's shards fetched in the background, where its order knows them early enough."""
        if self._reach and self.order.ready(step, self.global_batch):
            rows_B = self.order.batch(step, self.global_batch, self.ranks.number, self.ranks.count).row_B
            self.source.prefetch(rows_B, step)
            self.views.prefetch(rows_B)

    def _submit(
        self, pool: ThreadPoolExecutor, slot: _Slot, step: int, copied: torch.cuda.Event | None
    ) -> tuple[Batch, list[Future[None]]]:
        plan = self.plan(step)
        batch = Batch(plan, slot.tensors(plan, self.source), slot.cut_at(plan))
        edges = np.linspace(0, self.batch_size, self.threads + 1).astype(int).tolist()
        spans = [(start, stop) for start, stop in itertools.pairwise(edges) if start < stop]
        return batch, [pool.submit(self._fill, batch, start, stop, copied) for start, stop in spans]

    def _fill(self, batch: Batch, start: int, stop: int, copied: torch.cuda.Event | None) -> None:
        """Build rows [start, stop) of a batch, once the one before in this memory is on the device: readers wait, not the training."""
        if copied is not None:
            copied.synchronize()
        indices = batch.plan.indices
        rows_b = indices.row_B[start:stop]
        self.source.fill(rows_b, batch.tensors, start)
        views = self.views.read(rows_b)
        batch.tensors["photometric"][start:stop] = torch.from_numpy(views.photometric)
        if self.views.spec.letterbox is not None:
            sizes = {**self.source.inputs_px(batch.plan.step), STUDENT: batch.plan.size_px(STUDENT)}
            for key, size_px in sizes.items():
                shares = self.views.spec.letterbox.shares(views.crop[:, 2:], size_px)
                batch.tensors[f"{PLACE}/{key}"][start:stop] = torch.from_numpy(shares)
        outputs: list[Output] = [
            (
                rendering.input,
                batch.cut[rendering.key].part(start, stop)
                if rendering.key in batch.cut
                else batch.tensors[f"pixels/{rendering.key}"][start:stop].numpy(),
            )
            for rendering in batch.plan.renderings
        ]
        fill_pixels(self.views, rows_b, views, outputs)
