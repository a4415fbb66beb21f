"""Several datasets numbered as one, so that a mixture's stream reads rows as a single dataset's does.

Images and rows run on from dataset to dataset: row r of the second one is row `rows of the first + r` here. Views, pixels and targets are
looked up in the dataset that a number falls into; nothing is copied, and a batch, which is all of one dataset, costs one look-up more.
What is not numbered (teachers, widths, grid, codec, statistics) is the same in all of them: whoever joins them checks that.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ...storage.images.dataset import ImageDataset, ImageRow
from ...storage.sources.decode import Pixels
from ...storage.views.input_size import SizePx
from ...storage.views.renderers import Renderer
from ...storage.views.view_set import ViewSet
from ...storage.views.view_spec import Views, empty_views
from ..model.student import TargetSpec
from .targets import Memory, Rendering, Targets, TargetSource

Int64s = NDArray[np.int64]


class Numbering:
    """Consecutive numbers over parts of the given sizes; `starts[i]` is the first number of part i."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self.starts = [0, *np.cumsum(np.array(sizes, np.int64)).tolist()]

    @property
    def total(self) -> int:
        """How many numbers there are."""
        return int(self.starts[-1])

    def locate(self, number: int) -> tuple[int, int]:
        """Return (part, number within it)."""
        part = int(np.searchsorted(self.starts, number, side="right")) - 1
        return part, number - int(self.starts[part])

    def split(self, numbers: Int64s) -> Iterator[tuple[int, NDArray[np.bool_], Int64s]]:
        """Yield (part, mask of the numbers that fall into it, those numbers within it), for each part that has any."""
        parts = np.searchsorted(self.starts, numbers, side="right") - 1
        for part in np.unique(parts).tolist():
            here = parts == part
            yield part, here, numbers[here] - self.starts[part]


class JoinedImages:
    """The images of several datasets."""

    def __init__(self, datasets: Sequence[ImageDataset]) -> None:
        self.datasets, self.numbering = list(datasets), Numbering([len(dataset) for dataset in datasets])
        self.key = " + ".join(dataset.key for dataset in datasets)

    def __len__(self) -> int:
        return self.numbering.total

    def row(self, index: int) -> ImageRow:
        """Return what is known of one image."""
        part, local = self.numbering.locate(index)
        return self.datasets[part].row(local)

    def read_image(self, index: int) -> Pixels:
        """Read one image as (H, W, 3) uint8 RGB; raises as its dataset does."""
        part, local = self.numbering.locate(index)
        return self.datasets[part].read_image(local)


class JoinedViews:
    """`ReadableViews` of several datasets; they may differ in how many views an image has."""

    def __init__(self, parts: Sequence[ViewSet]) -> None:
        self.parts, self.numbering = list(parts), Numbering([part.rows for part in parts])
        self.dataset = JoinedImages([part.dataset for part in parts])
        self.key = " + ".join(part.key for part in parts)
        stored = {part.spec.pixels for part in parts}
        self.spec = replace(parts[0].spec, pixels=stored.pop() if len(stored) == 1 else None)  # a step's pixels come from all or none

    @property
    def rows(self) -> int:
        """Rows of all datasets together."""
        return self.numbering.total

    def images_of(self, rows: Int64s) -> Int64s:
        """Return the image of each row, numbered as the images of all."""
        images = np.empty(len(rows), np.int64)
        for part, here, local in self.numbering.split(rows):
            images[here] = self.dataset.numbering.starts[part] + self.parts[part].images_of(local)
        return images

    def renderer_of(self, image: int) -> Renderer:
        """Return what renders the views of an image: datasets may differ in it."""
        part, local = self.dataset.numbering.locate(image)
        return self.parts[part].renderer_of(local)

    def failure(self, image: int) -> str:
        """Return why an image failed, as `ViewSet.failure`."""
        part, local = self.dataset.numbering.locate(image)
        return self.parts[part].failure(local)

    def read(self, rows: Int64s) -> Views:
        """Read the committed views of any rows, in their order; raises as `ViewSet.read` does."""
        out = empty_views(len(rows))
        for part, here, local in self.numbering.split(rows):
            views = self.parts[part].read(local)
            out.crop[here], out.flip[here] = views.crop, views.flip
            out.photometric[here], out.digest[here] = views.photometric, views.digest
        return out

    def prefetch(self, rows: Int64s) -> None:
        """Announce rows that will be read soon, as `ViewSet.prefetch`."""
        for part, _, local in self.numbering.split(rows):
            self.parts[part].prefetch(local)

    def read_pixels(self, rows: Int64s, out: Pixels) -> Pixels:
        """Read stored pixels of any rows into `out`; raises as `ViewSet.read_pixels` does."""
        for part, here, local in self.numbering.split(rows):
            if here.all():
                self.parts[part].read_pixels(local, out)
            else:
                out[here] = self.parts[part].read_pixels(local)
        return out


class JoinedTargets:
    """The target sources of several datasets, one teacher each by the same names: a `TargetSource` over joined rows."""

    def __init__(self, parts: Mapping[str, TargetSource], rows: Sequence[int]) -> None:
        self.parts, self.numbering = dict(parts), Numbering(rows)
        self._sources = list(parts.values())
        self._first = self._sources[0]

    @property
    def specs(self) -> Mapping[str, TargetSpec]:
        """Widths and grid of each teacher's targets."""
        return self._first.specs

    def renderings(self, step: int) -> Sequence[Rendering]:
        """Return those of the sources, which are alike."""
        return self._first.renderings(step)

    def largest_px(self) -> Mapping[str, SizePx]:
        """Return those of the sources, which are alike."""
        return self._first.largest_px()

    def inputs_px(self, step: int) -> Mapping[str, SizePx]:
        """Return those of the sources, which are alike."""
        return self._first.inputs_px(step)

    def allocate(self, batch_size: int) -> Memory:
        """Allocate memory that fits every dataset's rows."""
        return self._first.allocate(batch_size)

    def at_step(self, memory: Memory, step: int) -> Memory:
        """Return a batch's memory as a step uses it, alike in every dataset."""
        return self._first.at_step(memory, step)

    def prefetch(self, rows_b: Int64s, step: int) -> None:
        """Announce each dataset's rows to its source."""
        for part, _, local in self.numbering.split(rows_b):
            self._sources[part].prefetch(local, step)

    def fill(self, rows_b: Int64s, memory: Memory, start: int) -> None:
        """Fill rows from their sources; rows that follow each other in one dataset are read together."""
        parts = np.searchsorted(self.numbering.starts, rows_b, side="right") - 1
        cuts = [0, *(np.flatnonzero(np.diff(parts)) + 1).tolist(), len(rows_b)]
        for first, last in pairwise(cuts):
            if first < last:
                part = int(parts[first])
                self._sources[part].fill(rows_b[first:last] - self.numbering.starts[part], memory, start + first)

    def resolve(self, tensors: Mapping[str, Tensor]) -> Targets:
        """Return tokens as the sources do, which share codec and statistics."""
        return self._first.resolve(tensors)

    def identities(self) -> dict[str, Any]:
        """Return the first dataset's identities by teacher, the others' under `mixed_with`."""
        identities = {name: source.identities() for name, source in self.parts.items()}
        first, *others = identities
        return {
            teacher: {**described, "mixed_with": {name: identities[name][teacher] for name in others}}
            for teacher, described in identities[first].items()
        }
