"""`train --on-miss compute`: the first student run fills the cache with what it lacks, and every later one reads it.

Whole shards are computed before the first step, by the extraction's own worker in this process: same identity, same records, so it makes
no difference to a store who filled it, and a kill costs one shard. Before and not between the steps, because one device would do both in
turns and take as long, and because images that fail must be known before the order of a run is. What is incomplete is completed over its
own views; what does not exist is begun with `extract-features`' defaults, over the views of the run's other sets where there are any or
as the recipe has them. In a mixture it is begun as the first dataset's set of that teacher was made: the same input, precision, layout,
statistics and distortions, or the two could not be mixed; over a dataset that grew, as over its earlier version. The teachers must be at
hand: by the sets' names, or named one for each set.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, cast

from ...storage.core.choices import Codec
from ...storage.core.errors import BadInput
from ...storage.core.events import OnEvent, ignore_event
from ...storage.features.features import FeatureReader
from ...storage.images.dataset import ImageDataset
from ...storage.store import FeatureStore
from ...storage.views.view_spec import ViewSpec
from ...teachers.registry.spec import TeacherSpec
from ..extraction.extract import complete, extract_features
from ..extraction.options import ExtractOptions, TeacherRequest
from ..repair.repair import teacher_of
from .data import features_over


def fill_missing(
    store: FeatureStore,
    features: Sequence[str],
    datasets: Sequence[str],
    *,
    teachers: Sequence[str] = (),
    views_per_image: int = 1,
    views: ViewSpec | None = None,
    allow_random_weights: bool = False,
    terms: Mapping[str, str] = MappingProxyType({}),
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
        options = ExtractOptions(store.url, data, (), spec, workers=0, allow_random_weights=allow_random_weights, terms=terms)
        computed[data] = _fill_dataset(store, requests, options, known, views, on_event)
    return {"computed_shards": computed}


def _fill_dataset(
    store: FeatureStore, requests: Mapping[str, TeacherRequest], options: ExtractOptions, known: dict[str, str], stated: ViewSpec | None,
    on_event: OnEvent,
) -> int:  # fmt: skip
    dataset = store.dataset(options.data)
    readers = {name: features_over(store, name, dataset) for name in requests}
    present = {name: reader for name, reader in readers.items() if reader is not None}
    count = _complete(store, present, requests, options, on_event)
    absent = {name: requests[name] for name in readers if name not in present}
    models = {name: store.features(known[name]) for name in absent if name in known}
    older = {name: reader for name in absent if (reader := _of_earlier_version(store, name, dataset, stated)) is not None}
    models |= older
    if views := next((reader.views for reader in present.values()), None):
        options = replace(options, views=views.spec, images_per_shard=views.images_per_shard, renderer=views.renderer.name)
    elif older:  # as it was, so that only what is new is computed
        views = next(iter(older.values())).views
        options = replace(options, views=views.spec, images_per_shard=views.images_per_shard, renderer=views.renderer.name)
    elif models:
        spec = next(iter(models.values())).views.spec
        options = replace(options, views=replace(spec, views_per_image=options.views.views_per_image))
    made_keys: dict[str, str] = {}
    for group_options, names in _by_layout(absent, models, options):
        teachers = tuple(_as_made(absent[name], models.get(name)) for name in names)
        borrowed = tuple(older[name].key if name in older else known[name] for name in names if name in older or name in known)
        declared = {name: text for name, text in options.terms.items() if name in {*names, *(teacher.name for teacher in teachers)}}
        request = replace(group_options, teachers=teachers, statistics_from=borrowed, terms=declared)
        summary = extract_features(request, on_event)
        count, made_keys = count + summary["shards"] * len(teachers), made_keys | summary["features"]
    for name in requests:
        reader = features_over(store, name, dataset)
        if reader is None:
            raise BadInput(f"--features {name}: the set of {requests[name].name} has its teacher's name, {', '.join(made_keys)}")
        known.setdefault(name, reader.key)
    return count


def _of_earlier_version(store: FeatureStore, name: str, dataset: ImageDataset, stated: ViewSpec | None) -> FeatureReader | None:
    """Return the feature set of that name over the newest earlier version of a dataset that has one, if its views are the stated ones.

    Their number, seed and pixels may be any. Raises `BadInput` for several sets.
    """
    for version in reversed(dataset.earlier):
        key = store.key_of("datasets", version.digest)
        reader = None if key is None else features_over(store, name, store.dataset(key))
        if reader is not None:
            spec = reader.views.spec
            if stated is not None:
                stated = replace(stated, views_per_image=spec.views_per_image, seed=spec.seed, pixels=spec.pixels)
            return reader if stated in (None, spec) else None
    return None


def _as_made(request: TeacherRequest, model: FeatureReader | None) -> TeacherRequest:
    """Return the teacher of another dataset's feature set, to be built as it was there."""
    return request if model is None else replace(request, spec=teacher_of(model, request))


def _by_layout(
    absent: Mapping[str, TeacherRequest], models: Mapping[str, FeatureReader], options: ExtractOptions
) -> list[tuple[ExtractOptions, list[str]]]:
    """Return the options of each extraction that is needed, and the sets that it begins: those of one layout together."""
    groups: list[tuple[ExtractOptions, list[str]]] = []
    for name in absent:
        layout = models[name].layout if name in models else None
        grid = None if layout is None or layout.resampled_from is None else layout.grid
        group_options = options
        if layout is not None:
            group_options = replace(
                options, codec=cast(Codec, layout.codec), tokens_per_view=layout.tokens_per_view, grid=grid, layers=layout.layers
            )
        group = next((names for known_options, names in groups if known_options == group_options), None)
        if group is None:
            groups.append((group_options, [name]))
        else:
            group.append(name)
    return groups


def _complete(
    store: FeatureStore, present: Mapping[str, FeatureReader], requests: Mapping[str, TeacherRequest], options: ExtractOptions,
    on_event: OnEvent,
) -> int:  # fmt: skip
    """Fill the gaps of sets that exist; those over one set of views together, so that each image is decoded once."""
    by_views: dict[str, dict[str, FeatureReader]] = {}
    specs: dict[str, TeacherSpec] = {}
    for name, reader in present.items():
        if reader.missing_shards():
            specs[reader.name] = teacher_of(reader, requests[name])
            by_views.setdefault(reader.views.key, {})[reader.name] = reader
    return sum(
        complete(store, next(iter(readers.values())).views, {name: specs[name] for name in readers}, readers, options, on_event)
        for readers in by_views.values()
    )
