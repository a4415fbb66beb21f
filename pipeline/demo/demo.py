"""The demonstration: CIFAR-10 photos to a report, through every room, with the same functions that the commands call.

    OUT/data/            WebDataset tars of PNGs           OUT/steps.json    seconds and rows of each finished step
    OUT/stage1|2|3/      the runs                          OUT/results.json  OUT/report.html

Each step resumes by itself: a demo that was stopped goes on when it is started again, and a finished one only writes its report anew. The
seconds of a step are those of the run that did its work. Values come from recipes/demo.toml.
"""

import dataclasses
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...jobs.evaluation.knn import EvaluationSize, knn_of_features, knn_of_model
from ...jobs.extraction.extract import extract_features
from ...jobs.extraction.options import ExtractOptions, TeacherRequest
from ...jobs.ray_session import ray_session
from ...jobs.training.launch import train
from ...jobs.training.options import TrainOptions
from ...storage.core.events import OnEvent
from ...storage.images.indexing import build_index
from ...storage.objects.atomic_files import write_atomically
from ...storage.store import FeatureStore
from ...storage.views.view_spec import ViewSpec
from ..reports.report import write_report
from .cifar import unpack
from .demo_recipe import DemoRecipe, load_demo
from .demo_results import demo_contents, live_comparison
from .fetch import fetch_demo

TRAIN, TEST = "cifar10", "cifar10-test"


