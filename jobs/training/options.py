"""The request of a training run: one frozen value from the command line or a notebook to every rank, checked where it is made."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ...storage.core.cache_home import shards_folder
from ...storage.core.choices import (
    ON_MISS,
    RESIZE_ON,
    TRACKERS,
    TRAINING_EVALUATIONS,
    LicenceUse,
    OnMiss,
    ResizeOn,
    Tracker,
    TrainingEvaluation,
)
from ...storage.core.errors import BadInput, unknown_name
from ...storage.core.urls import absolute
from ...storage.store import FeatureStore
from ...student.data.sized import cached_sizes
from ...student.model.recipe import TrainRecipe
from ...teachers.registry.licences import check_declared
from ...teachers.registry.resolve import absolute_name


@dataclass(frozen=True)
class Watch:
    """The evaluation of a student while it trains: which, how often, on what; raises BadInput for values out of range."""

    evaluation: TrainingEvaluation
    every: int
    """Steps between two evaluations; the last step is always evaluated."""
    data: str = ""
    """kNN: a labelled dataset of the store that is not trained on. Agreement has none: it takes what `data.hold_out` holds out."""
    images: int = 2000
    """kNN: sampled images, half of them the neighbours. Agreement: at most so many held-out images, and as many trained ones."""
    allow_overlap: bool = False
    """kNN: images that are trained on as well are a warning instead of an error."""

    def __post_init__(self) -> None:
        if self.evaluation not in TRAINING_EVALUATIONS:
            raise unknown_name("evaluation during training", self.evaluation, TRAINING_EVALUATIONS)
        if self.every < 1 or self.images < 20:
            raise BadInput(f"an evaluation needs every ≥ 1 and images ≥ 20 (ten neighbours), got {self.every} and {self.images}")
        if self.evaluation == "knn" and not self.data:
            raise BadInput("--evaluate knn and --evaluate-data go together: kNN needs a labelled dataset that is not trained on")
        if self.evaluation == "agreement" and (self.data or self.allow_overlap):
            option = "--evaluate-data" if self.data else "--allow-overlap"
            raise BadInput(f"--evaluate agreement measures on the images that --hold-out holds out, without labels; leave {option} out")


@dataclass(frozen=True)
class TrainOptions:
    """One stage of distillation; every rank gets this very value.

    Paths become absolute here, because Ray Train runs its ranks in a folder of its own.
    """

    recipe: TrainRecipe
    """Resolved: `load_recipe(…).recipe`."""
    store: str
    """Folder or URL of the feature store."""
    features: tuple[str, ...]
    """Names or keys of feature sets over the data; their order means nothing."""
    out: Path | str
    """The run's folder or URL; a run that stands there resumes. With several `students`, each has `out/NAME`."""
    data: str = ""
    """The dataset; "" when the recipe mixes several (`recipe.data.shares`)."""
    origins: Mapping[str, str] = field(default_factory=dict)
    """Where each value of the recipe comes from, by dotted key, as the run records it: `load_recipe(…).origins`."""
    proxy: Path | str | None = None
    """Stage 3: the run behind the only feature set, used live."""
    teachers: tuple[str, ...] = ()
    """The teacher of each feature set: live targets are theirs, and `on_miss="compute"` computes with them."""
    students: tuple[str, ...] = ()
    """Architectures that are trained in one pass; (): the recipe's."""
    workers: int = 0
    """Ranks through Ray Train; 0: this process."""
    address: str | None = None
    """Ray cluster of the ranks; None: one is started on this machine."""
    on_miss: OnMiss = "refuse"
    """What is done about shards that are not there."""
    new_views: int = 1
    """Views of each image, of sets that `on_miss="compute"` begins."""
    follow_s: float | None = None
    """Shards that are missing are waited for, so many seconds after the last one came; None: they are refused."""
    shard_cache: Path | None = None
    """Folder that keeps whole shards of a remote store; None: the user's cache."""
    watch: Watch | None = None
    """What is evaluated while the students train."""
    allow_random_weights: bool = False
    """Tokens of teachers with random weights are trained on, for trials."""
    subsets: tuple[str, ...] = ()
    """Recorded subsets by name or key, at most one of each dataset: nothing else of it is drawn."""
    resize: ResizeOn = "host"
    """Where views are resized, to the same bytes: by the threads that read, or in one batch on the device; no value of the recipe."""
    track: tuple[Tracker, ...] = ()
    """Trackers that get metrics and recipe, beside TensorBoard."""
    require_licence: LicenceUse | None = None
    """Refuse, before anything is computed, unless the terms of all teachers, and of what a student starts from, allow this use."""
    terms: Mapping[str, str] = field(default_factory=dict)
    """Licences of weights whose terms are not known, by teacher, as the user declares them."""

    def __post_init__(self) -> None:
        if self.on_miss not in ON_MISS:
            raise unknown_name("answer to missing shards", self.on_miss, ON_MISS)
        if self.resize not in RESIZE_ON:
            raise unknown_name("place to resize", self.resize, RESIZE_ON)
        if self.on_miss == "compute" and self.follow_s is not None:
            raise BadInput("--follow waits for another process to extract, --on-miss compute extracts here; give one of them")
        if self.watch is not None and self.watch.evaluation == "agreement" and not self.recipe.data.hold_out:
            raise BadInput(
                "--evaluate agreement measures on images that are held out of the training, and nothing is; give --hold-out 1% as well "
                "(or data.hold_out = 0.01 in the recipe)"
            )
        for name in ("features", "teachers", "students", "subsets", "track"):
            if isinstance(value := getattr(self, name), str):  # which would be taken for a list of its letters
                raise BadInput(f"{name} is a list of names, such as ({value!r},), got the one name {value!r}")
        for tracker in self.track:
            if tracker not in TRACKERS:
                raise unknown_name("tracker", tracker, TRACKERS)
        check_declared(self.require_licence, self.terms)
        student = replace(self.recipe.student, init_from=absolute(self.recipe.student.init_from))
        resolved = {
            "recipe": replace(self.recipe, student=student),
            "store": absolute(self.store),
            "features": tuple(self.features),
            "out": absolute(str(self.out)),
            "proxy": None if self.proxy is None else absolute_name(str(self.proxy)),
            "teachers": tuple(map(absolute_name, self.teachers)),
            "students": tuple(self.students),
            "subsets": tuple(self.subsets),
            "track": tuple(dict.fromkeys(self.track)),
            "shard_cache": None if self.shard_cache is None else Path(absolute(str(self.shard_cache))),
        }
        for name, value in resolved.items():
            object.__setattr__(self, name, value)  # frozen for everybody else

    @property
    def datasets(self) -> list[str]:
        """Names of the datasets that are trained on."""
        return list(self.recipe.data.shares) or [self.data]

    @property
    def live_teachers(self) -> tuple[str, ...]:
        """The models of live targets: the proxy alone, or the teachers, unless those only compute what is missing."""
        if self.proxy is not None:
            return (str(self.proxy),)
        return () if self.on_miss == "compute" and self.recipe.teacher.source == "cached" else self.teachers

    def open_store(self) -> FeatureStore:
        """Open the feature store, whole shards of a remote one cached here; raises BadInput when there is none."""
        return FeatureStore.open(self.store, shard_cache=self.shard_cache or shards_folder())

    @property
    def complete(self) -> bool:
        """Whether every shard has to be there before the first step."""
        return self.follow_s is None


