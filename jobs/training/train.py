"""Training in this process: from a recipe, a store and feature sets to a run folder, or to one for each of several students.

Everything that could make a cached target wrong is checked before the first step: which feature sets go together (`data`), that a
live teacher is the one whose tokens were cached (its statistics normalise it), that images still decode as they did (`start_checks`), and
that a run that is in the folder already was begun with the same recipe and targets. A lease keeps the sets from being pruned. Then the
trainer runs here, alone or as one of several ranks (`ranks` starts those); a finished run is not trained again. A student's random
weights come from the recipe's seed alone, whatever else is trained beside it.
"""

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ...storage.core.errors import BadInput, CacheMismatch
from ...storage.core.events import OnEvent, ignore_event
from ...storage.core.identity import file_sha256
from ...storage.core.urls import is_url, require_utf8
from ...storage.features.features import FeatureReader
from ...storage.store import FeatureStore
from ...storage.views.input_size import area_px, size_hw
from ...student.data.class_spaces import class_spaces
from ...student.data.prefetch import prefetch_of
from ...student.data.sized import cached_sizes, refuse_sampled_sizes
from ...student.data.targets import LiveTargets, TargetSource, target_statistics
from ...student.model.batch_norms import batch_norm_identity
from ...student.model.draws import step_seed
from ...student.model.losses import ClassSpace
from ...student.model.ranks import ALONE, Ranks
from ...student.model.recipe import LEGACY_VALUES, TrainRecipe
from ...student.model.student import Student, TargetSpec, refuse_losses, refuse_unequal_grids
from ...student.quantised.aware import aware_identity
from ...student.training.learner import Learner
from ...student.training.run_folder import RunFolder, load_model, save_model
from ...student.training.trackers import require_clients
from ...student.training.tracking import tracking
from ...student.training.trainer import Trainer
from ...teachers.encoders.build import build_encoder, try_sizes
from ...teachers.encoders.training_settings import (
    scale_init_with_depth,
    set_activation_checkpointing,
    set_drop_path,
    set_rope_rescale_draws,
)
from ...teachers.registry.licences import TermsByName, as_record, merged, refuse_terms
from ...teachers.registry.resolve import load_teacher
from ...teachers.registry.spec import TeacherSpec
from ...teachers.runtime.devices import Choice, allow_tf32, choose_device, choose_devices, choose_precision
from ..repair.recorded_teacher import recorded_teacher
from ..runs.licences import terms_field
from ..runs.lock import exclusive_run_folder
from ..runs.reading_leases import leases
from ..runs.run_source import fetch_once, local_run
from ..runs.upload import mirrored
from .data import Part, await_sets, cached_targets, in_recorded_order, joined_views, open_parts, refuse_random_weights, run_order
from .evaluate_while_training import watching
from .hold_out import check_hold_out, hold_out_record
from .layers import say_unread, trained_layers
from .options import TrainOptions
from .start_checks import check_resize, check_start, refuse_followed_angle, refuse_other_aspects, target_grids, training_terms
from .versions import recorded_versions


