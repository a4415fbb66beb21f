"""The request of an extraction: one frozen value from the command line or a notebook to the workers, checked where it is made."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ...storage.core.choices import (
    NORMALISATIONS,
    RENDERERS,
    RESIZE_ON,
    Codec,
    Constants,
    LicenceUse,
    Normalisation,
    Precision,
    RendererName,
    ResizeOn,
)
from ...storage.core.errors import BadInput, unknown_name
from ...storage.features.layers import checked_layers
from ...storage.views.input_size import SizePx
from ...storage.views.view_set import DEFAULT_IMAGES_PER_SHARD
from ...storage.views.view_spec import ViewSpec
from ...teachers.registry.licences import check_declared
from ...teachers.registry.spec import TeacherSpec


@dataclass(frozen=True)
class TeacherRequest:
    """A teacher as the user asked for it: a name or a run's folder, and the values that override its defaults."""

    name: str
    weights: Path | None = None
    """Weight file; None: the weights folder."""
    size_px: SizePx | None = None
    """Input size; None: its own."""
    device: str | None = None
    """Its device among those of its worker: cpu, cuda:0, cuda:1; None: chosen."""
    spec: TeacherSpec | None = None
    """Resolved already, as another feature set has it; the options' precision and constants are ignored."""


@dataclass(frozen=True)
class ExtractOptions:
    """What to extract and how; the defaults are ours."""

    store: str
    """Folder or URL of the feature store."""
    data: str
    """Dataset of the store, by name or key."""
    teachers: tuple[TeacherRequest, ...]
    views: ViewSpec = field(default_factory=ViewSpec)
    """Which views of each image are drawn."""
    images_per_shard: int = DEFAULT_IMAGES_PER_SHARD
    codec: Codec = "int8"
    """How patch tokens are stored."""
    tokens_per_view: int | None = None
    """Patch tokens, at recorded random positions; None: all."""
    grid: tuple[int, int] | None = None
    """Of the stored tokens; None: each teacher's own."""
    constants: Constants = "own"
    """Mean and std of the input: each teacher's own, or ImageNet's for all, as the paper has it."""
    allow_random_weights: bool = False
    """Where no weights are found; for trials, and said in the identity."""
    precision: Precision = "fp32"
    """auto: bf16 where the device has it."""
    statistics_batches: int | None = None
    """Of 32 views, that mean and std are measured on; None: all of up to 8,000 views, 3 % of more."""
    normalisation: Normalisation = "mean-std"
    """The paper's; or "phi-s"."""
    statistics_from: tuple[str, ...] = ()
    """Feature sets whose statistics are used again."""
    batch_size: int | None = 32
    """Views in one forward; None: found by trying."""
    workers: int | None = None
    """None: one a GPU, or one a core, or as many as a cluster holds; 0: in this process."""
    num_gpus: float = 1.0
    """Of one worker; with two and more the teachers are dealt out over them."""
    compile: bool = False
    """Teachers through torch.compile."""
    teachers_at_once: int | None = None
    """None: all; fewer need less memory and decode each image more often."""
    address: str | None = None
    """Of a Ray cluster; None: one is started on this machine."""
    max_bad_share: float = 0.001
    """Stop when more than this share of the images cannot be read."""
    dry_run: bool = False
    """Say what would be done, and do nothing."""
    require_licence: LicenceUse | None = None
    """Refuse, before anything is computed, unless the terms of every teacher allow this use."""
    terms: Mapping[str, str] = field(default_factory=dict)
    """Licences of teachers whose terms are not known, by teacher, as the user declares them."""
    view_values: Mapping[str, Mapping[str, object]] | None = None
    """Where each value of `views` comes from, for the summary of an extraction by a recipe."""
    renderer: RendererName = "auto"
    """What decodes and resizes new views; auto: what the store's own views have, else the fast one."""
    resize: ResizeOn = "host"
    """Where views are resized, to the same bytes: where they are cut, or in one batch on the teacher's device."""
    layers: tuple[int, ...] = ()
    """Blocks of each teacher, counted from 1, whose patch tokens are stored beside the final ones."""

    def __post_init__(self) -> None:
        counts = {"batch size": self.batch_size, "statistics batches": self.statistics_batches, "teachers at once": self.teachers_at_once}
        bad = [f"{what} {value}" for what, value in counts.items() if value is not None and value < 1]
        if self.normalisation not in NORMALISATIONS:
            raise unknown_name("normalisation", self.normalisation, NORMALISATIONS)
        if self.renderer not in RENDERERS:
            raise unknown_name("renderer", self.renderer, RENDERERS)
        if self.resize not in RESIZE_ON:
            raise unknown_name("place to resize", self.resize, RESIZE_ON)
        for name, kind in (("teachers", TeacherRequest), ("statistics_from", str)):
            value = getattr(self, name)
            wrong = [value] if isinstance(value, str) else [item for item in value if not isinstance(item, kind)]
            if wrong:  # a string would be taken for a list of its letters
                raise BadInput(f"{name} is a list of {kind.__name__}, such as ({kind.__name__}('NAME'),), got {wrong[0]!r}")
        object.__setattr__(self, "layers", checked_layers(self.layers))
        if bad or self.num_gpus <= 0:
            raise BadInput(f"these must be at least 1, and the GPUs of a worker above 0: {', '.join(bad) or self.num_gpus}")
        check_declared(self.require_licence, self.terms)

    def result_fields(self) -> dict[str, Any]:
        """Return {"view_values": …}, the origin of each value of the views, for the summary; {} without a recipe."""
        return {} if self.view_values is None else {"view_values": self.view_values}


def teacher_requests(
    teachers: Sequence[str], sizes: Mapping[str, SizePx] = MappingProxyType({}), weights: Mapping[str, Path | str] = MappingProxyType({}),
    devices: Mapping[str, str] = MappingProxyType({}),
) -> tuple[TeacherRequest, ...]:  # fmt: skip
    """Return the teachers with the sizes, weight files and devices that are given by name; raises BadInput for a name of none of them."""
    for option, by_name in (("--teacher-size", sizes), ("--weights", weights), ("--teacher-device", devices)):
        stray = sorted(set(by_name) - set(teachers))
        if stray:
            raise BadInput(f"{option} names {stray[0]!r}, which is not among the teachers of this command: {', '.join(teachers)}")
    paths = {teacher: Path(path) for teacher, path in weights.items()}
    return tuple(TeacherRequest(name, paths.get(name), sizes.get(name), devices.get(name)) for name in teachers)
