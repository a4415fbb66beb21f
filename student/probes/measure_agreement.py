"""Measure agreement over recorded views: of a student in training, or of a finished one.

An image is measured by its first recorded view (k = 0), as the student saw it in training (crop, flip, distortions), at the student's
largest input size, against the tokens that the store holds of that very view; with live targets too, which are the same tokens at another
precision, and at the teacher's own size. Batches come from the trainer's own `Stream`, so pixels are checked against the store, and a few
batches are all that is in memory. Which images: those of the lowest ranks (`storage.images.hold_out`), so two measurements of a run are of
the same images, and one of fewer images is of a part of them. Axes: N images.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...storage.core.events import OnEvent
from ...storage.features.features import FeatureReader
from ...storage.images.hold_out import Int64s, lowest_ranked
from ...storage.views.input_size import SizePx
from ...storage.views.pixels import ReadableViews
from ...storage.views.view_set import ViewSet
from ...teachers.encoders.build import build_encoder
from ...teachers.runtime.devices import autocast
from ..data.joined import JoinedTargets, JoinedViews, Numbering
from ..data.order import FixedRows
from ..data.stream import Batch, Stream, apply_photometric, by_target, places_of
from ..data.targets import STUDENT, CachedTargets, Rendering, Targets, TargetSource
from ..model.ranks import ALONE, Ranks
from ..model.sharding import full_tensor
from ..model.student import Student, spec_of_target
from .agreement import Agreement, gap, outputs, summarize

BATCH = 64
FEW = 20  # images


def warn_of_few(count: int, on_event: OnEvent) -> None:
    """Warn where a figure is of so few images that it says little."""
    if count < FEW:
        text = f"agreement is of {count} images only, so it says little and its gap may have either sign; hold out a larger share"
        on_event({"event": "warning", "text": text})


@dataclass(frozen=True)
class TokenSet:
    """One dataset: the stored tokens of each teacher, all over one set of views."""

    readers: Mapping[str, FeatureReader]
    """By the names of the student's adapters."""
    without: Int64s
    """Images that are not measured, ascending: those outside of a run's subset."""

    @property
    def views(self) -> ViewSet:
        """The views of all of its tokens."""
        return next(iter(self.readers.values())).views


class TokenSets:
    """Several datasets, their rows numbered one after another."""

    def __init__(self, sets: Sequence[TokenSet]) -> None:
        self.sets = list(sets)
        self._numbering = Numbering([token_set.views.rows for token_set in self.sets])

    def joined(self) -> tuple[ReadableViews, TargetSource]:
        """Return the views and stored tokens of all."""
        if len(self.sets) == 1:
            return self.sets[0].views, CachedTargets(self.sets[0].readers)
        sources = {token_set.views.key: CachedTargets(token_set.readers) for token_set in self.sets}
        return JoinedViews([token_set.views for token_set in self.sets]), JoinedTargets(
            sources, [token_set.views.rows for token_set in self.sets]
        )

    def sample(self, count: int, share: float, *, held_out: bool) -> Int64s:
        """Return the rows, by rising rank, of at most `count` images that a share holds out, or of images that it does not."""
        ranked = [
            lowest_ranked(token_set.views.dataset, count, share, held_out=held_out, without=token_set.without) for token_set in self.sets
        ]
        rows = [
            start + images.image_N * token_set.views.views_per_image
            for start, token_set, images in zip(self._numbering.starts, self.sets, ranked, strict=False)
        ]
        order = np.argsort(np.concatenate([images.rank_N for images in ranked]), kind="stable")[:count]
        return np.concatenate(rows)[order]

    def are_there(self, rows_N: Int64s) -> bool:
        """Return whether every shard of some rows is committed."""
        return all(
            reader.group.committed_mask()[np.unique(local // reader.group.shard_rows)].all()
            for part, _, local in self._numbering.split(rows_N)
            for reader in self.sets[part].readers.values()
        )

    def with_tokens(self, rows_N: Int64s) -> Int64s:
        """Return the rows whose image no teacher failed on; their shards have to be there."""
        stays = np.ones(len(rows_N), np.bool_)
        for part, here, local in self._numbering.split(rows_N):
            for reader in self.sets[part].readers.values():
                stays[here] &= ~np.isin(local, reader.failed_rows())
        return rows_N[stays]


def frozen_copy(student: Student, width: int, targets: TargetSource, device: str, ranks: Ranks = ALONE) -> Student | None:
    """Return a copy of its own of a student in training, in eval mode, on the first rank; None on others. Collective.

    `width` is the adapters' hidden one. Torch's generators stay as they are.
    """
    state = {name: full_tensor(tensor.detach()) for name, tensor in student.state_dict().items()}
    if not ranks.first:
        return None
    devices = [torch.device(device)] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        specs = {name: spec_of_target(targets.specs, name) for name in student.teacher_names}
        copy = Student(build_encoder(student.encoder.architecture), width, specs)
    copy.to(device).load_state_dict(state, strict=True)
    copy.encoder.preprocessing = student.encoder.preprocessing
    return copy.eval()


@dataclass(frozen=True)
class Measurement:
    """How rows are measured."""

    size_px: SizePx
    """The student's input."""
    device: str
    precision: str
    batch_size: int = BATCH
    restate: Callable[[Targets], Targets] = lambda targets: targets
    """Brings stored tokens to the normalisation that the adapters were trained for."""
    on_done: Callable[[int], None] = lambda done: None
    """Called with the number of images that are done."""

    def of(self, student: Student, sets: TokenSets, rows_N: Int64s) -> dict[str, Any]:
        """Return the figures (`agreement.summarize`) of a student in eval mode over some rows."""
        views, source = sets.joined()
        agreements, done = {name: Agreement() for name in source.specs}, 0
        for batch in self._batches(student, views, source, np.sort(rows_N)):  # neighbours in a shard are read together
            tensors = apply_photometric(views.spec.photometric, batch.to(self.device))
            with torch.no_grad():
                targets = self.restate(source.resolve(tensors))
                with autocast(self.device, self.precision):
                    made = outputs(student, tensors[f"pixels/{STUDENT}"], targets)
                places = by_target(places_of(tensors), made)
                for name, (predicted, features) in made.items():
                    agreements[name].update(predicted, features, targets[name], places.get(name))
            done += len(batch.plan.indices.row_B)
            self.on_done(done)
        return summarize(agreements)

    def _batches(self, student: Student, views: ReadableViews, source: TargetSource, rows_N: Int64s) -> Iterator[Batch]:
        """Yield equal batches and a smaller last one."""
        rendering = Rendering(STUDENT, self.size_px, student.encoder.preprocessing.interpolation)
        whole = len(rows_N) // self.batch_size * self.batch_size
        for rows, size in ((rows_N[:whole], self.batch_size), (rows_N[whole:], len(rows_N) - whole)):
            if len(rows):
                stream = Stream(
                    views, source, FixedRows(views.images_of(rows), rows), lambda step: rendering, batch_size=size,
                    largest_px={STUDENT: self.size_px}, slots=2,
                )  # fmt: skip
                yield from stream.batches(0, len(rows) // size)

    def both(self, student: Student, sets: TokenSets, held_out_N: Int64s, trained_N: Int64s) -> dict[str, Any]:
        """Return the figures of held-out and of trained images, the gap between them, the images of each, and the seconds."""
        started = time.perf_counter()
        held_out, trained = self.of(student, sets, held_out_N), self.of(student, sets, trained_N)
        seconds = time.perf_counter() - started
        return {"held_out": held_out, "trained": trained, "gap": gap(trained, held_out), "images": len(held_out_N), "seconds": seconds}