def train_in_process(
    options: TrainOptions, on_event: OnEvent = ignore_event, *, ranks: Ranks = ALONE, stop_asked: Callable[[], bool] = lambda: False
) -> dict[str, Any]:
    """Train here, alone or as one of several ranks, and return the summary; `already: True` and at once when that run is finished.

    With several students, the summary holds theirs under `students`. Raises `BadInput` and `CacheMismatch` before any step.
    """
    out, students, live = str(options.out), options.students, options.live_teachers
    require_utf8("--out", out, "TensorBoard's writer")
    trackers = options.track if ranks.first else ()
    require_clients(trackers)
    store = options.open_store()
    mirror = mirrored(out, ranks, on_event) if is_url(out) else contextlib.nullcontext((Path(out), on_event))
    with mirror as (run_folder, on_event):
        begun = begun_run(options.recipe, students, run_folder)
        recipe = with_order(options.recipe, store, not options.complete, on_event if ranks.first else ignore_event, begun)
        versions = recorded_versions(options, store, run_folder, on_event if ranks.first else ignore_event)
        if options.follow_s is not None:
            await_sets(store, options.features, [versions.get(name, name) for name in options.datasets], options.follow_s, on_event)
        parts = open_parts(
            store, options.features, options.data, recipe.data.shares, subsets=options.subsets, complete=options.complete,
            versions=versions, sizes_px=cached_sizes(recipe),
        )  # fmt: skip
        parts = parts if begun is None else in_recorded_order(parts, begun.recorded("identities.json").get("views", ()))
        readers = [reader for part in parts for reader in part.every_reader]
        refuse_random_weights(readers, options.allow_random_weights)
        keys = [reader.key for reader in readers] + [part.subset.key for part in parts if part.subset is not None]
        lease = leases(store, keys, f"train-{run_folder.name}", on_event) if ranks.first else contextlib.nullcontext()
        with lease, contextlib.ExitStack() as resources:
            device = choose_device(recipe.device)
            allow_tf32(device.value)
            runs = {
                name: (folder.as_begun(student_recipe, options.origins), folder)
                for name, (student_recipe, folder) in student_runs(recipe, students, run_folder).items()
            }
            starts = [student_recipe.student.init_from for student_recipe, _ in runs.values()]
            fetch_once([*live, *starts], ranks)
            terms = {name: training_terms(options, readers, [each.student.init_from])[0] for name, (each, _) in runs.items()}
            refuse_terms(options.require_licence, merged(*terms.values()))
            source = _target_source(recipe, parts, by_teacher(options.features, live), device.value)
            if ranks.first:
                say_unread(recipe.teacher, parts[0].readers, on_event)
                check_start(store, parts, source)
            check_hold_out(recipe.data.hold_out, parts, on_event if ranks.first else ignore_event, starts)
            check_resize(options.resize, parts, device.value, on_event if ranks.first else ignore_event)
            prefetch_of(recipe, source, ranks, options.resize)  # raises BadInput before a run's folder exists
            refuse_followed_angle(recipe, complete=options.complete)
            for student_recipe, folder in runs.values():
                refuse_losses(student_recipe, target_grids(recipe, parts[0]), source.specs)
                _refuse_student(student_recipe, folder, source, parts, ranks)
            if ranks.first:
                resources.enter_context(exclusive_run_folder(run_folder))
            summaries = begin_runs(runs, source, parts, options.origins, terms, device, ranks, on_event)
            open_runs = {name: run for name, run in runs.items() if name not in summaries}
            if open_runs:
                learners = _learners(open_runs, source, parts, device, ranks)
                order = run_order(recipe, parts, store, options.follow_s)
                after_step = watching(options.watch, store, learners[0], parts, on_event)
                with tracking(trackers, tracked_names(out, open_runs), on_event) as report:
                    trained = Trainer(
                        learners, source, joined_views(parts), order, resize=options.resize, on_event=report, stop_asked=stop_asked,
                        after_step=after_step,
                    ).train()  # fmt: skip
                summaries |= {name: {**summary, "already": False} for name, summary in zip(open_runs, trained, strict=True)}
    several = {"students": {name: summaries[name] for name in runs}, "already": not open_runs}
    result = next(iter(summaries.values())) if len(runs) == 1 else several
    return {**result, **terms_field(merged(*terms.values()))}


def _refuse_student(recipe: TrainRecipe, folder: RunFolder, source: TargetSource, parts: Sequence[Part], ranks: Ranks) -> None:
    """Raise `BadInput` for a student that these targets cannot teach, before its folder is made."""
    refuse_sampled_sizes(recipe, parts[0].by_size)  # the grid of every size
    refuse_unequal_grids(recipe, source.specs)
    refuse_other_aspects(recipe, parts[0].views.spec, parts[0].readers)
    if not folder.has_steps():  # a run that goes on has its views in its identities
        refuse_other_views(recipe, parts)
        try_sizes(architecture_of(recipe), recipe.student.sizes_px)
    batch_norm_identity(architecture_of(recipe), recipe.run, ranks)  # raises BadInput for parts of one image
    aware_identity(architecture_of(recipe), recipe, ranks)  # raises BadInput for what cannot be int8


def begun_run(recipe: TrainRecipe, students: Sequence[str], out: Path) -> RunFolder | None:
    """Return the first of the runs that has taken a step already: what it has decided is not decided again."""
    return next((folder for _, folder in student_runs(recipe, students, out).values() if folder.has_steps()), None)


