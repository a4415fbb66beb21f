"""Cached targets at several input sizes of the teachers: each step reads the feature sets of the size that its draw names.

The draw is the one of `LiveTargets`, a pure function of seed and step, so that with fp32 sets and equal draws a run from the cache is the
run beside the live teachers. Sets of all sizes are over one set of views and share their statistics; whoever opens them checks that.
A batch's memory is as large as its largest size needs: one buffer of bytes for each stored array, of which a step's arrays are views. Their
names carry the size, so that filling and decoding need no step of their own.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...storage.core.errors import BadInput
from ...storage.features.features import FeatureReader
from ...storage.views.input_size import SizePx, size_text
from ..model.draws import choose_size
from ..model.recipe import TrainRecipe
from ..model.student import TargetSpec, refuse_unequal_grids
from .targets import NO_LAYERS, CachedTargets, Layers, Memory, Rendering, Targets

_BUFFER = "any size"  # of memory that no step's size has been told to yet


class SizedTargets:
    """Tokens of feature sets by input size and teacher name: a `TargetSource` whose sizes are drawn in the order that they are given in."""

    def __init__(self, by_size: Mapping[SizePx, Mapping[str, FeatureReader]], seed: int, layers: Layers = NO_LAYERS) -> None:
        self.by_size = {size_px: CachedTargets(readers, layers) for size_px, readers in by_size.items()}
        self.sizes_px, self.seed = tuple(by_size), seed
        self._of_text = {size_text(size_px): source for size_px, source in self.by_size.items()}
        self._first = self.by_size[self.sizes_px[0]]
        self._empty = {size_px: source.allocate(1) for size_px, source in self.by_size.items()}

    @property
    def specs(self) -> Mapping[str, TargetSpec]:
        """Widths, and the grid at the first size."""
        return self._first.specs

    def size_px(self, step: int) -> SizePx:
        """Return the input size of a step's targets."""
        return choose_size(self.seed, "teacher", step, self.sizes_px)

    def renderings(self, step: int) -> Sequence[Rendering]:
        """Return none: the teachers have seen these views already."""
        return ()

    def largest_px(self) -> Mapping[str, SizePx]:
        """Return none."""
        return {}

    def inputs_px(self, step: int) -> Mapping[str, SizePx]:
        """Return the size that is drawn for a step."""
        return self.by_size[self.size_px(step)].inputs_px(step)

    def allocate(self, batch_size: int) -> Memory:
        """Allocate a buffer for each stored array, as large as its largest size."""
        needed: dict[str, int] = {}
        for memory in self._empty.values():
            for name, tensor in memory.items():
                needed[name] = max(needed.get(name, 0), batch_size * tensor.nbytes)
        return {f"{_BUFFER}:{name}": torch.empty(nbytes, dtype=torch.uint8) for name, nbytes in needed.items()}

    def at_step(self, memory: Memory, step: int) -> Memory:
        """Return a batch's memory with its buffers as the arrays of the step's size, by `<size>:<name>`."""
        size_px = self.size_px(step)
        buffers = {name.partition(":")[2]: tensor for name, tensor in memory.items() if name.startswith(f"{_BUFFER}:")}
        arrays = {name: tensor for name, tensor in memory.items() if not name.startswith(f"{_BUFFER}:")}
        for name, one in self._empty[size_px].items():
            row_bytes = math.prod(one.shape[1:]) * one.itemsize
            batch_size = self._batch_size(name, buffers[name])
            window = buffers[name][: batch_size * row_bytes]
            arrays[f"{size_text(size_px)}:{name}"] = window.view(one.dtype).view(batch_size, *one.shape[1:])
        return arrays

    def _batch_size(self, name: str, buffer: Tensor) -> int:
        return buffer.nbytes // max(memory[name].nbytes for memory in self._empty.values() if name in memory)

    def prefetch(self, rows_b: NDArray[np.int64], step: int) -> None:
        """Have the shards of the step's size fetched in the background, and of no other."""
        self.by_size[self.size_px(step)].prefetch(rows_b, step)

    def fill(self, rows_b: NDArray[np.int64], memory: Memory, start: int) -> None:
        """Read checked rows of the size that the memory is of."""
        source, arrays = self._sized(memory)
        source.fill(rows_b, arrays, start)

    def resolve(self, tensors: Mapping[str, Tensor]) -> Targets:
        """Decode on the device."""
        source, arrays = self._sized(tensors)
        return source.resolve(arrays)

    def _sized(self, tensors: Mapping[str, Tensor]) -> tuple[CachedTargets, Memory]:
        """Return the source of the size that a batch is of, and the arrays by the names that it knows."""
        text = next(text for name in tensors if (text := name.partition(":")[0]) in self._of_text)
        return self._of_text[text], {name.partition(":")[2]: tensor for name, tensor in tensors.items() if name.partition(":")[0] == text}

    def identities(self) -> dict[str, Any]:
        """Return what a set of one size is, of the first size, and the sets of all sizes in the order that they are drawn from."""
        described = {size_text(size_px): source.identities() for size_px, source in self.by_size.items()}
        return {
            name: {**first, "by_size": [{"size_px": text, **sets[name]} for text, sets in described.items()]}
            for name, first in self._first.identities().items()
        }


def cached_sizes(recipe: TrainRecipe) -> tuple[SizePx, ...]:
    """Return the sizes that each teacher has a feature set of, () where it has one or runs live; raises `BadInput` for one named twice."""
    sizes = recipe.teacher.sizes_px if recipe.teacher.source == "cached" else ()
    if len(set(sizes)) < len(sizes):
        raise BadInput(f"teacher.sizes_px = {list(sizes)} names a size twice; with cached targets each has one feature set")
    return sizes


def refuse_sampled_sizes(recipe: TrainRecipe, by_size: Mapping[SizePx, Mapping[str, FeatureReader]]) -> None:
    """Raise `BadInput` for sampled tokens of any size whose grid is not the student's at each of its sizes: the two are drawn apart."""
    for size_px, readers in by_size.items():
        try:
            refuse_unequal_grids(recipe, CachedTargets(readers).specs)
        except BadInput as error:
            raise BadInput(
                f"at the teachers' size of {size_text(size_px)} px, {error}. A step draws the student's size and the teachers' apart, so "
                "that sampled tokens need one grid for all of them: extract whole grids for several sizes (leave --tokens-per-view out), "
                "or train at one student.sizes_px and one teacher.sizes_px of the same grid"
            ) from error
