"""What a cached target costs in accuracy, and what the stages give: kNN of final students, by arm and seed, mean and spread.

CIFAR-10 photos, EfficientNet-Lite0 as teacher, small ViTs; every arm has the same students, steps and batches, and each seed draws weights,
order and views anew. Arms: `live` against the codecs at two views an image; 1, 2, 4, 8 cached views (a live teacher has no more than
the store's views either: what is fresh is what is not repeated); the paper's stage ablations. A small study on two cores ranks little:
differences below the spread of the seeds are noise, and the output says so.

    python -m benchmarks.study [--images 2000] [--steps 400] [--seeds 3] [--arms live int8 …] [--folder DIR]
"""

import argparse
import json
import shutil
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from eupe_pipeline.jobs.evaluate import EvaluationSize, knn_of_model
from eupe_pipeline.jobs.extract import ExtractOptions, TeacherRequest, extract_features
from eupe_pipeline.jobs.train import train
from eupe_pipeline.pipeline.cifar import unpack
from eupe_pipeline.pipeline.fetch import fetch_demo
from eupe_pipeline.storage.indexing import build_index
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.views import ViewSpec
from eupe_pipeline.student.config import AdapterConfig, OptimizerConfig, RunConfig, StudentConfig, TeacherConfig, TrainRecipe

from .figures import machine

TEACHER, SIZE_PX = "efficientnet-lite0", 64
STUDENT = StudentConfig("vit", {"width": 96, "depth": 4, "heads": 3, "layer_scale": 1.0}, (SIZE_PX,))
PROXY = StudentConfig("vit", {"width": 192, "depth": 6, "heads": 3, "layer_scale": 1.0}, (SIZE_PX,))
SIZES_PX = (48, 64, 80)


class Study:
    """One store and one folder of runs; each arm returns a student's kNN in percent for a seed."""

    def __init__(self, folder: Path, images: int, steps: int) -> None:
        self.folder, self.steps = folder, steps
        self.store = FeatureStore.create(str(folder / "store"))
        package = fetch_demo(lambda event: None)["cifar10"]
        for name, split, count in (("train", "train", images), ("test", "test", max(200, images // 5))):
            build_index(self.store.objects, str(unpack(package, folder / "data", split, count)), name)
        direct: dict[str, Callable[[int], float]] = {"live": partial(self._direct, codec="fp32", views=2, live=True)}
        direct |= {codec: partial(self._direct, codec=codec, views=2) for codec in ("fp32", "fp16", "int8", "int4")}
        direct |= {f"{views} views": partial(self._direct, codec="int8", views=views) for views in (1, 2, 4, 8)}
        direct |= {f"stages {one}": partial(self._staged, stages=one) for one in ("2 only", "1-2", "1-3", "1-2-3")}
        self.arms = direct

    def _extract(self, teacher: str, seed: int, codec: str, views: int) -> str:
        """The key of a teacher's feature set."""
        request = TeacherRequest(teacher, size_px=SIZE_PX)
        options = ExtractOptions(
            data="train", teachers=(request,), views=ViewSpec(views_per_image=views, seed=seed), codec=codec, statistics_batches=16,
            workers=0,
        )  # fmt: skip
        extract_features(str(self.folder / "store"), options, lambda event: None)
        wanted = Path(teacher).name
        for key in self.store.list_features():
            one = self.store.features(key)
            if one.name == wanted and one.codec == codec and one.views.spec == options.views and one.complete:
                return key
        raise AssertionError(f"no feature set of {teacher} after its extraction")

    def _recipe(self, seed: int, student: StudentConfig, live: bool = False, **changes: Any) -> TrainRecipe:
        run = RunConfig(self.steps, 32, checkpoint_every=self.steps, log_every=50)
        optimizer = OptimizerConfig(learning_rate=2e-3, beta2=0.95, weight_decay=0.02)
        source = TeacherConfig("live" if live else "cached")
        base = TrainRecipe(seed=seed, student=student, teacher=source, adapter=AdapterConfig(256), optimizer=optimizer, run=run)
        return replace(base, **changes)

    def _train(self, recipe: TrainRecipe, features: str, out: Path, **more: Any) -> str:
        return str(Path(train(recipe, self.store, [features], data="train", out=out, **more)["model"]).parent)

    def _knn(self, run: str) -> float:
        return float(knn_of_model(self.store, run, "train", "test", EvaluationSize())["cls"]["paper"])

    def _direct(self, seed: int, codec: str, views: int, live: bool = False) -> float:
        """Teacher to student at one resolution."""
        features = self._extract(TEACHER, seed, codec, views)
        out = self.folder / "runs" / f"{codec}-{views}-{'live' if live else 'cached'}-{seed}"
        return self._knn(self._train(self._recipe(seed, STUDENT, live), features, out, live_teachers=[TEACHER] if live else []))

    def _staged(self, seed: int, stages: str) -> float:
        """The paper's ablations; every stage has the same steps."""
        if stages == "2 only":
            return self._direct(seed, "int8", 2)
        runs = self.folder / "runs"
        first = self._train(self._recipe(seed, PROXY, stage=1), self._extract(TEACHER, seed, "int8", 2), runs / f"proxy{seed}")
        features, start = self._extract(first, seed, "int8", 2), ""
        if "2" in stages:
            start = self._train(self._recipe(seed, STUDENT), features, runs / f"after2-{seed}")
        if "3" not in stages:
            return self._knn(start)
        student = replace(STUDENT, sizes_px=SIZES_PX, init_from=start)
        recipe = self._recipe(seed, student, stage=3, teacher=TeacherConfig("live", SIZES_PX))
        return self._knn(self._train(recipe, features, runs / f"{stages}-{seed}", proxy=Path(first)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", nargs="*", default=None)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=Path("docs/results/study.json"))
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="study-", dir=options.folder))
    rows: dict[str, list[float]] = {}
    try:
        study = Study(folder, options.images, options.steps)
        for arm in options.arms or study.arms:
            rows[arm] = [study.arms[arm](seed) for seed in range(options.seeds)]
            spread = statistics.stdev(rows[arm]) if options.seeds > 1 else float("nan")
            print(f"RESULT study.knn.{arm.replace(' ', '_')} {statistics.mean(rows[arm]):.2f} -    (spread {spread:.2f})", flush=True)
    finally:
        shutil.rmtree(folder)
    described = {"images": options.images, "steps": options.steps, "seeds": options.seeds, "teacher": TEACHER, "size_px": SIZE_PX}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"machine": machine(), "options": described, "knn_percent": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
