"""The sources of a step's targets: cached tokens read from feature sets, or live teachers over the same recorded views.

`TargetSource` is the one protocol that the trainer knows. A source says which renderings of each view it needs (live teachers), owns memory
for a batch that reader threads fill (cached tokens, as stored: codes and scales), and turns both into normalised fp32 tokens on the device.
With the fp32 codec the two give bit-equal targets on a CPU when the extraction's and the live forward's batches have the same size, because
matrix products may round differently for other batch sizes; `forward_batch = 1` on both sides makes that exact for any order.
An intermediate layer of a teacher is a target of its own by the name `TEACHER/4`, without class token; only layers that are asked for are
read.
Axes: B images, H and W grid, D channels.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...storage.core.errors import BadInput
from ...storage.features.codec import Encoded
from ...storage.features.features import FeatureReader, TokenRows
from ...storage.features.layers import layer_target, split_target
from ...storage.features.statistics import Statistics
from ...storage.views.input_size import SizePx, area_px, size_json
from ...storage.views.view_spec import Input
from ...teachers.encoders.tokens import LayerTokens, SampledTokens, Tokens, concatenated
from ...teachers.registry.teacher import Teacher
from ..model.draws import choose_size
from ..model.student import TargetSpec, spec_of_target
from .decode_tokens import decode_patch, normalised

STUDENT = "student"  # the key of the student's own pixels; teachers' names stand beside it
Memory = dict[str, Tensor]
Targets = Mapping[str, Tokens | SampledTokens]
Layers = Mapping[str, Sequence[int]]
"""Intermediate layers by teacher."""
NO_LAYERS: Layers = {}


class Rendering(NamedTuple):
    """Pixels of a view at one model's input: stored under `pixels/<key>` as (B, height, width, 3) uint8."""

    key: str
    size_px: SizePx
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

    def largest_px(self) -> Mapping[str, SizePx]:
        """Return the largest input, over all steps, of each model that needs pixels."""

    def inputs_px(self, step: int) -> Mapping[str, SizePx]:
        """Return each teacher's input size in a step: of a cached teacher that of its tokens."""

    def allocate(self, batch_size: int) -> Memory:
        """Allocate host memory for one batch, by name."""

    def at_step(self, memory: Memory, step: int) -> Memory:
        """Return a batch's memory as a step uses it: the same, unless the targets' sizes are drawn."""

    def prefetch(self, rows_b: NDArray[np.int64], step: int) -> None:
        """Announce rows that will be asked for soon, at a step."""

    def fill(self, rows_b: NDArray[np.int64], memory: Memory, start: int) -> None:
        """Write the targets of some feature rows into rows [start, start + b) of a batch's memory."""

    def resolve(self, tensors: Mapping[str, Tensor]) -> Targets:
        """Return normalised fp32 tokens by teacher, from the batch's memory and pixels on the device."""

    def identities(self) -> dict[str, Any]:
        """Return what these targets are, by teacher, JSON-able."""