class Demo:
    """One demonstration in one folder; `run` does every step that is not done yet."""

    def __init__(self, out: Path, store_url: str, recipe: DemoRecipe, on_event: OnEvent) -> None:
        self.out, self.recipe, self.on_event = out, recipe, on_event
        self.store = FeatureStore.create(store_url)
        self._ledger = out / "steps.json"
        self.steps: dict[str, dict[str, Any]] = json.loads(self._ledger.read_text()) if self._ledger.is_file() else {}

    def _say(self, text: str) -> None:
        self.on_event({"event": "note", "text": text})

    def _done(self, name: str, seconds: float, rows: int, *, fresh: bool) -> None:
        """Keep what a step cost; a step that found its work done keeps the figures of the run that did it."""
        if fresh or name not in self.steps:
            before = self.steps.get(name, {}).get("seconds", 0.0) if fresh else 0.0
            total = before + seconds
            self.steps[name] = {"seconds": total, "rows": rows, "rows_per_s": rows / total}
            write_atomically(self._ledger, json.dumps(self.steps, indent=1).encode())

    def run(self) -> dict[str, Any]:
        """Run every step in turn; returns what stands in results.json."""
        started = time.perf_counter()
        with ray_session():
            knn, features = self._train_all()
        results = self._results(features, knn)
        results["seconds"] = time.perf_counter() - started
        write_atomically(self.out / "results.json", json.dumps(results, indent=1).encode())
        runs = [self._stage(stage) for stage in (1, 2, 3)]
        shown = demo_contents(self.store.dataset(TEST), self._picture_models(), self.store, list(features.values()), self.on_event)
        write_report(dataclasses.replace(shown, runs=runs, results=results), self.out / "report.html")
        self._say(f"the report is {self.out / 'report.html'}")
        return results

    def _train_all(self) -> tuple[dict[str, Any], dict[str, str]]:
        """Go from images to trained students; returns the kNN table and the keys of the feature sets that were trained on."""
        self._index(fetch_demo(self.on_event)["cifar10"])
        teachers = self._extract("extract teachers", TRAIN, self._teacher_requests(), self._train_views())
        self._train(1, teachers)
        proxy_run = TeacherRequest(str(self._stage(1)), size_px=self.recipe.extract.proxy_size_px)
        proxy = self._extract("extract proxy", TRAIN, (proxy_run,), self._train_views())
        self._train(2, proxy)
        self._train(3, proxy)
        return self._evaluate(), teachers | proxy

    def _stage(self, stage: int) -> Path:
        return self.out / ("stage1-proxy" if stage == 1 else f"stage{stage}")

    def _index(self, package: Path) -> None:
        started, data = time.perf_counter(), self.recipe.data
        fresh = TRAIN not in {key.split("@")[0] for key in self.store.list_datasets()}
        for name, split, count in ((TRAIN, "train", data.train_images), (TEST, "test", data.test_images)):
            build_index(self.store.objects, str(unpack(package, self.out / "data", split, count)), name, on_event=self.on_event)
        self._done("unpack and index", time.perf_counter() - started, data.train_images + data.test_images, fresh=fresh)

    def _teacher_requests(self) -> tuple[TeacherRequest, ...]:
        sizes = self.recipe.extract.teacher_sizes_px
        return tuple(TeacherRequest(name, size_px=sizes.get(name)) for name in self.recipe.extract.teachers)

    def _train_views(self) -> ViewSpec:
        drawn = ViewSpec(views_per_image=self.recipe.extract.views_per_image, seed=self.recipe.extract.seed)
        return self.recipe.stages[1].recipe.views.spec(drawn)

    def _extract(self, step: str, data: str, teachers: tuple[TeacherRequest, ...], views: ViewSpec) -> dict[str, str]:
        extract = self.recipe.extract
        options = ExtractOptions(
            store=self.store.url,
            data=data,
            teachers=teachers,
            views=views,
            images_per_shard=extract.images_per_shard,
            codec=extract.codec,
            precision=extract.precision,
            statistics_batches=extract.statistics_batches,
            batch_size=extract.batch_size,
        )
        summary = extract_features(options, self.on_event)
        self._done(step, summary["seconds"], summary["rows"] * len(teachers), fresh=bool(summary["views_done"]))
        return dict(summary["features"])

    def _train(self, stage: int, features: Mapping[str, str]) -> None:
        resolved = self.recipe.stages[stage]
        recipe, origins = resolved.recipe, dict(resolved.origins)
        if stage == 3:
            student = dataclasses.replace(recipe.student, init_from=str(self._stage(2)))
            recipe, origins["student.init_from"] = dataclasses.replace(recipe, student=student), "demo: the run of stage 2"
        proxy = self._stage(1) if recipe.teacher.source == "live" else None
        options = TrainOptions(recipe, self.store.url, tuple(features.values()), self._stage(stage), TRAIN, origins, proxy)
        summary = train(options, lambda event: self.on_event({**event, "stage": f"stage {stage}"} if event["event"] == "step" else event))
        self._done(f"train stage {stage}", summary["seconds"], recipe.run.steps * recipe.run.batch_size, fresh=not summary["already"])

    def _evaluate(self) -> dict[str, Any]:
        """Return the kNN of the untrained and trained students, the proxy, and of each teacher from its cached tokens."""
        center = ViewSpec(kind="center")
        bank = self._extract(f"extract teachers, centre views of {TRAIN}", TRAIN, self._teacher_requests(), center)
        queries = self._extract(f"extract teachers, centre views of {TEST}", TEST, self._teacher_requests(), center)
        started, size_px = time.perf_counter(), self.recipe.extract.proxy_size_px
        runs = {
            "random": self._stage(2) / "initial",
            "stage2": self._stage(2),
            "stage3": self._stage(3),
            "proxy": self._stage(1),
        }
        knn: dict[str, Any] = {}
        for number, (name, run) in enumerate(runs.items()):
            self._progress("evaluate kNN", number, len(runs))
            knn[name] = knn_of_model(self.store, str(run), TRAIN, TEST, EvaluationSize(size_px=size_px))
        knn["teachers"] = {name: knn_of_features(self.store, bank[name], queries[name]) for name in bank}
        self._progress("evaluate kNN", len(runs), len(runs))
        data = self.recipe.data
        self._done("evaluate kNN", time.perf_counter() - started, len(runs) * (data.train_images + data.test_images), fresh=False)
        return knn

    def _progress(self, stage: str, done: int, total: int) -> None:
        self.on_event({"event": "progress", "stage": stage, "done": done, "total": total, "unit": "models"})

    def _picture_models(self) -> dict[str, tuple[str, int]]:
        """Return {column of the report's pictures: (teacher or run, input size that gives a grid worth looking at)}."""
        teachers = {name: (name, 2 * size) for name, size in self.recipe.extract.teacher_sizes_px.items()}
        double = 2 * self.recipe.extract.proxy_size_px
        return {**teachers, "proxy": (str(self._stage(1)), double), "student": (str(self._stage(3)), double)}

    def _results(self, features: Mapping[str, str], knn: Mapping[str, Any]) -> dict[str, Any]:
        readers = {key: self.store.features(key) for key in features.values()}
        sets = {key: {"bytes": reader.stored_bytes(), "rows": reader.rows, "codec": reader.codec} for key, reader in readers.items()}
        untrained = max(knn["random"][feature]["ours"] for feature in ("cls", "mean_patch"))
        gained = knn["stage2"]["cls"]["ours"] - untrained
        return {
            "title": "Demonstration on CIFAR-10",
            "knn": knn,
            "steps": self.steps,
            "feature_sets": sets,
            "live": live_comparison(self.store, self.recipe, self.steps, self._teacher_requests(), self._stage(1)),
            "facts": {
                "Student after stage 2": f"{knn['stage2']['cls']['ours']:.1f} % kNN, {gained:+.1f} points over the better feature of "
                "the untrained student",
                "Machine": f"{os.cpu_count()} cores, {self._devices()}",
                "Data": f"{self.recipe.data.train_images:,} training and {self.recipe.data.test_images:,} test photos of CIFAR-10",
            },
        }

    def _devices(self) -> str:
        import torch

        return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"


def run_demo(out: Path, store: str, on_event: OnEvent, recipe: str = "demo") -> dict[str, Any]:
    """Run or resume the demonstration in `out` with its store at `store`; returns what stands in results.json."""
    return Demo(out, store, load_demo(recipe), on_event).run()
