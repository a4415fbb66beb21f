"""Training in this process: from a recipe, a store and feature sets to a run folder, or to one for each of several students.

Everything that could make a cached target wrong is checked before the first step: each feature set is complete, all are over the same
views, a live teacher is the one whose tokens were cached (its statistics normalise it), and a run that stands in the folder was begun
with the same recipe and targets. Then the trainer runs here, alone or as one of several ranks (`train_ranks.py` starts those); a finished
run is not trained again. A student's random weights come from the recipe's seed alone, whatever else is trained beside it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..storage.errors import BadInput, CacheMismatch
from ..storage.features import FeatureReader
from ..storage.identity import differing_fields, file_sha256
from ..storage.store import FeatureStore
from ..student.config import TrainRecipe
from ..student.devices import Choice, choose_device, choose_devices, choose_precision, use_tensor_cores
from ..student.draws import step_seed
from ..student.learner import Learner
from ..student.models import Student, TargetSpec
from ..student.order import Order
from ..student.ranks import ALONE, Ranks
from ..student.run import RunFolder, load_model, save_model
from ..student.sampled import refuse_other_grids
from ..student.targets import CachedTargets, LiveTargets, TargetSource
from ..student.trainer import Trainer
from ..teachers.encoders import build_encoder
from ..teachers.registry import load_teacher, resolve_teacher
from ..teachers.regularity import set_drop_path, set_recompute
from ..teachers.spec import RANDOM_WEIGHTS
from ..teachers.teacher import Teacher
from .watch import Watch, watching

OnEvent = Callable[[dict[str, Any]], None]


def train(
    recipe: TrainRecipe,
    store: FeatureStore,
    features: Sequence[str],
    *,
    data: str,
    out: Path,
    proxy: Path | None = None,
    live_teachers: Sequence[str] = (),
    students: Sequence[str] = (),
    on_event: OnEvent = lambda event: None,
    origins: Mapping[str, str] | None = None,
    allow_random_weights: bool = False,
    ranks: Ranks = ALONE,
    stop_asked: Callable[[], bool] = lambda: False,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Train into `out` and return the summary; with `already: True` and at once when that run is finished.

    `features` are names or keys of feature sets over the dataset `data`. With `teacher.source = "live"`, `live_teachers` names the teacher
    of each feature set in the same order, or `proxy` is the run folder behind the only one: the sets then give views and statistics.
    With several `students` (architectures), each has the run folder `out/NAME`, and the summary holds theirs under `students`.
    `watch` evaluates them while they train.
    Raises `BadInput` and `CacheMismatch` before any step.
    """
    readers = open_features(store, features, data)
    refuse_random_weights(readers.values(), allow_random_weights)
    device = choose_device(recipe.device)
    use_tensor_cores(device.value)
    source = _target_source(recipe, readers, [str(proxy)] if proxy is not None else live_teachers, device.value)
    runs = student_runs(recipe, students, Path(out))
    for own, _ in runs.values():
        refuse_other_grids(own, source.specs)
    finished = {name: begin_run(own, source, folder, origins or {}, ranks) for name, (own, folder) in runs.items()}
    summaries = {name: {**summary, "already": True} for name, summary in finished.items() if summary is not None}
    for summary in summaries.values():
        on_event({"event": "already", **summary})
    open_runs = {name: run for name, run in runs.items() if name not in summaries}
    if open_runs:
        devices = choose_devices(recipe.device, len(open_runs)) if ranks.count == 1 else [device] * len(open_runs)
        learners = [
            _learner(own, folder, source, readers, choice, ranks) for (own, folder), choice in zip(open_runs.values(), devices, strict=True)
        ]
        views = next(iter(readers.values())).views
        order = Order(len(views.dataset), views.views_per_image, recipe.seed, excluded_images(readers.values()))
        after_step = watching(watch, store, learners[0], on_event)
        trained = Trainer(learners, source, views, order, on_event=on_event, stop_asked=stop_asked, after_step=after_step).train()
        summaries |= {name: {**summary, "already": False} for name, summary in zip(open_runs, trained, strict=True)}
    if len(runs) == 1:
        return next(iter(summaries.values()))
    return {"students": {name: summaries[name] for name in runs}, "already": not open_runs}


