"""What a distillation measures: kNN of its students, proxy and teachers, agreement with the teachers, and what live ones would have cost.

kNN needs labelled photos and labelled test images. A teacher's own figure comes from its cached tokens of centre views, which cost one more
pass over the photos: it is left out for large sets and where a limit of bytes or hours was given, and that is said.
"""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...jobs.estimates.extraction import teacher_speed
from ...jobs.evaluation.agreement import AgreementOptions, evaluate_agreement
from ...jobs.evaluation.knn import KnnOptions, evaluate_knn, knn_of_features
from ...jobs.evaluation.split_checks import check_overlap, digests_of, refuse_one_class
from ...jobs.extraction.options import TeacherRequest
from ...storage.core.errors import BadInput
from ...storage.core.events import OnEvent
from ...storage.images.dataset import ImageDataset
from ...storage.store import FeatureStore
from ...storage.views.input_size import SizePx, area_px
from ...storage.views.pixels import center_views
from ...storage.views.view_spec import ViewSpec
from ...student.export.lineage import recorded_share
from ...teachers.registry.resolve import resolve_teacher
from ...teachers.runtime.devices import choose_device, choose_precision
from .recipes import DistillRecipes
from .steps import Distillation, chosen_model, training_label

MOST_NEIGHBOURS, MOST_TESTED, MOST_AGREED = 50_000, 10_000, 2_000
LIVE_VIEWS, LIVE_BATCHES = 32, 4
TOKENS = ("cls", "mean_patch")


def check_test(photos: ImageDataset, test: ImageDataset, allow_overlap: bool, on_event: OnEvent) -> None:
    """Raise BadInput before anything is trained for test images without labels, of other classes, or that are trained on."""
    for dataset in (photos, test):
        labels = dataset.labels()
        refuse_one_class(dataset, [dataset.label_names[label] for label in np.unique(labels[labels >= 0]).tolist()])
        if (missing := int((labels < 0).sum())) > 0:
            raise BadInput(f"{missing:,} of {len(dataset):,} images of {dataset.key} have no label, and --test measures kNN by labels")
    if stray := sorted(set(test.label_names) - set(photos.label_names)):
        raise BadInput(f"the test images have classes that the photos lack: {', '.join(stray[:5])}; name the folders of both alike")
    check_overlap(
        digests_of(photos), list(digests_of(test)), lambda index: test.row(index).id,
        where=f"{photos.key} is learnt from, {test.key} tested on", allowed=allow_overlap, on_event=on_event,
    )  # fmt: skip


def knn_figures(
    work: Distillation, recipes: DistillRecipes, runs: Mapping[str, Mapping[int, Path]], test: str, on_event: OnEvent
) -> dict[str, Any]:
    """Return kNN by model: of each student untrained and after each stage, of the proxy, and under `teachers` of the teachers."""
    figures: dict[str, Any] = {}
    for student, stages in runs.items():
        label = "" if len(runs) == 1 else f"{student}: "
        size_px = max(recipes.students[student][2].recipe.student.sizes_px, key=area_px)
        models = {"random": stages[2] / "initial", **{f"stage{stage}": chosen_model(run) for stage, run in stages.items()}}
        for name, run in models.items():
            if (run / "model" / "model.json").is_file():
                figures[label + name] = _knn(work, str(run), test, size_px, on_event)
    if recipes.proxy is not None:
        figures["proxy"] = _knn(work, str(work.folder.proxy()), test, recipes.extract.proxy_size_px, on_event)
    images = len(work.store.dataset(work.data)) + len(work.store.dataset(test))
    work.folder.done("evaluate kNN", sum(figure["seconds"] for figure in figures.values()), len(figures) * images)
    if teachers := _teachers_knn(work, recipes, test, on_event):
        figures["teachers"] = teachers
    return figures


def _knn(work: Distillation, model: str, test: str, size_px: SizePx, on_event: OnEvent) -> dict[str, Any]:
    options = KnnOptions(
        model=model, store=work.store.url, train_set=work.data, test_set=test, size_px=size_px, train_images=MOST_NEIGHBOURS,
        test_images=MOST_TESTED, allow_overlap=work.options.allow_overlap, max_bad_share=work.options.max_bad_share,
    )  # fmt: skip
    return evaluate_knn(options, on_event)