def check_teachers_given(options: TrainOptions) -> None:
    """Raise BadInput unless live targets have their teachers, and cached ones none."""
    live, features = options.recipe.teacher.source == "live", options.features
    if cached_sizes(options.recipe) and (options.on_miss == "compute" or options.follow_s is not None):
        raise BadInput(
            "targets of several sizes (teacher.sizes_px) are read from finished feature sets: leave --follow and --on-miss compute out, "
            "and run `extract-features` with --teacher-size for each size first"
        )
    teachers = () if options.on_miss == "compute" and not live else options.teachers
    if options.proxy is not None and teachers:
        raise BadInput("--proxy and --teacher both name live teachers; give --teacher alone, one for each --features")
    names = {name.partition("@")[0] for name in features}
    if teachers and len(teachers) not in (len(features), len(names)):
        raise BadInput(f"{len(features)} --features need {len(features)} --teacher, one for each, got {len(teachers)}")
    if live and options.proxy is None and not teachers:
        raise BadInput(
            "the recipe's targets are live (teacher.source = 'live'), and no teacher was named: give --proxy RUN, the run whose model made "
            "the --features, or a --teacher for each of them"
        )
    if not live and (options.proxy is not None or teachers):
        raise BadInput(
            "the recipe's targets are cached (teacher.source = 'cached') and need no live teacher: leave --proxy and --teacher out, or say "
            "--targets live"
        )
