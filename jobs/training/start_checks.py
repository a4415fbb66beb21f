"""The checks of a training run before its first step, beside the identities: does this machine decode what the teachers saw?

A sample of recorded views is decoded and compared with the pixel digests in the store, which finds another image library or edited files
within a second instead of somewhere in the first epoch; the stream goes on comparing every crop that it cuts. Teachers that run live
compute the canary images and are compared with the record that the extraction left. Before all of that stand the terms under which the
teachers' weights are: of each set, through a proxy, and of what a student starts from.
"""

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from ...storage.core.choices import ResizeOn
from ...storage.core.errors import BadInput, EupeError
from ...storage.core.events import OnEvent
from ...storage.features.features import FeatureReader
from ...storage.images.dataset import ImageDataset
from ...storage.store import FeatureStore
from ...storage.views.input_size import SizePx, as_size, size_hw, size_text
from ...storage.views.pixels import fill_pixels
from ...storage.views.view_set import ViewSet
from ...storage.views.view_spec import ViewSpec
from ...student.data.sized import cached_sizes
from ...student.data.targets import LiveTargets, TargetSource
from ...student.model.recipe import TrainRecipe
from ...teachers.registry.licences import TermsByName, merged, refuse_stray, refuse_terms, terms_from_record, with_declared
from ...teachers.registry.table import Terms, terms_of
from ...teachers.registry.teacher import Teacher
from ...teachers.runtime.device_resize import require_device_renderer, require_same_bytes
from ..extraction.canaries import check_canary
from ..extraction.measure_statistics import sample_rows
from ..runs.licences import report_terms, terms_by_name, terms_of_set, terms_of_start, terms_of_teacher
from ..runs.run_source import local_run
from .data import Part, features_over, sets_over
from .options import TrainOptions
from .versions import recorded_versions, run_record

SAMPLED_VIEWS = 32


def check_pixels(views: ViewSet, count: int = SAMPLED_VIEWS) -> int:
    """Compare `count` committed views with their pixel digests; returns how many there were. Raises `CacheMismatch`, `BadImage`.

    Views that store their pixels are left alone: those carry hashes of their own, and the images may be gone.
    """
    checked = 0
    if views.spec.pixels is not None:
        return checked
    for row in sample_rows(views.rows, count).tolist():
        image, _ = divmod(row, views.views_per_image)
        image_id, shard = views.dataset.row(image).id, image // views.images_per_shard
        if views.read_shard(shard) is None or image_id in views.failed_images(shard):
            continue
        fill_pixels(views, np.array([row]), views.read(np.array([row])), [])
        checked += 1
    return checked


def check_teachers(store: FeatureStore, teachers: Iterable[Teacher]) -> None:
    """Compare each loaded teacher with its canary in the store; raises `CacheMismatch`."""
    for teacher in teachers:
        check_canary(store, teacher)


def check_start(store: FeatureStore, parts: Sequence[Part], source: TargetSource) -> None:
    """Check a sample of each dataset's pixels, and the canaries of live teachers; raises `CacheMismatch`."""
    for part in parts:
        check_pixels(part.views)
    if isinstance(source, LiveTargets):
        check_teachers(store, source.teachers.values())


def check_resize(resize: ResizeOn, parts: Iterable[Part], device: str, on_event: OnEvent) -> None:
    """Refuse views that the device is to resize and cannot, to the bytes that are recorded; raises `BadInput`, `CacheMismatch`."""
    if resize == "device":
        require_device_renderer([part.views.renderer for part in parts], on_event)
        require_same_bytes(torch.device(device))


def refuse_followed_angle(recipe: TrainRecipe, *, complete: bool) -> None:
    """Raise `BadInput` for angles that are balanced by the spread of tokens which are still being extracted."""
    if recipe.loss.cls == "angle" and not complete:
        raise BadInput(
            "loss.cls = 'angle' measures how far each teacher's class tokens spread, over whole feature sets, and --follow trains while "
            "they are made; train when the extraction has ended, or leave loss.cls at 'cosine'"
        )


def refuse_other_aspects(recipe: TrainRecipe, views: ViewSpec, readers: Mapping[str, FeatureReader]) -> None:
    """Raise `BadInput` for letterboxed views whose student and teachers take inputs of several aspect ratios.

    The image would lie at another place in each, and no token of one would see what a token of the other sees.
    """
    if views.letterbox is None:
        return
    sizes = {f"the student at {size_text(size)}": size for size in recipe.student.sizes_px}
    sizes |= {
        f"{name} at {size_text(size)}": size for name, reader in readers.items() for size in recipe.teacher.sizes_px or (reader.input_px,)
    }
    if len({Fraction(*size_hw(size)) for size in sizes.values()}) > 1:
        raise BadInput(
            f"letterboxed views need one aspect ratio for the student and all teachers, since padding lies elsewhere in another, got "
            f"{', '.join(f'{who} px' for who in sizes)}; choose student.sizes_px so, or extract at that ratio with --teacher-size, or take "
            "--view-kind whole, which stretches"
        )


