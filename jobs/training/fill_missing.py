"""`train --on-miss compute`: the first student run fills the cache with what it lacks, and every later one reads it.

Whole shards are computed before the first step, by the extraction's own worker in this process: same identity, same records, so it makes
no difference to a store who filled it, and a kill costs one shard. Before and not between the steps, because one device would do both in
turns and take as long, and because images that fail must be known before the order of a run is. What is incomplete is completed over its
own views; what does not exist is begun with `extract-features`' defaults, over the views of the run's other sets where there are any or
as the recipe has them. In a mixture it is begun as the first dataset's set of that teacher was made: the same input, precision, layout,
statistics and distortions, or the two could not be mixed. The teachers must be at hand: by the sets' names, or named one for each set.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from ...storage.core.choices import Codec
from ...storage.core.errors import BadInput
from ...storage.core.events import OnEvent, ignore_event
from ...storage.features.features import FeatureReader
from ...storage.store import FeatureStore
from ...storage.views.view_spec import ViewSpec
from ...teachers.registry.spec import TeacherSpec
from ..extraction.extract import complete, extract_features
from ..extraction.options import ExtractOptions, TeacherRequest
from ..repair.repair import teacher_of
from .data import over


def fill_missing(
    store: FeatureStore,
    features: Sequence[str],
    datasets: Sequence[str],
    *,
    teachers: Sequence[str] = (),
    views_per_image: int = 1,
    views: ViewSpec | None = None,
    allow_random_weights: bool = False,
    on_event: OnEvent = ignore_event,
) -> dict[str, Any]:
    """Make the store hold complete feature sets over each dataset; returns how many shards were computed, by dataset.

    Raises `BadInput` and `CacheMismatch` for teachers that are not there or not those of the sets, `Interrupted` when it was stopped.
    """
    if teachers and len(teachers) != len(features):
        raise BadInput(f"{len(features)} --features need {len(features)} --teacher in the same order, got {len(teachers)}")
    requests = dict(zip(features, map(TeacherRequest, teachers or [name.partition("@")[0] for name in features]), strict=True))
    computed: dict[str, int] = {}
    known: dict[str, str] = {}  # feature set by name, of the first dataset: whose statistics the others take over
    for data in datasets:
        spec = replace(views or ViewSpec(), views_per_image=views_per_image)
        options = ExtractOptions(store.url, data, (), spec, workers=0, allow_random_weights=allow_random_weights)
        computed[data] = _fill_dataset(store, requests, options, known, on_event)
    return {"computed_shards": computed}


def _fill_dataset(
    store: FeatureStore, requests: Mapping[str, TeacherRequest], options: ExtractOptions, known: dict[str, str], on_event: OnEvent
) -> int:
    dataset = store.dataset(options.data)
    found = {wanted: over(store, wanted, dataset) for wanted in requests}
    present = {wanted: reader for wanted, reader in found.items() if reader is not None}
    count = _complete(store, present, requests, options, on_event)
    absent = {wanted: requests[wanted] for wanted in found if wanted not in present}
    alike = {wanted: store.features(known[wanted]) for wanted in absent if wanted in known}
    if views := next((reader.views for reader in present.values()), None):
        options = replace(options, views=views.spec, images_per_shard=views.images_per_shard)
    elif alike:
        spec = next(iter(alike.values())).views.spec
        options = replace(options, views=replace(spec, views_per_image=options.views.views_per_image))
    made: dict[str, str] = {}
    for begun, wanted_together in _by_layout(absent, alike, options):
        teachers = tuple(_as_made(absent[wanted], alike.get(wanted)) for wanted in wanted_together)
        borrowed = tuple(known[wanted] for wanted in wanted_together if wanted in known)
        summary = extract_features(replace(begun, teachers=teachers, statistics_from=borrowed), on_event)
        count, made = count + summary["shards"] * len(teachers), made | summary["features"]
    for wanted in requests:
        reader = over(store, wanted, dataset)
        if reader is None:
            raise BadInput(f"--features {wanted}: the set of {requests[wanted].name} has its teacher's name, {', '.join(made)}")
        known.setdefault(wanted, reader.key)
    return count


def _as_made(request: TeacherRequest, alike: FeatureReader | None) -> TeacherRequest:
    """The teacher of another dataset's feature set, built as it was there."""
    return request if alike is None else replace(request, spec=teacher_of(alike, request))


def _by_layout(
    absent: Mapping[str, TeacherRequest], alike: Mapping[str, FeatureReader], options: ExtractOptions
) -> list[tuple[ExtractOptions, list[str]]]:
    """The options of each extraction that is needed, and the sets that it begins: those of one layout together."""
    groups: list[tuple[ExtractOptions, list[str]]] = []
    for wanted in absent:
        layout = alike[wanted].layout if wanted in alike else None
        grid = None if layout is None or layout.resampled_from is None else layout.grid
        own = options
        if layout is not None:
            own = replace(options, codec=cast(Codec, layout.codec), tokens_per_view=layout.tokens_per_view, grid=grid)
        group = next((names for begun, names in groups if begun == own), None)
        if group is None:
            groups.append((own, [wanted]))
        else:
            group.append(wanted)
    return groups


def _complete(
    store: FeatureStore, present: Mapping[str, FeatureReader], requests: Mapping[str, TeacherRequest], options: ExtractOptions,
    on_event: OnEvent,
) -> int:  # fmt: skip
    """Fill the gaps of sets that exist; those over one set of views together, so that each image is decoded once."""
    by_views: dict[str, dict[str, FeatureReader]] = {}
    specs: dict[str, TeacherSpec] = {}
    for wanted, reader in present.items():
        if reader.missing_shards():
            specs[reader.name] = teacher_of(reader, requests[wanted])
            by_views.setdefault(reader.views.key, {})[reader.name] = reader
    return sum(
        complete(store, next(iter(readers.values())).views, {name: specs[name] for name in readers}, readers, options, on_event)
        for readers in by_views.values()
    )