def _teachers_knn(work: Distillation, recipes: DistillRecipes, test: str, on_event: OnEvent) -> dict[str, Any]:
    options, images = work.options, len(work.store.dataset(work.data))
    if images > MOST_NEIGHBOURS or options.budget_bytes is not None or options.hours is not None:
        reason = f"{images:,} photos are more than {MOST_NEIGHBOURS:,}" if images > MOST_NEIGHBOURS else "a limit was given"
        on_event({"event": "note", "text": f"the teachers' own kNN is left out: it costs one more view of each photo, and {reason}"})
        return {}
    by_views: dict[ViewSpec, list[TeacherRequest]] = defaultdict(list)
    for request in recipes.extract.requests(options.teachers):
        assert request.spec is not None  # all are resolved
        by_views[center_views(request.spec.preprocessing.input)].append(request)
    figures: dict[str, Any] = {}
    for center, teachers in by_views.items():
        bank = work.extract(f"extract teachers, centre views of {work.data}", work.data, tuple(teachers), recipes, center)
        queries = work.extract(f"extract teachers, centre views of {test}", test, tuple(teachers), recipes, center)
        figures |= {name: knn_of_features(work.store, bank[name], queries[name], on_event=on_event) for name in bank}
    return figures


def agreement_figures(work: Distillation, runs: Mapping[str, Mapping[int, Path]], on_event: OnEvent) -> dict[str, dict[str, Any]]:
    """Return by student and stage how far it agrees with its teachers on photos that it held out, where it held any out."""
    figures: dict[str, dict[str, Any]] = {}
    for student, stages in runs.items():
        for stage, run in stages.items():
            if recorded_share(run):
                options = AgreementOptions(model=str(chosen_model(run)), store=work.store.url, images=MOST_AGREED)
                figures.setdefault(student, {})[f"stage{stage}"] = evaluate_agreement(options, on_event)
    return figures


def live_comparison(work: Distillation, recipes: DistillRecipes) -> dict[str, dict[str, Any]]:
    """Return by training on cached tokens the seconds as run and the seconds with live teachers, by forwards of a few batches.

    Views are not rendered for it: the student needs them too, and some photos may be gone or broken. A comparison is kept in the folder: a
    teacher is loaded for it once.
    """
    names = [training_label(work.folder, student, 2) for student in recipes.students]
    names += [] if recipes.proxy is None else [training_label(work.folder, "proxy", 1)]
    kept: dict[str, dict[str, Any]] = dict(work.folder.kept.get("live", {}))
    if not set(names) <= set(kept):
        kept |= _measured_live(work, recipes)
        work.folder.keep(live=kept)
    return {name: kept[name] for name in names if name in kept}


def _measured_live(work: Distillation, recipes: DistillRecipes) -> dict[str, dict[str, Any]]:
    precision = choose_precision(recipes.extract.precision, choose_device("auto").value).value
    requests = recipes.extract.requests(work.options.teachers)
    teachers = {request.spec.name: request.spec for request in requests if request.spec is not None}  # all are resolved
    proxy = (
        None
        if recipes.proxy is None
        else {"proxy": resolve_teacher(str(work.folder.proxy()), size_px=recipes.extract.proxy_size_px, precision=precision)}
    )
    trainings = {} if recipes.proxy is None else {training_label(work.folder, "proxy", 1): (teachers, recipes.proxy)}
    trainings |= {training_label(work.folder, student, 2): (proxy or teachers, stages[2]) for student, stages in recipes.students.items()}
    trainings = {name: row for name, row in trainings.items() if row[1].recipe.teacher.source == "cached"}
    seconds = {
        name: teacher_speed(spec, choose_device("auto").value, LIVE_VIEWS, LIVE_BATCHES)[0]
        for specs, _ in trainings.values()
        for name, spec in specs.items()
    }
    comparison = {}
    for name, (specs, resolved) in trainings.items():
        run, forward = resolved.recipe.run, sum(seconds[teacher] for teacher in specs)
        cached = work.folder.steps[f"train {name}"]["seconds"]
        comparison[name] = {
            "cached_s": cached,
            "live_s": cached + run.steps * run.batch_size * forward,
            "basis": f"{', '.join(specs)}: {1e3 * forward:.2f} ms a view measured, × {run.steps * run.batch_size:,} samples",
        }
    return comparison


def set_sizes(store: FeatureStore, keys: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return bytes, rows and codec of feature sets by key."""
    readers = {key: store.features(key) for key in keys.values()}
    return {key: {"bytes": reader.stored_bytes(), "rows": reader.rows, "codec": reader.codec} for key, reader in readers.items()}