def with_order(recipe: TrainRecipe, store: FeatureStore, follow: bool, on_event: OnEvent, begun: RunFolder | None = None) -> TrainRecipe:
    """Return the recipe with its order of images decided and recorded: shards at a time for a store behind a URL, global otherwise.

    A run that goes on keeps the order that it began with, also when its store has moved to another kind of place.
    """
    data = replace(recipe.data, replace_failed=recipe.data.replace_failed or follow)
    if data.order == "auto" and begun is not None and (recorded := begun.recorded("recipe.json")):
        data = replace(data, order=recorded["recipe"]["data"]["order"])
    if data.order == "auto":
        remote = is_url(store.url)
        data = replace(data, order="shards" if remote else "global")
        if remote:
            on_event({"event": "note", "text": "data.order: shards  # auto: one request a shard is cheaper than one a view"})
    return replace(recipe, data=data)


def student_runs(recipe: TrainRecipe, students: Sequence[str], out: Path) -> dict[str, tuple[TrainRecipe, RunFolder]]:
    """Return recipe and run folder of each student, by architecture; one student, or none named, trains into `out` itself.

    With several, `student.init_from` names the folder that holds one run for each, as this one will.
    """
    if len(set(students)) < len(students):
        raise BadInput(f"a student is named twice: {', '.join(students)}; each --student of one pass is another architecture")
    names = list(students) or [recipe.student.architecture]
    runs = {}
    for name in names:
        start = recipe.student.init_from
        start = f"{start}/{name}" if start and len(names) > 1 else start
        student_recipe = replace(recipe, student=replace(recipe.student, architecture=name, init_from=start))
        runs[name] = (student_recipe, RunFolder(out / name if len(names) > 1 else out))
    return runs


def tracked_names(out: str, runs: Mapping[str, tuple[TrainRecipe, RunFolder]]) -> dict[str, Path]:
    """Return each run's folder by the name that trackers show: the last part of `--out`, and the student's where each has a folder."""
    name = out.rstrip("/").rpartition("/")[2]
    return {f"{name}/{student}" if folder.out.name == student else name: folder.out for student, (_, folder) in runs.items()}


def begin_runs(
    runs: Mapping[str, tuple[TrainRecipe, RunFolder]],
    source: TargetSource,
    parts: Sequence[Part],
    origins: Mapping[str, str],
    terms: Mapping[str, TermsByName],
    device: Choice,
    ranks: Ranks,
    on_event: OnEvent,
) -> dict[str, dict[str, Any]]:
    """Record the identity of each run, or check it against the run in its folder; returns the summaries of finished ones."""
    summaries = {}
    views = [part.views.key for part in parts]  # live teachers' identities do not name them
    for name, (recipe, folder) in runs.items():
        if ranks.first:
            for key in folder.taken_over:
                on_event({"event": "note", "text": f"{key}: {LEGACY_VALUES[key]}  # as the run in {folder.out} was begun"})
            now = {"precision": choose_precision(recipe.precision, device.value), "device": device}
            identities = {"targets": source.identities(), "views": views, "init_from": _initial_identity(recipe)}
            identities |= _subsets(parts) | hold_out_record(recipe, parts)
            identities |= batch_norm_identity(architecture_of(recipe), recipe.run, ranks)
            identities |= aware_identity(architecture_of(recipe), recipe, ranks)
            known = folder.choices() if folder.has_steps() else now
            folder.begin(recipe, origins, identities, now, _datasets(parts), as_record(terms[name]))
            _say_kept(now, known, on_event)
        ranks.barrier()
        if (finished := folder.finished()) is not None:
            summaries[name] = {**finished, "already": True}
            on_event({"event": "already", **summaries[name]})
    return summaries


def _datasets(parts: Sequence[Part]) -> dict[str, Any]:
    """Return digest, images and version of each dataset by key: a name may mean a newer version tomorrow."""
    datasets = [part.views.dataset for part in parts]
    return {dataset.key: {"digest": dataset.digest, "images": len(dataset), "version": dataset.version} for dataset in datasets}


def _subsets(parts: Sequence[Part]) -> dict[str, Any]:
    """Return the subset of each dataset that has one, as a run records it; {} without, as in runs of before subsets."""
    subsets = {part.views.dataset.key: part.subset.key for part in parts if part.subset is not None}
    return {"subsets": subsets} if subsets else {}