def target_grids(recipe: TrainRecipe, part: Part) -> dict[str, list[tuple[int, int]]]:
    """Return the grids that each teacher's targets may have: the stored ones, or those of a live teacher at each of its sizes."""
    if recipe.teacher.source == "cached":
        sizes = list(part.by_size.values()) or [part.readers]
        return {name: [readers[name].grid for readers in sizes] for name in part.readers}
    return {name: _live_grids(reader.identity["teacher"], recipe.teacher.sizes_px) for name, reader in part.readers.items()}


def _live_grids(teacher: Mapping[str, Any], sizes_px: Sequence[SizePx]) -> list[tuple[int, int]]:
    (rows, columns), own = teacher["grid"], as_size(teacher["preprocessing"]["size_px"])
    own_height, own_width = size_hw(own)
    return [(rows * height // own_height, columns * width // own_width) for height, width in map(size_hw, sizes_px or (own,))]


def report_training_terms(options: TrainOptions, starts: Iterable[str], on_event: OnEvent) -> None:
    """Report the terms that bind a run, before it opens anything else; raises `BadInput` where they do not allow what they have to.

    What cannot be opened is not said here: the run itself says what is wrong. Sets that are still to be made count by their teachers.
    """
    try:
        store = options.open_store()
        versions = recorded_versions(options, store, options.out)
        datasets = [store.dataset(versions.get(name, name)) for name in options.datasets]
        sets = {name: [_sets_over(options, store, name, dataset) for dataset in datasets] for name in options.features}
    except EupeError:
        return
    readers = [reader for several in sets.values() for of_dataset in several for reader in of_dataset]
    absent = [name for name, several in sets.items() if not any(several)]
    terms, used = training_terms(options, readers, starts, _terms_of_absent(options, absent))
    refuse_stray(options.terms, used, terms)
    refuse_terms(options.require_licence, terms)
    report_terms(terms, on_event)


def _sets_over(options: TrainOptions, store: FeatureStore, name: str, dataset: ImageDataset) -> list[FeatureReader]:
    if cached_sizes(options.recipe):
        return sets_over(store, name, dataset)
    reader = features_over(store, name, dataset)  # raises for several
    return [] if reader is None else [reader]


def _terms_of_absent(options: TrainOptions, absent: Iterable[str]) -> dict[str, Terms]:
    """Return the terms of sets that do not exist yet: of the teachers that `on_miss` will compute them with, or by their names."""
    request_of = dict(zip(options.features, options.teachers, strict=False)) if options.on_miss == "compute" else {}
    by_set: dict[str, dict[str, Terms]] = {}
    for feature in absent:
        name = feature.partition("@")[0]
        terms = terms_of_teacher(request_of[feature]) if feature in request_of else {name: terms_of(name)}
        by_set[name] = {name if above == request_of.get(feature) else above: row for above, row in terms.items()}
    return terms_by_name(by_set)


def training_terms(
    options: TrainOptions, readers: Iterable[FeatureReader], starts: Iterable[str], absent: TermsByName = MappingProxyType({})
) -> tuple[dict[str, Terms], set[str]]:
    """Return the terms that bind a student, of its teachers and of what it starts from, and which of `options.terms` were used.

    What is unknown is as the run has recorded it, where it goes on.
    """
    readers, starts = list(readers), list(starts)

    def composed(live: Sequence[Path]) -> dict[str, Terms]:
        proxy = live[0] if live and options.proxy is not None else None
        of_sets = [terms_of_set(reader, live) for reader in readers]
        return merged(*of_sets, *(terms_of_start(start, proxy) for start in starts), absent)

    terms, recorded = composed([]), _recorded_terms(options)
    if options.live_teachers and any(row.non_commercial is None for row in terms.values()):  # a proxy at a URL is large
        terms = composed([local_run(run) for run in options.live_teachers])
    known = {name: recorded[name] if row.non_commercial is None and name in recorded else row for name, row in terms.items()}
    return with_declared(known, options.terms)


def _recorded_terms(options: TrainOptions) -> dict[str, Terms]:
    """Return what the runs that go on here have recorded when they began; {} for new ones."""
    folders = options.students if len(options.students) > 1 else ("",)
    return merged(*(terms_from_record(run_record(options.out, folder, "recipe.json").get("terms", {})) for folder in folders))
