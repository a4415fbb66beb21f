"""The sources of a step's targets: cached tokens read from feature sets, or live teachers over the same recorded views.

`TargetSource` is the one protocol that the trainer knows. A source says which renderings of each view it needs (live teachers), owns memory
for a batch that reader threads fill (cached tokens, as stored: codes and scales), and turns both into normalised fp32 tokens on the device.
With the fp32 codec the two give bit-equal targets on a CPU when the extraction's and the live forward's batches have the same size, because
matrix products may round differently for other batch sizes; `forward_batch = 1` on both sides makes that exact for any order.
Axes: B images, H and W grid, D channels.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...storage.core.errors import BadInput
from ...storage.features.features import FeatureReader, TokenRows
from ...storage.features.statistics import Statistics
from ...storage.views.view_spec import Input
from ...teachers.encoders.tokens import SampledTokens, Tokens
from ...teachers.registry.teacher import Teacher
from ..model.draws import choose_size
from ..model.student import TargetSpec
from .decode_tokens import decode_patch, normalised

STUDENT = "student"  # the key of the student's own pixels; teachers' names stand beside it
Memory = dict[str, Tensor]
Targets = Mapping[str, Tokens | SampledTokens]


class Rendering(NamedTuple):
    """Pixels of a view at one model's input: stored under `pixels/<key>` as (B, size_px, size_px, 3) uint8."""

    key: str
    size_px: int
    interpolation: str

    @property
    def input(self) -> Input:
        """Size and interpolation alone, without the model."""
        return Input(self.size_px, self.interpolation)


class TargetSource(Protocol):
    """Targets for the steps of a run; `fill` is called from several threads at once."""

    @property
    def specs(self) -> Mapping[str, TargetSpec]:
        """Widths and grid of each teacher's targets."""

    def renderings(self, step: int) -> Sequence[Rendering]:
        """Return the pixels that this source needs of each view of a step."""

    def largest_px(self) -> Mapping[str, int]:
        """Return the largest input, over all steps, of each model that needs pixels."""

    def allocate(self, batch_size: int) -> Memory:
        """Allocate host memory for one batch, by name."""

    def prefetch(self, rows_b: NDArray[np.int64]) -> None:
        """Announce rows that will be asked for soon."""

    def fill(self, rows_b: NDArray[np.int64], memory: Memory, start: int) -> None:
        """Write the targets of some feature rows into rows [start, start + b) of a batch's memory."""

    def resolve(self, tensors: Mapping[str, Tensor]) -> Targets:
        """Return normalised fp32 tokens by teacher, from the batch's memory and pixels on the device."""

    def identities(self) -> dict[str, Any]:
        """Return what these targets are, by teacher, JSON-able."""


class CachedTargets:
    """Tokens of feature sets over one set of views, by teacher name."""

    def __init__(self, readers: Mapping[str, FeatureReader]) -> None:
        self.readers = dict(readers)
        self.specs: Mapping[str, TargetSpec] = {
            name: TargetSpec(reader.cls_dim, reader.patch_dim, reader.grid, reader.layout.tokens_per_view)
            for name, reader in self.readers.items()
        }

    def renderings(self, step: int) -> Sequence[Rendering]:
        """Return none: the teachers have seen these views already."""
        return ()

    def largest_px(self) -> Mapping[str, int]:
        """Return none."""
        return {}

    def allocate(self, batch_size: int) -> Memory:
        """Allocate memory in the stored types: `<teacher>/cls`, `<teacher>/patch`, `<teacher>/scale`, `<teacher>/position`."""
        memory: Memory = {}
        for name, reader in self.readers.items():
            arrays = reader.empty(batch_size)._asdict()
            memory |= {f"{name}/{part}": torch.from_numpy(array) for part, array in arrays.items() if array is not None}
        return memory

    def prefetch(self, rows_b: NDArray[np.int64]) -> None:
        """Have the shards of a remote store fetched in the background."""
        for reader in self.readers.values():
            reader.prefetch(rows_b)

    def fill(self, rows_b: NDArray[np.int64], memory: Memory, start: int) -> None:
        """Read checked rows straight into the batch, on the calling thread alone."""
        for name, reader in self.readers.items():
            window = slice(start, start + len(rows_b))
            cls, scale, position = (_window(memory.get(f"{name}/{part}"), window) for part in ("cls", "scale", "position"))
            reader.read(rows_b, out=TokenRows(cls, memory[f"{name}/patch"][window].numpy(), scale, position), threads=1)

    def resolve(self, tensors: Mapping[str, Tensor]) -> Targets:
        """Decode on the device."""
        return {name: self._tokens(name, tensors) for name in self.readers}

    def _tokens(self, name: str, tensors: Mapping[str, Tensor]) -> Tokens | SampledTokens:
        cls, position_BT = tensors.get(f"{name}/cls"), tensors.get(f"{name}/position")
        cls_BD = None if cls is None else cls.float()
        patch = decode_patch(tensors[f"{name}/patch"], tensors.get(f"{name}/scale"), self.readers[name].codec)
        return Tokens(cls_BD, patch) if position_BT is None else SampledTokens(cls_BD, patch, position_BT, self.readers[name].grid)

    def identities(self) -> dict[str, Any]:
        """Return key and identity of each feature set."""
        return {name: {"source": "cached", "features": reader.key, "identity": reader.identity} for name, reader in self.readers.items()}