def _say_kept(here: Mapping[str, Choice], known: Mapping[str, Choice], on_event: OnEvent) -> None:
    """Report where this machine would choose otherwise than the run did at its start; `known` is empty where that was not recorded."""
    if not known and here["precision"].why.startswith("auto"):
        text = f"this run did not record what precision = 'auto' was when it began; from here on it is {here['precision'].value}"
        on_event({"event": "warning", "text": f"{text} ({here['precision'].why})"})
    for name, value_here in here.items():
        then = known.get(name, value_here)
        if then.value != value_here.value:
            kept = f"{name} stays {then.value}" if name == "precision" else f"{name} is {value_here.value}, other rounding"
            on_event(
                {
                    "event": "note",
                    "text": f"{kept}: this run began with {then.value} ({then.why}), here it is {value_here.value} ({value_here.why})",
                }
            )


def refuse_other_views(recipe: TrainRecipe, parts: Sequence[Part]) -> None:
    """Raise `CacheMismatch` where a set's views are not those that the recipe states; their number and seed may be any."""
    for part in parts:
        if differing := recipe.views.differences(part.views.spec):
            lines = [f"views.{key} is {got!r}, the recipe has {stated!r}" for key, (got, stated) in differing.items()]
            settings = " ".join(f"--set views.{key}={json.dumps(got)}" for key, (got, _) in differing.items() if got is not None)
            raise CacheMismatch(
                f"the views of {part.views.key} are not those of the recipe: {'; '.join(lines)}. Make the recipe's with `extract-features "
                f"--recipe NAME`, or say that these are meant: {settings or '--set views={}'}"
            )


def _learners(
    runs: Mapping[str, tuple[TrainRecipe, RunFolder]], source: TargetSource, parts: Sequence[Part], device: Choice, ranks: Ranks
) -> list[Learner]:
    """Return a student ready to train in each folder, on a device of its own where one process has several."""
    of_teachers = {name: reader.statistics for name, reader in parts[0].readers.items()}
    statistics = {target: target_statistics(of_teachers, target).digest for target in source.specs}
    by_angle = any(recipe.loss.cls == "angle" for recipe, _ in runs.values())
    spaces = class_spaces([(part.share, part.readers) for part in parts]) if by_angle else {}
    devices = choose_devices(next(iter(runs.values()))[0].device, len(runs)) if ranks.count == 1 else [device] * len(runs)
    return [
        _learner(recipe, folder, source, statistics, chosen, ranks, spaces)
        for (recipe, folder), chosen in zip(runs.values(), devices, strict=True)
    ]


def _learner(
    recipe: TrainRecipe, folder: RunFolder, source: TargetSource, statistics: Mapping[str, str], device: Choice, ranks: Ranks,
    spaces: Mapping[str, ClassSpace],
) -> Learner:  # fmt: skip
    student = initial_student(recipe, {name: source.specs[name] for name in folder.teacher_order(source.specs)})
    if recipe.student.init_from:
        load_model(student, local_run(recipe.student.init_from), statistics)
    elif ranks.first and not folder.initial.exists():
        save_model(student, folder.initial, size_px=max(recipe.student.sizes_px, key=area_px), targets=statistics)
    precision = folder.choices().get("precision") or choose_precision(recipe.precision, device.value)
    return Learner(recipe, student, folder, device=device, precision=precision, statistics=statistics, ranks=ranks, spaces=spaces)


def architecture_of(recipe: TrainRecipe) -> dict[str, Any]:
    """Return the architecture of the recipe's student: a name and the options that it changes."""
    return {**recipe.student.options, "name": recipe.student.architecture}


def initial_student(recipe: TrainRecipe, specs: Mapping[str, TargetSpec]) -> Student:
    """Build the student with random weights that depend on the recipe's seed alone.

    Where no teacher has a class token, what the encoder's class token alone depends on is frozen: it would get no gradient, for which
    DDP waits, and no state of the optimiser, which a checkpoint would lack.
    """
    torch.manual_seed(step_seed(recipe.seed, -1))
    encoder = build_encoder(architecture_of(recipe))
    encoder.preprocessing = replace(encoder.preprocessing, size_px=max(recipe.student.sizes_px, key=area_px))
    for size_px in recipe.student.sizes_px:
        encoder.grid(*size_hw(size_px))  # raises BadInput off the stride
    if recipe.student.initial_weights == "timm":
        scale_init_with_depth(encoder)
    set_rope_rescale_draws(encoder, recipe.student.rope_draws)
    set_drop_path(encoder, recipe.student.drop_path)
    set_activation_checkpointing(encoder, recipe.run.recompute_activations)
    if all(spec.cls_dim is None for spec in specs.values()):
        for name in encoder.class_parameters:
            encoder.backbone.get_parameter(name).requires_grad_(False)
    return Student(encoder, recipe.adapter.width, specs)


