"""What a user asks of an extraction: plain data, checked where it is made."""

from dataclasses import dataclass, field
from typing import Any

from ...storage.core.choices import NORMALISATIONS
from ...storage.core.errors import BadInput, unknown_name
from ...storage.views.view_set import DEFAULT_IMAGES_PER_SHARD
from ...storage.views.view_spec import ViewSpec
from ...teachers.registry.spec import TeacherSpec


@dataclass(frozen=True)
class TeacherRequest:
    """A teacher as the user asked for it: a name or a run's folder, and what overrides its own facts."""

    name: str
    weights: Any = None  # Path or None
    size_px: int | None = None
    device: str | None = None  # of its worker's: cpu, cuda:0, cuda:1; None: chosen
    spec: TeacherSpec | None = None  # already decided, as another feature set has it; the options' precision and constants do not count


@dataclass(frozen=True)
class ExtractOptions:
    """What to extract and how; the defaults are ours."""

    data: str
    teachers: tuple[TeacherRequest, ...]
    views: ViewSpec = field(default_factory=ViewSpec)
    images_per_shard: int = DEFAULT_IMAGES_PER_SHARD
    codec: str = "int8"
    tokens_per_view: int | None = None  # patch tokens, at recorded random places; None: all
    grid: tuple[int, int] | None = None  # of the stored tokens; None: each teacher's own
    constants: str = "own"  # or "imagenet": its mean and std for every teacher, as the paper has it
    allow_random_weights: bool = False  # where no weights are found; for trials, and said in the identity
    precision: str = "fp32"  # or "bf16", or "auto": bf16 where the device has it
    statistics_batches: int = 500  # of 32 views
    normalisation: str = "mean-std"  # the paper's; or "phi-s"
    statistics_from: tuple[str, ...] = ()  # feature sets whose statistics are used again
    batch_size: int | None = 32  # views in one forward; None: found by trying
    workers: int | None = None  # None: one a GPU, or one a core, or as many as a cluster holds; 0: in this process
    num_gpus: float = 1.0  # of one worker; with two and more the teachers are dealt out over them
    compile: bool = False  # teachers through torch.compile
    teachers_at_once: int | None = None  # None: all; fewer need less memory and decode each image more often
    address: str | None = None  # of a Ray cluster
    max_bad_share: float = 0.001
    dry_run: bool = False

    def __post_init__(self) -> None:
        counts = {"batch size": self.batch_size, "statistics batches": self.statistics_batches, "teachers at once": self.teachers_at_once}
        bad = [f"{what} {value}" for what, value in counts.items() if value is not None and value < 1]
        if self.normalisation not in NORMALISATIONS:
            raise unknown_name("normalisation", self.normalisation, NORMALISATIONS)
        if bad or self.num_gpus <= 0:
            raise BadInput(f"these must be at least 1, and the GPUs of a worker above 0: {', '.join(bad) or self.num_gpus}")
