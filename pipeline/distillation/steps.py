"""The work of a distillation: extract, train, and every step between, each of which resumes by itself.

A distillation that was stopped goes on when it is asked for again; a finished one only writes its report anew. Another student trains on
the tokens that are there, and a folder of photos that has grown costs the teachers' passes over the new photos alone. The seconds of a
step are those of the call that did its work.
"""

import contextlib
import dataclasses
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ...jobs.extraction.extract import extract_features
from ...jobs.extraction.options import ExtractOptions, TeacherRequest
from ...jobs.ray_session import ray_session
from ...jobs.training.launch import train
from ...jobs.training.options import TrainOptions, Watch
from ...storage.core.events import Event, OnEvent
from ...storage.features.features import FeatureReader
from ...storage.store import FeatureStore
from ...storage.views.input_size import SizePx, size_text
from ...storage.views.view_spec import ViewSpec
from ...student.data.sized import cached_sizes
from ...teachers.registry.resolve import MODEL_FILE
from .folder import DistillFolder
from .options import DistillOptions
from .recipes import DistillRecipes, equivalent_command

_MEASURED_IMAGES = 500  # that agreement is measured on while a student trains, at most


class Distillation:
    """The steps between indexed photos and trained students; `train_all` does those that are not done."""

    def __init__(self, options: DistillOptions, folder: DistillFolder, store: FeatureStore, data: str, on_event: OnEvent) -> None:
        self.options, self.folder, self.store, self.data, self.on_event = options, folder, store, data, on_event
        self.commands: list[str] = []
        """The command that each training is."""
        self.features: dict[str, str] = {}
        """Keys of the feature sets that were trained on, by teacher."""

    def session(self) -> contextlib.AbstractContextManager[Any]:
        """Return one Ray for all extractions, or nothing where they run in this process."""
        return contextlib.nullcontext() if self.options.workers == 0 else ray_session(self.options.address)

    def train_all(self, recipes: DistillRecipes) -> dict[str, dict[int, Path]]:
        """Go from indexed photos to trained students; returns the runs of each student by stage."""
        teachers = recipes.extract.requests(self.options.teachers)
        self.features = self.extract("extract teachers", self.data, teachers, recipes, recipes.views, self.options.terms)
        targets, requests = self.features, teachers
        if recipes.proxy is not None:
            self._train("proxy", 1, recipes, tuple(targets.values()), self.folder.proxy())
            proxy = TeacherRequest(str(self.folder.proxy()), size_px=recipes.extract.proxy_size_px)
            targets, requests = self.extract("extract proxy", self.data, (proxy,), recipes, recipes.views), (proxy,)
            self.features = {**self.features, **targets}
        runs: dict[str, dict[int, Path]] = {}
        for student, stages in recipes.students.items():
            runs[student] = {}
            for stage in stages:
                runs[student][stage] = self.folder.run(student, stage)
                keys = tuple(targets.values())
                if sizes_px := cached_sizes(recipes.students[student][stage].recipe):
                    keys = self._extract_sizes(sizes_px, requests, targets, recipes)
                self._train(student, stage, recipes, keys, runs[student][stage])
        return runs

    def _extract_sizes(
        self, sizes_px: tuple[SizePx, ...], requests: tuple[TeacherRequest, ...], base: Mapping[str, str], recipes: DistillRecipes
    ) -> tuple[str, ...]:
        """Extract what is missing of targets at several input sizes, and return the keys of the sets of all of them.

        `base` are the sets of one size, by teacher: they give the statistics, and are the sets of their own size.
        """
        keys, what = list[str](), "teachers" if recipes.proxy is None else "proxy"
        for size_px in sizes_px:
            own = {name: key for name, key in base.items() if is_set_of(self.store.features(key), size_px)}
            lacking = [request for request in requests if set_name(request, base) not in own]
            if lacking:
                options = recipes.sized_options(
                    self.store.url, self.data, recipes.sized(lacking, size_px), [base[set_name(request, base)] for request in lacking],
                    workers=self.options.workers, address=self.options.address,
                )  # fmt: skip
                made = self._extracted(
                    f"extract {what} at {size_text(size_px)} px", options, self.options.terms if recipes.proxy is None else {}
                )
                self.features |= {f"{name} at {size_text(size_px)} px": key for name, key in made.items()}
                own |= made
            keys += own.values()
        return tuple(keys)

    def extract(
        self, step: str, data: str, teachers: tuple[TeacherRequest, ...], recipes: DistillRecipes, views: ViewSpec,
        terms: Mapping[str, str] = MappingProxyType({}),
    ) -> dict[str, str]:  # fmt: skip
        """Extract what is missing and return the keys of the feature sets by teacher."""
        options = recipes.extract.options(
            self.store.url, data, teachers, views, workers=self.options.workers, address=self.options.address
        )  # fmt: skip
        return self._extracted(step, options, terms)

    def _extracted(self, step: str, options: ExtractOptions, terms: Mapping[str, str]) -> dict[str, str]:
        asked = dataclasses.replace(
            options, require_licence=self.options.require_licence, terms=dict(terms), max_bad_share=self.options.max_bad_share
        )
        summary = extract_features(asked, self.on_event)
        self.folder.added(step, summary["seconds"], summary["views_done"] * len(options.teachers))
        return dict(summary["features"])

    def _train(self, name: str, stage: int, recipes: DistillRecipes, keys: tuple[str, ...], out: Path) -> None:
        resolved = recipes.proxy if stage == 1 else recipes.students[name][stage]
        assert resolved is not None
        recipe, origins, extra = resolved.recipe, dict(resolved.origins), list[str]()
        if stage == 3:
            start = str(chosen_model(self.folder.run(name, 2)))
            student = dataclasses.replace(recipe.student, init_from=start)
            recipe, origins["student.init_from"] = dataclasses.replace(recipe, student=student), "distill: the model of stage 2"
            extra += ["--set", f"student.init_from={start}"]
        live = tuple(self._live_teachers(recipes)) if recipe.teacher.source == "live" else ()
        proxy = live[0] if live and recipes.proxy is not None else None
        every = recipe.run.checkpoint_every  # so that the best one is a checkpoint
        watch = Watch("agreement", every, images=_MEASURED_IMAGES) if recipe.data.hold_out else None
        options = TrainOptions(
            recipe=recipe, store=self.store.url, features=keys, out=out, data=self.data, origins=origins, proxy=proxy, watch=watch,
            teachers=() if proxy is not None else live, workers=self.options.ranks,
            address=self.options.address if self.options.ranks else None, require_licence=self.options.require_licence,
        )  # fmt: skip
        extra += [] if stage == 1 else ["--student", name]
        if self.options.recipe is not None and (stage == 1 or recipes.proxy is None):  # by rule they stand in the recipe's file
            extra += [word for layer, weight in self.options.layer_weights.items() for word in ("--layer-weight", f"{layer}={weight!r}")]
        extra += [] if watch is None else ["--evaluate", "agreement", "--every", str(every), "--evaluate-images", str(_MEASURED_IMAGES)]
        if stage == 3 and self.options.recipe is not None and self.options.targets is not None:
            extra += ["--targets", self.options.targets]
        extra += [word for model in live for word in ("--proxy" if proxy is not None else "--teacher", model)]
        self.commands.append(shlex.join(equivalent_command(recipes.files[name], stage, self.store.url, self.data, keys, out, *extra)))
        label = training_label(self.folder, name, stage)
        summary = train(options, lambda event: self.on_event(_labelled(event, label)))
        samples = recipe.run.steps * recipe.run.batch_size
        if not summary["already"] or f"train {label}" not in self.folder.steps:  # of a resumed run the summary times the last part alone
            self.folder.done(f"train {label}", samples / summary["images_per_s"], samples)

    def _live_teachers(self, recipes: DistillRecipes) -> Iterator[str]:
        """Yield the models of live targets: the proxy where there is one, else the teachers."""
        if recipes.proxy is not None:
            yield str(self.folder.proxy())
        else:
            yield from recipes.extract.teachers


def set_name(request: TeacherRequest, base: Mapping[str, str]) -> str:
    """Return under which of some feature sets' names the tokens of a model are: its own, or those of the one run that there is."""
    return next(iter(base)) if request.spec is None else request.spec.name


def is_set_of(reader: FeatureReader, size_px: SizePx) -> bool:
    """Return whether a feature set holds whole grids of one input size."""
    return reader.input_px == size_px and reader.layout.tokens_per_view is None


def training_label(folder: DistillFolder, name: str, stage: int) -> str:
    """Return a training's name for people."""
    return f"{folder.label(name)}, stage {stage}"


def chosen_model(run: Path) -> Path:
    """Return the model of a finished run that is used: its best by agreement on held-out photos where it kept that one, else its last."""
    best = run / "best"
    return best if (best / MODEL_FILE).is_file() else run


def _labelled(event: Event, label: str) -> Event:
    return {**event, "stage": label} if event["event"] == "step" else event
