"""The arms of the study: how the student of a seed is trained in each, and what an arm is compared with.

Pairs: with one seed, all arms have the same initial weights, the same order of images and the same views, so that a difference within a
pair is the arm's, or what training makes of a rounding. That last part has an arm of its own, `fp32, nudged`: the learning rate is
moved by a millionth, and nothing else. Views are drawn twice, for even and for odd seeds: view k of an image is the same however many
views a set has, so arms of different K share theirs.

`16 views` are fresh views: a run has 16 epochs and shows each view once, as live training on fresh views does (and gives its weights, bit
for bit, where targets are fp32). `int8` is also `2 views`, `all tokens` and the ablation `2 only`. An arm's name says what differs.
"""

import contextlib
import fcntl
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from eupe_pipeline.jobs.extraction.extract import extract_features
from eupe_pipeline.jobs.extraction.options import ExtractOptions, TeacherRequest
from eupe_pipeline.jobs.training.launch import train
from eupe_pipeline.jobs.training.options import TrainOptions
from eupe_pipeline.pipeline.demo.cifar import unpack
from eupe_pipeline.pipeline.demo.fetch import fetch_demo
from eupe_pipeline.storage.images.indexing import build_index
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.views.view_spec import ViewSpec
from eupe_pipeline.student.model.recipe import AdapterConfig, OptimizerConfig, RunConfig, StudentConfig, TeacherConfig, TrainRecipe

from .study_codebooks import make_codebooks

TEACHER, SECOND_TEACHER, TEACHER_STRIDE_PX = "efficientnet-lite0", "keras-resnet50", 32
STUDENT, PROXY = {"width": 64, "depth": 4, "heads": 2}, {"width": 128, "depth": 6, "heads": 2}
DRAWS = 2
EPOCHS = 16
AGREEMENT_IMAGES = 2000
CODEBOOK_TEACHER = Path(__file__).with_name("study_codebooks.py")

AGAINST: Mapping[str, str] = {
    "fp32, nudged": "fp32",
    "live": "fp32",
    "fp16": "fp32",
    "int8": "fp32",
    "int4": "fp32",
    "1 bit": "fp32",
    "a quarter of the tokens": "int8",
    "1 view": "16 views",
    "2 views": "16 views",
    "4 views": "16 views",
    "8 views": "16 views",
    "two teachers, PHI-S": "two teachers",
    "stages 1-2": "int8",
    "stages 1-2-3": "stages 1-2",
    "stages 1-2-3 cached": "stages 1-2-3",
}
"""What each arm is compared with."""
VIEWS: Mapping[str, int] = {"1 view": 1, "2 views": 2, "4 views": 4, "8 views": 8}
"""Views an image of the arms that are compared with fresh views."""
SAME: Mapping[str, str] = {"2 views": "int8"}
"""Arms that are another one under the name of their question."""
CODECS_AND_VIEWS = (
    "fp32", "int8", "16 views", "1 view", "int4", "fp16", "fp32, nudged", "a quarter of the tokens", "1 bit", "4 views", "8 views",
)  # fmt: skip
"""The arms of `make study`; the others take two or three times as long."""