def student_runs(recipe: TrainRecipe, students: Sequence[str], out: Path) -> dict[str, tuple[TrainRecipe, RunFolder]]:
    """Recipe and run folder of each student, by architecture; one student, or none named, trains into `out` itself.

    With several, `student.init_from` names the folder that holds one run for each, as this one will.
    """
    if len(set(students)) < len(students):
        raise BadInput(f"a student is named twice: {', '.join(students)}; each --student of one pass is another architecture")
    names = list(students) or [recipe.student.architecture]
    runs = {}
    for name in names:
        start = recipe.student.init_from
        start = f"{start}/{name}" if start and len(names) > 1 else start
        own = replace(recipe, student=replace(recipe.student, architecture=name, init_from=start))
        runs[name] = (own, RunFolder(out / name if len(names) > 1 else out))
    return runs


def begin_run(
    recipe: TrainRecipe, source: TargetSource, folder: RunFolder, origins: Mapping[str, str], ranks: Ranks
) -> dict[str, Any] | None:
    """Record what a run is, or check that the run which stands there is the same; returns the summary of a finished one."""
    if ranks.first:
        folder.begin(recipe, origins, {"targets": source.identities(), "init_from": _initial_identity(recipe)})
    ranks.wait()
    return folder.finished()


def _learner(
    recipe: TrainRecipe, folder: RunFolder, source: TargetSource, readers: Mapping[str, FeatureReader], device: Choice, ranks: Ranks
) -> Learner:
    """A student ready to train in its folder."""
    statistics = {name: reader.statistics.digest for name, reader in readers.items()}
    student = initial_student(recipe, source.specs)
    if recipe.student.init_from:
        load_model(student, Path(recipe.student.init_from), statistics)
    elif ranks.first and not folder.initial.exists():
        save_model(student, folder.initial, size_px=max(recipe.student.sizes_px), targets=statistics)
    precision = choose_precision(recipe.precision, device.value)
    return Learner(recipe, student, folder, device=device, precision=precision, statistics=statistics, ranks=ranks)


def open_features(store: FeatureStore, features: Sequence[str], data: str) -> dict[str, FeatureReader]:
    """Complete feature sets over one set of views of a dataset, by teacher name; raises `BadInput`, `CacheMismatch`."""
    if not features:
        raise BadInput(f"training needs at least one feature set; {store.url} has: {', '.join(store.list_features()) or 'none'}")
    readers: dict[str, FeatureReader] = {}
    for wanted in features:
        reader = store.features(wanted)
        if reader.name in readers:
            raise BadInput(f"two feature sets of teacher {reader.name} were given: {readers[reader.name].key} and {reader.key}")
        readers[reader.name] = reader
    first = next(iter(readers.values()))
    if (dataset := store.dataset(data)).digest != first.views.dataset.digest:
        raise CacheMismatch(f"{first.key} was made from {first.views.dataset.key}, not from {dataset.key}; extract for that dataset first")
    for reader in readers.values():
        if lines := differing_fields(reader.views.identity, first.views.identity):
            raise CacheMismatch(
                f"{reader.key} was made with other views than {first.key}: {'; '.join(lines)}. Extract all teachers of a run with the "
                "same data, --views and --seed"
            )
        if missing := reader.missing_shards():
            raise BadInput(
                f"{reader.key} is not complete: {len(missing)} of {reader.shards} shards are missing; "
                "run the same `extract-features` command again to its end"
            )
    return readers


