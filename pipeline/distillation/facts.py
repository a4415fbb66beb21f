"""What is known before anything is decided: photos, teachers, the student, the device. Rules read nothing else.

Measured where that is cheap: photos from the index, teachers from their weight files' headers, the student built on torch's meta device,
which allocates nothing. A teacher's speed costs a few forwards and is asked for apart. Values are checked here, so that no rule has to.
"""

import json
import os
import struct
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...jobs.estimates.extraction import teacher_speed
from ...jobs.extraction.extract import resolve_request
from ...jobs.extraction.options import ExtractOptions, TeacherRequest
from ...storage.core.choices import Precision
from ...storage.core.errors import BadInput
from ...storage.features.layers import layer_target
from ...storage.images.dataset import ImageDataset
from ...storage.store import FeatureStore
from ...storage.views.input_size import SizePx, area_px, size_hw
from ...student.model.recipe import TeacherConfig
from ...student.model.student import TargetSpec, count_parameters
from ...teachers.checkpoints.sharded import is_index, weight_files
from ...teachers.encoders.build import build_encoder, canonical
from ...teachers.encoders.build import facts as shape_of
from ...teachers.registry.layers import stored_layers
from ...teachers.registry.resolve import MODEL_FILE
from ...teachers.registry.spec import TeacherSpec
from ...teachers.runtime.devices import choose_device, choose_precision

