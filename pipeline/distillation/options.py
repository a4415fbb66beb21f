"""The request of `distill`: photos, teachers, students, and what it may cost; checked where it is made."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ...jobs.extraction.options import TeacherRequest
from ...storage.core.choices import DISTILL_STAGES, TARGET_SOURCES, DistillStages, LicenceUse, TargetSource
from ...storage.core.errors import BadInput, unknown_name
from ...storage.core.urls import absolute, is_url, require_utf8
from ...storage.features.layers import checked_layers
from ...student.export.formats import named as export_named
from ...student.model.recipe import TeacherConfig
from ...teachers.registry.licences import check_declared
from ...teachers.registry.resolve import absolute_name

STAGES = {words: tuple(map(int, words.split(","))) for words in DISTILL_STAGES if words != "auto"}
_NAME_RUNS = re.compile(r"[^A-Za-z0-9_.+-]+")


@dataclass(frozen=True)
class DistillOptions:
    """What is distilled from what into what, and within which limits; everything else is decided by rule."""

    photos: str
    """Folder, tars or Parquet files of images, here or behind a URL."""
    out: Path | str
    """The folder of the result; run again, what it holds is gone on with."""
    teachers: tuple[TeacherRequest, ...]
    students: tuple[str, ...]
    """Architectures; each is trained apart, with a recipe of its own."""
    test: str | None = None
    """Labelled images that nothing is learnt from, for kNN; classes as those of `photos`."""
    stages: DistillStages = "auto"
    """A key of `STAGES`; auto: 2 with one teacher, 1,2,3 with several."""
    proxy: str | None = None
    """Architecture of stage 1's proxy; None: by rule."""
    budget_bytes: int | None = None
    """Most bytes of tokens in the store; None: no limit."""
    hours: float | None = None
    """Most hours of extraction and training together; None: no limit."""
    exports: tuple[str, ...] | None = None
    """Formats, or `onnx-edge`, `onnx-edge-fp16`, `coreml-fp16`; None: timm where the student is one of its shapes, else onnx; (): none."""
    store: str | None = None
    """Feature store; None: `store` beside `out`, which later calls share."""
    name: str | None = None
    """Name of the dataset; None: that of the photos' folder."""
    recipe: str | None = None
    """Recipe with a table for each stage, taken in the place of the rules; its `[extract]` table, if any, says how tokens are cached."""
    allow_overlap: bool = False
    """Test images that are among the photos are a warning instead of an error."""
    workers: int | None = None
    """Extracting actors; None: one a GPU or core; 0: in this process. On a cluster (`address`) also the ranks of the training."""
    address: str | None = None
    """Ray cluster; None: one is started on this machine."""
    dry_run: bool = False
    """Decide and say the plan, and write nothing."""
    require_licence: LicenceUse | None = None
    """Refuse, before anything is computed, unless the terms of every teacher allow this use."""
    terms: Mapping[str, str] = field(default_factory=dict)
    """Licences of teachers whose terms are not known, by teacher, as the user declares them."""
    layers: tuple[int, ...] = ()
    """Blocks of each teacher, counted from 1, whose patch tokens are cached beside the final ones; (): the recipe's, or none."""
    layer_weights: Mapping[str, float] = field(default_factory=dict)
    """Weight of a cached layer's patch loss, by its block, or by TEACHER/BLOCK, for what learns from the teachers; others count nothing."""
    targets: TargetSource | None = None
    """Stage 3's: `cached` reads feature sets of each drawn size, `live` runs the proxy beside it; None: the recipe's, by rule live."""
    max_bad_share: float = 0.001
    """Stop when more than this share of the photos, or of the test images, cannot be read."""
    allow_removed: bool = False
    """Where images left the photos or the test images, mark them as removed and go on without them, instead of refusing it."""

    def __post_init__(self) -> None:
        for name in ("teachers", "students", "exports"):
            if isinstance(value := getattr(self, name), str):  # which would be taken for a list of its letters
                raise BadInput(f"{name} is a list, such as ({value!r},), got the one name {value!r}")
        if not self.teachers or not self.students:
            raise BadInput(f"distill needs a teacher and a student, got {len(self.teachers)} and {len(self.students)}")
        if len(set(self.students)) < len(self.students):
            raise BadInput(f"a student is named twice: {', '.join(self.students)}; each is another architecture")
        if self.stages not in DISTILL_STAGES:
            raise unknown_name("stages", self.stages, DISTILL_STAGES)
        if self.targets is not None and self.targets not in TARGET_SOURCES:
            raise unknown_name("source of targets", self.targets, TARGET_SOURCES)
        for name in self.exports or ():
            _ = export_named(name)
        limits = {"--budget": self.budget_bytes, "--hours": self.hours}
        if bad := [f"{name} {value:g}" for name, value in limits.items() if value is not None and not value > 0]:
            raise BadInput(f"a limit is above 0, got {', '.join(bad)}; leave it out for no limit")
        if not 0 <= self.max_bad_share <= 1:
            raise BadInput(f"--max-bad-share is a share from 0 to 1, got {self.max_bad_share:g}")
        if self.workers is not None and self.workers < 0:
            raise BadInput(f"--workers is a number of processes, or 0 for this one, got {self.workers}")
        if not isinstance(self.out, Path) and is_url(self.out):
            raise BadInput(f"--out is a folder of this machine, got {self.out}; the store may lie behind a URL (--store)")
        if self.recipe is not None and (self.budget_bytes is not None or self.hours is not None):
            raise BadInput("--budget and --hours choose values by rule, and --recipe states them; give one of the two")
        check_declared(self.require_licence, self.terms)
        object.__setattr__(self, "layers", checked_layers(self.layers))
        TeacherConfig(layers=self.layer_weights)  # raises for what is no weight of a block
        require_utf8("--out", str(self.out), "TensorBoard's writer")
        object.__setattr__(self, "out", Path(absolute(str(self.out))))
        object.__setattr__(self, "store", absolute(self.store or str(self.folder.parent / "store")))
        object.__setattr__(self, "photos", absolute(self.photos))
        object.__setattr__(self, "test", None if self.test is None else absolute(self.test))
        object.__setattr__(self, "name", self.name or dataset_name(self.photos))
        object.__setattr__(self, "teachers", tuple(map(_absolute_request, self.teachers)))
        if self.recipe is not None and Path(self.recipe).is_file():
            object.__setattr__(self, "recipe", absolute(self.recipe))

    @property
    def folder(self) -> Path:
        """The folder of the result."""
        assert isinstance(self.out, Path)
        return self.out

    @property
    def store_url(self) -> str:
        """The feature store."""
        assert self.store is not None
        return self.store

    @property
    def dataset(self) -> str:
        """Name of the photos' dataset."""
        assert self.name is not None
        return self.name

    @property
    def ranks(self) -> int:
        """Ranks of a training: those of the cluster where there is one, else this process."""
        return (self.workers or 0) if self.address is not None else 0


def _absolute_request(request: TeacherRequest) -> TeacherRequest:
    """Return a teacher whose run or file and weights are named by absolute paths: a call from another folder means the same."""
    weights = None if request.weights is None else Path(absolute(str(request.weights)))
    name = absolute_name(request.name)
    return replace(request, name=absolute(name) if name.startswith("/") else name, weights=weights)


def dataset_name(source: str) -> str:
    """Return a dataset's name for a source: its last part that can be one, without what a name cannot hold."""
    source = re.sub(r"@[0-9a-f]{40}(?=/|$)", "", source)  # the commit of a repository on the hub
    parts = [part for part in re.split(r"[/\\]", source.partition("?")[0]) if part and set(part) - set("*.")]
    name = _NAME_RUNS.sub("-", parts[-1] if parts else "photos").strip("-.")[:60]
    return name if re.match(r"[A-Za-z0-9_]", name) else "photos"