@dataclass(frozen=True)
class Scale:
    """How large a study is; results of other scales are kept apart. Raises ValueError for sizes of which the grids differ."""

    images: int = 1600
    bank_images: int = 10_000
    """Labelled training photos, the first of which the student is taught on: kNN's neighbours, and what the linear probe learns from."""
    test_images: int = 10_000
    steps: int = 800
    """Of a stage; fresh views stay fresh for as many as `EPOCHS` epochs have."""
    batch_size: int = 32
    size_px: int = 32
    """Of the student's input."""
    teacher_px: int = 128
    """Of the teachers' input; the student has their grid."""

    def __post_init__(self) -> None:
        if self.teacher_px % TEACHER_STRIDE_PX or self.grid < 2 or self.size_px % self.grid:
            raise ValueError(
                f"the teachers' size is {TEACHER_STRIDE_PX} px times two or more, the student's a multiple of the grid that this makes, "
                f"got {self.teacher_px} and {self.size_px} px"
            )

    @property
    def grid(self) -> int:
        """Patch tokens a side, of teachers and student."""
        return self.teacher_px // TEACHER_STRIDE_PX

    @property
    def sizes_px(self) -> tuple[int, int, int]:
        """Return stage 3's sizes: a quarter of the grid less, the student's own, a quarter more."""
        patch_px, quarter = self.size_px // self.grid, max(1, round(self.grid / 4))
        return (self.grid - quarter) * patch_px, self.size_px, (self.grid + quarter) * patch_px

    @property
    def sampled_tokens(self) -> int:
        """Return a quarter of a view's patch tokens, which 64 of 256 are."""
        return self.grid**2 // 4

    @property
    def learning_rate(self) -> float:
        """Return 2e-3 for 32 photos a step, and the square root's multiple for others (ours).

        The rate is low for a reason: at 6e-3 a nudge alone moves kNN by 1.2 points (root mean square; 0.6 at 2e-3) for no better student.
        """
        return 2e-3 * math.sqrt(self.batch_size / 32)

    def student(self, size: Mapping[str, int]) -> StudentConfig:
        """Return a ViT of this width, depth and heads with the teachers' grid."""
        return StudentConfig("vit", {**size, "layer_scale": 1.0, "patch_px": self.size_px // self.grid}, (self.size_px,))


class Study:
    """One store and one folder of runs; several processes may share a folder. Raises SystemExit for a folder of another scale."""

    def __init__(self, folder: Path, scale: Scale) -> None:
        self.folder, self.scale = folder, scale
        with self.alone("store"):
            self._check_scale()
            self.store = FeatureStore.create(str(folder / "store"))
            package = fetch_demo(lambda event: None)["cifar10"]
            counts = {"train": ("train", scale.images), "bank": ("train", scale.bank_images), "test": ("test", scale.test_images)}
            for name, (split, count) in counts.items():
                if not any(key.startswith(f"{name}@") for key in self.store.list_datasets()):
                    build_index(self.store.objects, str(unpack(package, folder / "data", split, count)), name)

    def _check_scale(self) -> None:
        """Write down what the folder is of, and refuse another; a folder of before this was written is of the default."""
        described = self.folder / "scale.json"
        if not described.is_file():
            of = Scale() if (self.folder / "store").is_dir() else self.scale
            described.write_text(json.dumps(asdict(of)) + "\n")
        if (known := Scale(**json.loads(described.read_text()))) != self.scale:
            raise SystemExit(f"{self.folder} holds a study of {known}, not of {self.scale}. Next: give another --folder")

    @contextlib.contextmanager
    def alone(self, what: str) -> Iterator[None]:
        """Let one process at a time make what several arms share."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f".{what.replace('/', '_')}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def extract(self, *teachers: str, seed: int, views: int, size_px: int | None = None, **more: Any) -> tuple[str, ...]:
        """Return the keys of teachers' feature sets; `size_px` is a proxy's input size, None the student's."""
        size_px = size_px or self.scale.size_px
        named = [TeacherRequest(teacher, size_px=size_px if Path(teacher).is_dir() else self.scale.teacher_px) for teacher in teachers]
        requests = tuple(replace(one, weights=self.codebooks) if one.name.startswith(str(CODEBOOK_TEACHER)) else one for one in named)
        spec = ViewSpec(views_per_image=views, seed=seed % DRAWS)
        options = ExtractOptions(
            store=self.store.url, data="train", teachers=requests, views=spec, statistics_batches=16, workers=0, **more
        )
        made_by = "-".join([*(Path(teacher).name for teacher in teachers), str(seed % DRAWS), str(views), str(size_px)])
        with self.alone("-".join([made_by, *map(str, more.values())])):
            return tuple(extract_features(options)["features"].values())

    @property
    def codebooks(self) -> Path:
        """The codebooks of `1 bit`, learnt from the fp32 tokens of the first draw."""
        path = self.folder / "codebooks.safetensors"
        (features,) = self.extract(TEACHER, seed=0, views=2, codec="fp32")
        with self.alone("codebooks"):
            if not path.is_file():
                make_codebooks(self.store.features(features), path, self.scale.teacher_px)
        return path

    def recipe(
        self, seed: int, student: StudentConfig, live: bool = False, learning_rate_factor: float = 1.0, **changes: Any
    ) -> TrainRecipe:
        """Return the recipe that all arms share; fp32, so that targets count to the last bit."""
        steps = self.scale.steps
        run = RunConfig(steps, self.scale.batch_size, checkpoint_every=steps, keep_checkpoints=1, log_every=50, reader_threads=1)
        optimizer = OptimizerConfig(learning_rate=self.scale.learning_rate * learning_rate_factor, beta2=0.95, weight_decay=0.02)
        base = TrainRecipe(
            seed=seed, student=student, teacher=TeacherConfig("live" if live else "cached"), adapter=AdapterConfig(128),
            optimizer=optimizer, run=run, precision="fp32",
        )  # fmt: skip
        return replace(base, **changes)

    def train(self, recipe: TrainRecipe, features: tuple[str, ...], name: str, **more: Any) -> Path:
        """Return the run's folder, trained by the process that comes first."""
        out = self.folder / "runs" / name
        with self.alone(name):
            train(TrainOptions(recipe, self.store.url, features, out, "train", **more))
        return out

    def _direct(
        self, seed: int, codec: str = "int8", views: int = 2, live: bool = False, learning_rate_factor: float = 1.0,
        teachers: tuple[str, ...] = (TEACHER,), **more: Any,
    ) -> Path:  # fmt: skip
        """Distil teachers to a student at one resolution."""
        features = self.extract(*teachers, seed=seed, views=views, codec=codec, **more)
        what = [codec, str(views), "live" if live else "cached", *(["nudged"] if learning_rate_factor != 1 else [])]
        name = "-".join([*what, *(Path(one).stem for one in teachers[1:]), *map(str, more.values()), str(seed)])
        recipe = self.recipe(seed, self.scale.student(STUDENT), live, learning_rate_factor)
        return self.train(recipe, features, name, teachers=teachers if live else ())

    def _sampled(self, seed: int) -> Path:
        return self._direct(seed, tokens_per_view=self.scale.sampled_tokens)

    def _through_codebooks(self, seed: int) -> Path:
        features = self.extract(f"{CODEBOOK_TEACHER}:build", seed=seed, views=2, codec="fp32")
        return self.train(self.recipe(seed, self.scale.student(STUDENT)), features, f"codebooks-{seed}")

    def _staged(self, seed: int, stages: str, cached: bool = False) -> Path:
        """Run the paper's ablations with a proxy, which stage 3 runs live or reads from int8 sets of its sizes."""
        taught = self.extract(TEACHER, seed=seed, views=2, codec="int8")
        student, sizes_px = self.scale.student(STUDENT), self.scale.sizes_px
        first = str(self.train(self.recipe(seed, self.scale.student(PROXY), stage=1), taught, f"proxy{seed}"))
        features = self.extract(first, seed=seed, views=2)
        start = self.train(self.recipe(seed, student), features, f"after2-{seed}")
        if "3" not in stages:
            return start
        student = replace(student, sizes_px=sizes_px, init_from=str(start))
        recipe = self.recipe(seed, student, stage=3, teacher=TeacherConfig("cached" if cached else "live", sizes_px))
        if not cached:
            return self.train(recipe, features, f"{stages}-{seed}", proxy=Path(first))
        others = [
            self.extract(first, seed=seed, views=2, size_px=size, statistics_from=features)[0]
            for size in sizes_px
            if size != self.scale.size_px
        ]
        return self.train(recipe, (*features, *others), f"{stages}-cached-{seed}")


ARMS: Mapping[str, Callable[[Study, int], Path]] = {
    **{codec: partial(Study._direct, codec=codec) for codec in ("fp32", "fp16", "int8", "int4")},
    **{f"{views} view{'s' * (views > 1)}": partial(Study._direct, views=views) for views in (1, 4, 8, 16)},
    "live": partial(Study._direct, codec="fp32", live=True),
    "fp32, nudged": partial(Study._direct, codec="fp32", learning_rate_factor=1 + 1e-6),
    "a quarter of the tokens": Study._sampled,
    "1 bit": Study._through_codebooks,
    "two teachers": partial(Study._direct, teachers=(TEACHER, SECOND_TEACHER)),
    "two teachers, PHI-S": partial(Study._direct, teachers=(TEACHER, SECOND_TEACHER), normalisation="phi-s"),
    **{f"stages {stages}": partial(Study._staged, stages=stages) for stages in ("1-2", "1-2-3")},
    "stages 1-2-3 cached": partial(Study._staged, stages="1-2-3", cached=True),
}
"""How each arm trains the student of a seed; returns its run's folder."""