class CachedTargets:
    """Tokens of feature sets over one set of views, by teacher name; `layers`: blocks that are read as well, by teacher."""

    def __init__(self, readers: Mapping[str, FeatureReader], layers: Layers = NO_LAYERS) -> None:
        self.readers, self.layers = dict(readers), layers
        specs = {
            name: TargetSpec(reader.cls_dim, reader.patch_dim, reader.grid, reader.layout.tokens_per_view)
            for name, reader in self.readers.items()
        }
        self.specs: Mapping[str, TargetSpec] = _with_layers(specs, layers)

    def renderings(self, step: int) -> Sequence[Rendering]:
        """Return none: the teachers have seen these views already."""
        return ()

    def largest_px(self) -> Mapping[str, SizePx]:
        """Return none."""
        return {}

    def inputs_px(self, step: int) -> Mapping[str, SizePx]:
        """Return the sizes at which the tokens were made, the same in every step."""
        return {name: reader.input_px for name, reader in self.readers.items()}

    def allocate(self, batch_size: int) -> Memory:
        """Allocate memory in the stored types: `<teacher>/cls`, `<teacher>/patch`, `<teacher>/scale`, `<teacher>/position`.

        Of layers it is `<teacher>/<block>/patch` and `<teacher>/<block>/scale`.
        """
        memory: Memory = {}
        for name, reader in self.readers.items():
            arrays = dict(reader.empty(batch_size)._asdict())
            for layer, encoded in reader.empty_layers(batch_size, self.layers.get(name, ())).items():
                arrays |= {f"{layer}/patch": encoded.codes, f"{layer}/scale": encoded.scale}
            memory |= {f"{name}/{part}": torch.from_numpy(array) for part, array in arrays.items() if array is not None}
        return memory

    def at_step(self, memory: Memory, step: int) -> Memory:
        """Return the memory as it is."""
        return dict(memory)

    def prefetch(self, rows_b: NDArray[np.int64], step: int) -> None:
        """Have the shards of a remote store fetched in the background."""
        for name, reader in self.readers.items():
            reader.prefetch(rows_b, self.layers.get(name, ()))

    def fill(self, rows_b: NDArray[np.int64], memory: Memory, start: int) -> None:
        """Read checked rows straight into the batch, on the calling thread alone."""
        for name, reader in self.readers.items():
            window = slice(start, start + len(rows_b))
            cls, position = (_window(memory.get(f"{name}/{part}"), window) for part in ("cls", "position"))
            reader.read(rows_b, out=TokenRows(cls, *_encoded(name, memory, window), position), threads=1)
            if layers := self.layers.get(name, ()):
                of_layers = {layer: _encoded(layer_target(name, layer), memory, window) for layer in layers}
                reader.read_layers(rows_b, layers, of_layers, threads=1)

    def resolve(self, tensors: Mapping[str, Tensor]) -> Targets:
        """Decode on the device."""
        return {name: self._tokens(name, tensors) for name in self.specs}

    def _tokens(self, target: str, tensors: Mapping[str, Tensor]) -> Tokens | SampledTokens:
        teacher = split_target(target)[0]
        reader, cls, position_BT = self.readers[teacher], tensors.get(f"{target}/cls"), tensors.get(f"{teacher}/position")
        cls_BD = None if cls is None else cls.float()
        patch = decode_patch(tensors[f"{target}/patch"], tensors.get(f"{target}/scale"), reader.codec)
        return Tokens(cls_BD, patch) if position_BT is None else SampledTokens(cls_BD, patch, position_BT, reader.grid)

    def identities(self) -> dict[str, Any]:
        """Return key and identity of each feature set."""
        return {name: {"source": "cached", "features": reader.key, "identity": reader.identity} for name, reader in self.readers.items()}


