"""What a cached target costs in accuracy, and what the stages give: kNN of final students, by arm and seed, mean and spread.

CIFAR-10 photos, EfficientNet-Lite0 at 128 px (a 4 × 4 grid) as teacher, small ViTs at 64 px with the same grid; every arm has the same
students, steps and batches, and each seed draws weights, order and views anew. Arms: `live` against codecs, token sampling and PHI-S at two
views an image; 1, 2, 4, 8 cached views; the paper's stage ablations (each stage has all the steps), with stage 3's proxy
live and cached. `int8` is also `2 views` and `2 only`.
A small study on two cores ranks little: what differs by less than the seeds do is called so.

Each result is appended to a file as soon as it is there; run again, the study does what is missing, then writes its table above what
people wrote of it ("What it says" stays: read it against the new figures). A result takes 40 to 400 s of one core (`live` most), all of
them some 70 minutes of processor time: 38 minutes on two cores.

    python -m benchmarks.study [--jobs 2] [--images 2000] [--steps 1000] [--seeds 3] [--arms live int8 …] [--folder runs/study]
"""

import argparse
import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from eupe_pipeline.jobs.evaluation.knn import EvaluationSize, knn_of_model
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

from .study_table import Row, read_rows, write_table
from .workers import workers

TEACHER, TEACHER_PX, SIZE_PX = "efficientnet-lite0", 128, 64
STUDENT = StudentConfig("vit", {"width": 96, "depth": 4, "heads": 3, "layer_scale": 1.0, "patch_px": 16}, (SIZE_PX,))
PROXY = StudentConfig("vit", {"width": 192, "depth": 6, "heads": 3, "layer_scale": 1.0, "patch_px": 16}, (SIZE_PX,))
SIZES_PX = (48, 64, 80)
SAMPLED_TOKENS = 4  # of 16: the quarter that 64 of 256 is


@dataclass(frozen=True)
class Scale:
    """How large a study is; results of other scales are kept apart."""

    images: int = 2000
    test_images: int = 2000
    steps: int = 1000
    batch_size: int = 32