class LiveTargets:
    """Frozen teachers that run beside the student, normalised with the statistics of their cached feature sets.

    With `sizes_px`, one input size is drawn for each step, the same for every teacher and independent of the student's; without, each
    teacher sees its own size. `forward_batch` splits the teacher's batch (None: whole).
    """

    def __init__(
        self,
        teachers: Mapping[str, Teacher],
        statistics: Mapping[str, Statistics],
        *,
        device: str = "cpu",
        sizes_px: Sequence[int] = (),
        seed: int = 0,
        forward_batch: int | None = None,
    ) -> None:
        self.teachers, self.sizes_px, self.seed, self.forward_batch = dict(teachers), tuple(sizes_px), seed, forward_batch
        self.statistics = dict(statistics)
        self.specs: Mapping[str, TargetSpec] = {
            name: _live_spec(name, teacher, self.statistics[name]) for name, teacher in self.teachers.items()
        }
        for teacher in self.teachers.values():
            for size_px in self.sizes_px:
                teacher.spec.at_size(size_px)  # raises BadInput for a size that the teacher cannot take
        self._moments = {
            name: {key: torch.from_numpy(values).to(device) for key, values in of_teacher.arrays().items()}
            for name, of_teacher in self.statistics.items()
        }

    def size_px(self, name: str, step: int) -> int:
        """Return the input size of a teacher in a step."""
        if self.sizes_px:
            return choose_size(self.seed, "teacher", step, self.sizes_px)
        return self.teachers[name].spec.preprocessing.size_px

    def renderings(self, step: int) -> Sequence[Rendering]:
        """Return every teacher's input."""
        return [
            Rendering(name, self.size_px(name, step), teacher.spec.preprocessing.interpolation) for name, teacher in self.teachers.items()
        ]

    def largest_px(self) -> Mapping[str, int]:
        """Return each teacher's own size, or the largest of those that are drawn."""
        return {name: max(self.sizes_px, default=teacher.spec.preprocessing.size_px) for name, teacher in self.teachers.items()}

    def allocate(self, batch_size: int) -> Memory:
        """Return none: pixels are the stream's."""
        return {}

    def prefetch(self, rows_b: NDArray[np.int64]) -> None:
        """Do nothing: there is nothing to fetch."""

    def fill(self, rows_b: NDArray[np.int64], memory: Memory, start: int) -> None:
        """Do nothing: there is nothing to read."""

    @torch.no_grad()
    def resolve(self, tensors: Mapping[str, Tensor]) -> dict[str, Tokens]:
        """Run each teacher and normalise."""
        return {name: self._tokens(name, tensors[f"pixels/{name}"]) for name in self.teachers}

    def _tokens(self, name: str, pixels_BHWC: Tensor) -> Tokens:
        moments = self._moments[name]
        parts = [self.teachers[name](part) for part in torch.split(pixels_BHWC, self.forward_batch or len(pixels_BHWC))]
        patch_BHWD = normalised(torch.cat([part.patch_BHWD for part in parts]), moments, "patch")
        if parts[0].cls_BD is None:
            return Tokens(None, patch_BHWD)
        return Tokens(normalised(torch.cat([part.cls_BD for part in parts]), moments, "cls"), patch_BHWD)

    def identities(self) -> dict[str, Any]:
        """Return identity of each teacher and digest of the statistics that normalise it."""
        return {
            name: {
                "source": "live",
                "sizes_px": list(self.sizes_px),
                "identity": {"teacher": teacher.spec.identity(), "statistics": self.statistics[name].digest},
            }
            for name, teacher in self.teachers.items()
        }


def _window(tensor: Tensor | None, window: slice) -> NDArray[Any] | None:
    return None if tensor is None else tensor[window].numpy()


def _live_spec(name: str, teacher: Teacher, statistics: Statistics) -> TargetSpec:
    spec = teacher.spec
    cls_dim = None if statistics.cls_mean is None else len(statistics.cls_mean)
    if (cls_dim, len(statistics.patch_mean)) != (spec.cls_dim, spec.patch_dim):
        raise BadInput(
            f"statistics for teacher {name} have widths {cls_dim} and {len(statistics.patch_mean)}, "
            f"the teacher gives {spec.cls_dim} and {spec.patch_dim}; use the statistics of this teacher's own feature set"
        )
    return TargetSpec(spec.cls_dim, spec.patch_dim, spec.grid)