_CONTAINER_FILES = (
    ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory.current"),
    ("sys/fs/cgroup/memory/memory.limit_in_bytes", "sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
"""A container's limit and use, of both versions of control groups: a process above it is killed without a word."""
_SAMPLED_BLOCKS, _BLOCK = 8, 16_384


def _check(holds: bool, what: str, got: object, wanted: str) -> None:
    if not holds:
        raise BadInput(f"{what} is {got!r}, expected {wanted}")


@dataclass(frozen=True)
class TeacherFacts:
    """A teacher at the input size that it will have."""

    name: str
    width: int
    """Channels of a patch token."""
    class_width: int | None
    """Channels of the class token; None without one."""
    grid: tuple[int, int]
    """Rows and columns of patch tokens at `size_px`."""
    size_px: SizePx
    parameters: int | None = None
    """None: not known, as of a teacher of the user's own."""
    images_per_s: float | None = None
    """Views a second on this device; None: not measured."""
    is_proxy: bool = False
    """A finished run of one's own, such as stage 1 makes, in the place of a published model."""
    layers: tuple[int, ...] = ()
    """Blocks whose tokens are stored beside the final ones."""

    def __post_init__(self) -> None:
        _check(self.width >= 1, f"the width of {self.name}", self.width, "at least 1")
        fits = all(side >= cells >= 1 for side, cells in zip(size_hw(self.size_px), self.grid, strict=True))
        _check(fits, f"grid and size of {self.name}", (self.grid, self.size_px), "a grid")
        _check(self.images_per_s is None or self.images_per_s > 0, f"views/s of {self.name}", self.images_per_s, "above 0")

    @property
    def stride_px(self) -> int:
        """Pixels per patch token."""
        return size_hw(self.size_px)[0] // self.grid[0]

    @property
    def cells(self) -> int:
        """Patch tokens of a view."""
        return self.grid[0] * self.grid[1]

    def at_size(self, size_px: SizePx) -> "TeacherFacts":
        """Return the same teacher at other multiples of its stride; its speed follows the pixels."""
        height, width = size_hw(size_px)
        fits = min(height, width) >= self.stride_px and height % self.stride_px == width % self.stride_px == 0
        _check(fits, f"the input size of {self.name}", size_px, f"a multiple of {self.stride_px}")
        rate = None if self.images_per_s is None else self.images_per_s * (area_px(self.size_px) / area_px(size_px))
        return replace(self, size_px=size_px, grid=(height // self.stride_px, width // self.stride_px), images_per_s=rate)


@dataclass(frozen=True)
class StudentFacts:
    """The student, before any value of its recipe."""

    name: str
    """Its architecture's name."""
    family: str
    """`vit`, `convnext`, or another family's name."""
    width: int
    """Channels of its tokens."""
    depth: int | None
    """Blocks; None where the family does not say."""
    patch_px: int
    """Pixels per patch token: the patch, or the stride."""
    parameters: int
    layer_scale: float | None = None
    """What its blocks' branches are multiplied by at the start; None: its family has no such option, or it has no scale."""

    def __post_init__(self) -> None:
        _check(self.width >= 1 and self.patch_px >= 1 and self.parameters >= 1, f"student {self.name}", self, "counts of at least 1")


@dataclass(frozen=True)
class DeviceFacts:
    """What trains."""

    kind: str = "cpu"
    """`cpu` or `cuda`."""
    memory_bytes: int = 16 << 30
    """Free memory of the device: the machine's own for a CPU."""
    cores: int = 1
    bf16: bool = False
    """Whether it computes in bf16: CUDA from capability 8.0, CPUs with AMX or AVX512-BF16."""
    name: str = ""

    def __post_init__(self) -> None:
        _check(self.kind in ("cpu", "cuda"), "the device", self.kind, "cpu or cuda")
        _check(self.memory_bytes > 0 and self.cores >= 1, "the device's memory and cores", (self.memory_bytes, self.cores), "above 0")


@dataclass(frozen=True)
class ScaleFacts:
    """Everything that rules decide by."""

    images: int
    median_side_px: int
    """Median of the photos' shorter sides."""
    labelled: bool
    teachers: tuple[TeacherFacts, ...]
    student: StudentFacts
    device: DeviceFacts = DeviceFacts()

    def __post_init__(self) -> None:
        _check(self.images >= 1, "the number of photos", self.images, "at least 1")
        _check(self.median_side_px >= 1, "the photos' median side", self.median_side_px, "at least 1 px")
        _check(bool(self.teachers), "the teachers", self.teachers, "at least one")

    def aspect(self, asked: Collection[str] = ()) -> float:
        """Return width over height of the inputs: of the first teacher whose own is no square, those `asked` for first; 1 without one."""
        in_order = sorted(self.teachers, key=lambda teacher: teacher.name not in asked)
        height, width = next((size_hw(teacher.size_px) for teacher in in_order if not isinstance(teacher.size_px, int)), (1, 1))
        return width / height

    def target_specs(self, tokens_per_view: int | None = None, config: TeacherConfig | None = None) -> dict[str, TargetSpec]:
        """Return what each teacher's targets will look like, for a trial step, and those of the layers that `config` gives a weight."""
        specs = {teacher.name: TargetSpec(teacher.class_width, teacher.width, teacher.grid, tokens_per_view) for teacher in self.teachers}
        for teacher in self.teachers:
            learnt = [layer for layer in teacher.layers if config is not None and config.layer_weight(teacher.name, layer) > 0]
            grid = TargetSpec(None, teacher.width, teacher.grid, tokens_per_view)
            specs |= {layer_target(teacher.name, layer): grid for layer in learnt}
        return specs


def measure_facts(
    store: FeatureStore, data: str, teachers: Sequence[TeacherRequest], student: str | Mapping[str, Any], *, precision: Precision = "auto",
    allow_random_weights: bool = False, speed_batches: int = 0, batch_size: int | None = 32, layers: tuple[int, ...] = (),
) -> ScaleFacts:  # fmt: skip
    """Return the facts of a dataset of the store, teachers and a student on this machine; raises BadInput as their commands do.

    `speed_batches` forwards of each teacher measure its speed; 0: none. `layers` are blocks that are stored of each teacher.
    """
    dataset = store.dataset(data)
    options = ExtractOptions(
        store.url, data, tuple(teachers), precision=precision, allow_random_weights=allow_random_weights, batch_size=batch_size
    )
    device = choose_device("auto").value
    facts = []
    for request in teachers:
        spec = resolve_request(request, options)
        stored = stored_layers(spec, layers)
        seconds = teacher_speed(spec, device, batch_size, speed_batches, stored)[0] if speed_batches else None
        facts.append(replace(teacher_facts(spec, seconds, is_proxy=(Path(request.name) / MODEL_FILE).is_file()), layers=stored))
    side = median_side(dataset)
    return ScaleFacts(len(dataset), side, bool(dataset.label_names), tuple(facts), student_facts(student), device_facts(device))


def teacher_facts(spec: TeacherSpec, seconds_per_view: float | None = None, *, is_proxy: bool = False) -> TeacherFacts:
    """Return the facts of a resolved teacher."""
    return TeacherFacts(
        spec.name, spec.patch_dim, spec.cls_dim, spec.grid, spec.preprocessing.size_px, stored_parameters(spec.weights_path),
        None if seconds_per_view is None else 1 / seconds_per_view, is_proxy,
    )  # fmt: skip


def stored_parameters(path: Path) -> int | None:
    """Return the elements of all tensors of a safetensors file or of the files of an index, from the headers; None where it is neither."""
    if not path.is_file() or not (path.suffix == ".safetensors" or is_index(path)):
        return None
    return sum(map(_elements, weight_files(path)))


def _elements(file: Path) -> int:
    with file.open("rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        header: dict[str, Any] = json.loads(opened.read(length))
    return sum(int(np.prod(tensor["shape"], dtype=np.int64)) for name, tensor in header.items() if name != "__metadata__")


def student_facts(architecture: str | Mapping[str, Any]) -> StudentFacts:
    """Return the facts of a student's architecture; raises BadInput for an unknown one."""
    name = architecture if isinstance(architecture, str) else str(architecture.get("name"))
    full, shape = canonical(architecture), shape_of(architecture)
    with torch.device("meta"):
        parameters = count_parameters(build_encoder(architecture))
    depth = full.get("depth", sum(full["depths"]) if "depths" in full else None)
    return StudentFacts(name, full["name"], shape.width, depth, shape.stride_px, parameters, full.get("layer_scale"))


def proxy_as_teacher(proxy: StudentFacts, size_px: SizePx) -> TeacherFacts:
    """Return the facts of the teacher that a student of stage 1 will be for stages 2 and 3."""
    rows, columns = (side // proxy.patch_px for side in size_hw(size_px))
    return TeacherFacts(proxy.name, proxy.width, proxy.width, (rows, columns), size_px, proxy.parameters, is_proxy=True)


def median_side(dataset: ImageDataset) -> int:
    """Return the median of the shorter sides in px; of a large dataset, over blocks of it at equal distances."""
    count = len(dataset)
    starts = range(0, count, max(_BLOCK, -(-count // _SAMPLED_BLOCKS)))
    sides = [dataset.sizes_hw(start, min(count, start + _BLOCK)).min(axis=1) for start in starts]
    return int(np.median(np.concatenate(sides)))


def device_facts(kind: str) -> DeviceFacts:
    """Return the facts of the device that is chosen on this machine."""
    bf16 = choose_precision("auto", kind).value == "bf16"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if kind == "cuda":
        return DeviceFacts(kind, torch.cuda.mem_get_info()[0], cores, bf16, torch.cuda.get_device_name())
    return DeviceFacts(kind, free_memory(), cores, bf16, "CPU")


def free_memory(root: Path = Path("/")) -> int:
    """Return the bytes that this process may still take: what the system has free, and a container's limit where there is one.

    Half of all memory where the system does not say.
    """
    meminfo = root / "proc" / "meminfo"
    lines = meminfo.read_text().splitlines() if meminfo.is_file() else []
    available = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    available = available or [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2]
    for limit, used in _CONTAINER_FILES:
        numbers = [(root / name).read_text().strip() if (root / name).is_file() else "" for name in (limit, used)]
        if all(number.isdecimal() for number in numbers):  # "max": no limit
            available.append(max(1, int(numbers[0]) - int(numbers[1])))
    return min(available)