class Study:
    """One store and one folder of runs; each arm returns a student's kNN in percent for a seed. Several processes may share a folder."""

    def __init__(self, folder: Path, scale: Scale) -> None:
        self.folder, self.scale = folder, scale
        with self._alone("store"):
            self.store = FeatureStore.create(str(folder / "store"))
            package = fetch_demo(lambda event: None)["cifar10"]
            for name, split, count in (("train", "train", scale.images), ("test", "test", scale.test_images)):
                if not any(key.startswith(f"{name}@") for key in self.store.list_datasets()):
                    build_index(self.store.objects, str(unpack(package, folder / "data", split, count)), name)
        direct: dict[str, Callable[[int], float]] = {"untrained": self._untrained, "live": partial(self._direct, codec="fp32", live=True)}
        direct |= {codec: partial(self._direct, codec=codec) for codec in ("fp32", "fp16", "int8", "int4")}
        if "tokens_per_view" in {field.name for field in fields(ExtractOptions)}:
            direct[f"{SAMPLED_TOKENS} of 16 tokens"] = partial(self._direct, tokens_per_view=SAMPLED_TOKENS)
        direct["phi-s"] = partial(self._direct, normalisation="phi-s")
        direct |= {f"{views} view{'s' * (views > 1)}": partial(self._direct, views=views) for views in (1, 4, 8)}
        direct |= {f"stages {one}": partial(self._staged, stages=one) for one in ("1-2", "1-3", "1-2-3")}
        direct |= {f"stages {one} cached": partial(self._staged, stages=one, cached=True) for one in ("1-3", "1-2-3")}
        self.arms = direct

    @contextlib.contextmanager
    def _alone(self, what: str) -> Iterator[None]:
        """Let one process at a time make what several arms share."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f".{what}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _extract(self, teacher: str, seed: int, views: int, size_px: int = SIZE_PX, **more: Any) -> str:
        """Return the key of a teacher's feature set, of a proxy's at some input size."""
        request = TeacherRequest(teacher, size_px=TEACHER_PX if teacher == TEACHER else size_px)
        options = ExtractOptions(
            store=self.store.url,
            data="train",
            teachers=(request,),
            views=ViewSpec(views_per_image=views, seed=seed),
            statistics_batches=16,
            workers=0,
            **more,
        )
        with self._alone(f"{Path(teacher).name}-{seed}-{views}-{size_px}-{'-'.join(map(str, more.values()))}"):
            (key,) = extract_features(options)["features"].values()
        return str(key)

    def _recipe(self, seed: int, student: StudentConfig, live: bool = False, **changes: Any) -> TrainRecipe:
        steps = self.scale.steps
        run = RunConfig(steps, self.scale.batch_size, checkpoint_every=steps, keep_checkpoints=1, log_every=50, reader_threads=1)
        optimizer = OptimizerConfig(learning_rate=2e-3, beta2=0.95, weight_decay=0.02)
        source = TeacherConfig("live" if live else "cached")
        base = TrainRecipe(seed=seed, student=student, teacher=source, adapter=AdapterConfig(256), optimizer=optimizer, run=run)
        return replace(base, **changes)

    def _train(self, recipe: TrainRecipe, features: str | tuple[str, ...], name: str, **more: Any) -> str:
        """Return the run's folder, trained by the process that comes first."""
        out = self.folder / "runs" / name
        with self._alone(name):
            sets = (features,) if isinstance(features, str) else features
            train(TrainOptions(recipe, self.store.url, sets, out, "train", **more))
        return str(out)

    def _knn(self, run: str) -> float:
        return float(knn_of_model(self.store, run, "train", "test", EvaluationSize())["cls"]["ours"])

    def _direct(self, seed: int, codec: str = "int8", views: int = 2, live: bool = False, **more: Any) -> float:
        """Distil teacher to student at one resolution."""
        features = self._extract(TEACHER, seed, views, codec=codec, **more)
        name = "-".join([codec, str(views), "live" if live else "cached", *map(str, more.values()), str(seed)])
        return self._knn(self._train(self._recipe(seed, STUDENT, live), features, name, teachers=(TEACHER,) if live else ()))

    def _untrained(self, seed: int) -> float:
        self._direct(seed)
        return self._knn(str(self.folder / "runs" / f"int8-2-cached-{seed}" / "initial"))

    def _staged(self, seed: int, stages: str, cached: bool = False) -> float:
        """Run the paper's ablations with a proxy, which stage 3 runs live or reads from int8 sets of its sizes."""
        first = self._train(self._recipe(seed, PROXY, stage=1), self._extract(TEACHER, seed, 2, codec="int8"), f"proxy{seed}")
        features, start = self._extract(first, seed, 2), ""
        if "2" in stages:
            start = self._train(self._recipe(seed, STUDENT), features, f"after2-{seed}")
        if "3" not in stages:
            return self._knn(start)
        student = replace(STUDENT, sizes_px=SIZES_PX, init_from=start)
        recipe = self._recipe(seed, student, stage=3, teacher=TeacherConfig("cached" if cached else "live", SIZES_PX))
        if cached:
            others = [self._extract(first, seed, 2, size, statistics_from=(features,)) for size in SIZES_PX if size != SIZE_PX]
            return self._knn(self._train(recipe, (features, *others), f"{stages}-cached-{seed}"))
        return self._knn(self._train(recipe, features, f"{stages}-{seed}", proxy=Path(first)))


def measure(folder: Path, scale: Scale, arm: str, seed: int) -> Row:
    """Measure one arm with one seed, on one thread."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    study = Study(folder, scale)
    return Row(arm, seed, study.arms[arm](seed), time.perf_counter() - started, asdict(scale))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=Scale.images)
    parser.add_argument("--test-images", type=int, default=Scale.test_images)
    parser.add_argument("--steps", type=int, default=Scale.steps)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--arms", nargs="*", default=None)
    parser.add_argument("--folder", type=Path, default=Path("runs/study"))
    parser.add_argument("--out", type=Path, default=Path("docs/results/study.md"))
    options = parser.parse_args()
    scale = Scale(options.images, options.test_images, options.steps)
    results = options.out.with_suffix(".jsonl")
    results.parent.mkdir(parents=True, exist_ok=True)
    arms = options.arms or list(Study(options.folder, scale).arms)
    known = {(row.arm, row.seed) for row in read_rows(results, asdict(scale))}
    todo = [(arm, seed) for seed in range(options.seeds) for arm in arms if (arm, seed) not in known]
    with workers(options.jobs) as pool:
        running = [pool.submit(measure, options.folder, scale, arm, seed) for arm, seed in todo]
        for done, future in enumerate(as_completed(running), start=1):
            row = future.result()
            with results.open("a") as file:
                file.write(f"{json.dumps(asdict(row))}\n")
            print(f"{done}/{len(todo)}  {row.arm}, seed {row.seed}: {row.knn_percent:.2f} %  ({row.seconds:.0f} s)", flush=True)
    write_table(read_rows(results, asdict(scale)), arms, options.out)
    print(options.out.read_text())


if __name__ == "__main__":
    main()