class LiveTargets:
    """Frozen teachers that run beside the student, normalised with the statistics of their cached feature sets.

    With `sizes_px`, one input size is drawn for each step, the same for every teacher and independent of the student's; without, each
    teacher sees its own size. `forward_batch` splits the teacher's batch (None: whole). `layers`: blocks that are targets as well.
    """

    def __init__(
        self,
        teachers: Mapping[str, Teacher],
        statistics: Mapping[str, Statistics],
        *,
        device: str = "cpu",
        sizes_px: Sequence[SizePx] = (),
        seed: int = 0,
        forward_batch: int | None = None,
        layers: Layers = NO_LAYERS,
    ) -> None:
        self.teachers, self.sizes_px, self.seed, self.forward_batch = dict(teachers), tuple(sizes_px), seed, forward_batch
        self.statistics, self.layers = dict(statistics), layers
        specs = {name: _live_spec(name, teacher, self.statistics[name]) for name, teacher in self.teachers.items()}
        self.specs: Mapping[str, TargetSpec] = _with_layers(specs, layers)
        for teacher in self.teachers.values():
            for size_px in self.sizes_px:
                teacher.spec.at_size(size_px)  # raises BadInput for a size that the teacher cannot take
        self._moments = {
            target: {
                key: torch.from_numpy(values).to(device) for key, values in target_statistics(self.statistics, target).arrays().items()
            }
            for target in self.specs
        }

    def size_px(self, name: str, step: int) -> SizePx:
        """Return the input size of a teacher in a step."""
        if self.sizes_px:
            return choose_size(self.seed, "teacher", step, self.sizes_px)
        return self.teachers[name].spec.preprocessing.size_px

    def renderings(self, step: int) -> Sequence[Rendering]:
        """Return every teacher's input."""
        return [
            Rendering(name, self.size_px(name, step), teacher.spec.preprocessing.interpolation) for name, teacher in self.teachers.items()
        ]

    def inputs_px(self, step: int) -> Mapping[str, SizePx]:
        """Return the sizes that are drawn for a step, or each teacher's own."""
        return {name: self.size_px(name, step) for name in self.teachers}

    def largest_px(self) -> Mapping[str, SizePx]:
        """Return each teacher's own size, or the largest of those that are drawn."""
        return {
            name: max(self.sizes_px, key=area_px, default=teacher.spec.preprocessing.size_px) for name, teacher in self.teachers.items()
        }

    def allocate(self, batch_size: int) -> Memory:
        """Return none: pixels are the stream's."""
        return {}

    def at_step(self, memory: Memory, step: int) -> Memory:
        """Return the memory as it is."""
        return dict(memory)

    def prefetch(self, rows_b: NDArray[np.int64], step: int) -> None:
        """Do nothing: there is nothing to fetch."""

    def fill(self, rows_b: NDArray[np.int64], memory: Memory, start: int) -> None:
        """Do nothing: there is nothing to read."""

    @torch.no_grad()
    def resolve(self, tensors: Mapping[str, Tensor]) -> dict[str, Tokens]:
        """Run each teacher and normalise."""
        by_teacher = {name: self._run(name, tensors[f"pixels/{name}"]) for name in self.teachers}
        return {target: self._tokens(target, by_teacher[split_target(target)[0]]) for target in self.specs}

    def _run(self, name: str, pixels_BHWC: Tensor) -> LayerTokens:
        teacher, layers = self.teachers[name], tuple(self.layers.get(name, ()))
        parts = torch.split(pixels_BHWC, self.forward_batch or len(pixels_BHWC))
        return concatenated([teacher.with_layers(part, layers) if layers else LayerTokens(teacher(part), {}) for part in parts])

    def _tokens(self, target: str, computed: LayerTokens) -> Tokens:
        moments, layer = self._moments[target], split_target(target)[1]
        cls_BD, patch_BHWD = computed.final if layer is None else (None, computed.layers[layer])
        return Tokens(None if cls_BD is None else normalised(cls_BD, moments, "cls"), normalised(patch_BHWD, moments, "patch"))

    def identities(self) -> dict[str, Any]:
        """Return identity of each teacher and digest of the statistics that normalise it."""
        return {
            name: {
                "source": "live",
                "sizes_px": [size_json(size) for size in self.sizes_px],
                "identity": {"teacher": teacher.spec.identity(), "statistics": self.statistics[name].digest},
            }
            for name, teacher in self.teachers.items()
        }


def target_statistics(statistics: Mapping[str, Statistics], target: str) -> Statistics:
    """Return what normalises a target, a teacher's or a layer's; `statistics` by teacher."""
    teacher, layer = split_target(target)
    return statistics[teacher].only(()) if layer is None else statistics[teacher].layers[layer]


def _with_layers(specs: Mapping[str, TargetSpec], layers: Layers) -> dict[str, TargetSpec]:
    """Return the targets of teachers and, behind them, those of their layers."""
    names = [layer_target(teacher, layer) for teacher in specs for layer in layers.get(teacher, ())]
    return {**specs, **{name: spec_of_target(specs, name) for name in names}}


def _encoded(target: str, memory: Memory, window: slice) -> Encoded:
    """Return the part of a batch's memory that a target's patch tokens are read into."""
    return Encoded(memory[f"{target}/patch"][window].numpy(), _window(memory.get(f"{target}/scale"), window))


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