def refuse_random_weights(readers: Iterable[FeatureReader], allowed: bool) -> None:
    """Raise `BadInput` for tokens of a teacher with random weights, unless the caller says once more that it is a trial."""
    at_random = [reader.key for reader in readers if reader.identity["teacher"].get("weights_sha256") == RANDOM_WEIGHTS]
    if at_random and not allowed:
        raise BadInput(f"{at_random[0]} holds tokens of a teacher with random weights; --allow-random-weights trains on them all the same")


def excluded_images(readers: Iterable[FeatureReader]) -> NDArray[np.int64]:
    """Images (sorted, unique) for which at least one feature set has no tokens."""
    images = [reader.failed_rows() // reader.views.views_per_image for reader in readers]
    return np.unique(np.concatenate(images)).astype(np.int64)


def initial_student(recipe: TrainRecipe, specs: Mapping[str, TargetSpec]) -> Student:
    """The student with random weights that depend on the recipe's seed alone."""
    torch.manual_seed(step_seed(recipe.seed, -1))
    encoder = build_encoder({**recipe.student.options, "name": recipe.student.architecture})
    encoder.preprocessing = replace(encoder.preprocessing, size_px=max(recipe.student.sizes_px))
    for size_px in recipe.student.sizes_px:
        encoder.grid(size_px, size_px)  # raises BadInput off the stride
    set_drop_path(encoder, recipe.student.drop_path)
    set_recompute(encoder, recipe.run.recompute_activations)
    return Student(encoder, recipe.adapter.width, specs)


def _target_source(recipe: TrainRecipe, readers: Mapping[str, FeatureReader], live_teachers: Sequence[str], device: str) -> TargetSource:
    if recipe.teacher.names and set(recipe.teacher.names) != set(readers):
        raise BadInput(
            f"this recipe is about the teachers {', '.join(recipe.teacher.names)}, the feature sets are of {', '.join(readers)}; give "
            "those of its teachers, or --set teacher.names=[]"
        )
    unknown = set(recipe.teacher.weights) - set(readers)
    if unknown:
        raise BadInput(f"teacher.weights names {sorted(unknown)}, but the feature sets are of {sorted(readers)}")
    if recipe.teacher.source == "cached":
        return CachedTargets(readers)
    if len(live_teachers) != len(readers):  # zip would drop the rest
        raise BadInput(
            f"live targets need the teacher behind each feature set: {len(readers)} sets ({', '.join(readers)}), "
            f"{len(live_teachers)} teachers; give --proxy RUN for the one feature set of a proxy"
        )
    teachers = {
        name: open_live_teacher(reader, wanted, device) for (name, reader), wanted in zip(readers.items(), live_teachers, strict=True)
    }
    statistics = {name: reader.statistics for name, reader in readers.items()}
    return LiveTargets(teachers, statistics, device=device, sizes_px=recipe.teacher.sizes_px, seed=recipe.seed)


def open_live_teacher(reader: FeatureReader, name_or_run: str, device: str) -> Teacher:
    """The loaded teacher whose tokens a feature set holds; raises `CacheMismatch` naming each field in which it is another."""
    recorded = reader.identity["teacher"]
    spec = resolve_teacher(
        name_or_run, size_px=recorded["preprocessing"]["size_px"], precision=recorded["precision"]
    )  # fmt: skip
    if lines := differing_fields(spec.identity(), recorded):
        raise CacheMismatch(f"{name_or_run} is not the teacher that made {reader.key}: {'; '.join(lines)}")
    return load_teacher(spec, device)


def _initial_identity(recipe: TrainRecipe) -> dict[str, str] | None:
    """What a run starts from, by content; None for random weights."""
    if not recipe.student.init_from:
        return None
    model = Path(recipe.student.init_from) / "model"
    names = ("backbone.safetensors", "adapters.safetensors")
    for name in names:
        if not (model / name).is_file():
            raise BadInput(f"{recipe.student.init_from} holds no trained model (no {model / name}); finish that run first")
    return {name: file_sha256(model / name) for name in names}