def by_teacher(features: Sequence[str], live: Sequence[str]) -> dict[str, str]:
    """Return each teacher's location by feature set name: one given for each set, or for each name; raises `BadInput` for two of one."""
    names = [name.partition("@")[0] for name in features]
    names = names if len(live) == len(names) else list(dict.fromkeys(names))  # of a mixture, the sets of one teacher have one name
    if len(live) not in (0, len(names)):  # zip would drop the rest
        raise BadInput(
            f"live targets need the teacher behind each feature set: {len(names)} sets ({', '.join(names)}), "
            f"{len(live)} teachers; give --proxy RUN for the one feature set of a proxy"
        )
    location_of: dict[str, str] = {}
    for name, location in zip(names, live, strict=False):
        if location_of.setdefault(name, location) != location:
            raise BadInput(
                f"two teachers were given for the feature sets of {name}: {location_of[name]} and {location}; they were made by one"
            )
    return location_of


def _target_source(recipe: TrainRecipe, parts: Sequence[Part], live: Mapping[str, str], device: str) -> TargetSource:
    readers = parts[0].readers
    if recipe.teacher.names and set(recipe.teacher.names) != set(readers):
        raise BadInput(
            f"this recipe is about the teachers {', '.join(recipe.teacher.names)}, the feature sets are of {', '.join(readers)}; give "
            "those of its teachers, or --set teacher.names=[]"
        )
    unknown = set(recipe.teacher.weights) - set(readers)
    if unknown:
        raise BadInput(f"teacher.weights names {sorted(unknown)}, but the feature sets are of {sorted(readers)}")
    layers = trained_layers(recipe.teacher, readers)
    if recipe.teacher.source == "cached":
        return cached_targets(parts, layers, recipe.seed)
    if set(live) != set(readers):
        raise BadInput(
            f"live targets need the teacher behind each feature set: {len(readers)} sets ({', '.join(readers)}), "
            f"{len(live)} teachers; give --proxy RUN for the one feature set of a proxy"
        )
    teachers = {name: load_teacher(spec, device) for name, spec in live_specs(readers, live).items()}
    statistics = {name: reader.statistics for name, reader in readers.items()}
    return LiveTargets(teachers, statistics, device=device, sizes_px=recipe.teacher.sizes_px, seed=recipe.seed, layers=layers)


def live_specs(readers: Mapping[str, FeatureReader], live: Mapping[str, str]) -> dict[str, TeacherSpec]:
    """Return the teacher behind each feature set: the one that was given for it, or another of those given, whose identity it has.

    Given in another order they are still the same teachers. Raises `CacheMismatch` for a set whose teacher is not among them, and for a
    teacher that made none of the sets.
    """
    specs, location_of = dict[str, TeacherSpec](), dict[str, str]()
    refused: dict[str, CacheMismatch] = {}
    for name, reader in readers.items():
        for location in dict.fromkeys([live[name], *live.values()]):
            try:
                specs[name], location_of[name] = recorded_teacher(reader, location), location
                break
            except CacheMismatch as error:
                refused.setdefault(location, error)
        else:
            raise refused[live[name]]
    unused = [location for location in live.values() if location not in location_of.values()]
    if unused:
        raise refused[unused[0]]
    return specs


def _initial_identity(recipe: TrainRecipe) -> dict[str, str] | None:
    """Return what a run starts from, by content; None for random weights."""
    if not recipe.student.init_from:
        return None
    model = local_run(recipe.student.init_from) / "model"
    names = ("backbone.safetensors", "adapters.safetensors")
    for name in names:
        if not (model / name).is_file():
            raise BadInput(f"{recipe.student.init_from} holds no trained model (no {model / name}); finish that run first")
    return {name: file_sha256(model / name) for name in names}
