"""`extract-features`: teachers by name, a dataset by name, and at the end feature sets that any training run can read.

Plan, measure, compute. The plan is what the store lacks: statistics that were not frozen yet, shards that have no record. Statistics are
measured on a fixed sample of views and frozen first. Then each missing shard is one task. Everything that is finished is committed, so that
the same command goes on after a kill, and says in seconds when nothing is missing.
"""

import contextlib
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...storage.core.errors import BadInput, Interrupted
from ...storage.core.events import OnEvent, ignore_event
from ...storage.earlier_sets import EarlierSets
from ...storage.features.features import FeatureLayout, FeatureReader, features_identity
from ...storage.features.kept_forwards import discard, new_run
from ...storage.features.teacher_files import TeacherFile, note_teacher_file
from ...storage.images.versions import REMOVED
from ...storage.objects.dry_run_objects import DryRunObjects
from ...storage.objects.objects import Objects
from ...storage.store import FeatureStore
from ...storage.views.renderer_choice import choose_renderer
from ...storage.views.view_set import ViewSet
from ...teachers.registry.layers import stored_layers
from ...teachers.registry.licences import TermsByName, refuse_terms
from ...teachers.registry.native_size import size_warning
from ...teachers.registry.onnx_file import ONNX_FILE
from ...teachers.registry.resolve import resolve_teacher
from ...teachers.registry.spec import TeacherSpec
from ...teachers.registry.table import Terms
from ...teachers.runtime.device_resize import require_device_renderer
from ...teachers.runtime.devices import choose_device, choose_precision
from ..runs.licences import record_unlisted_terms, report_terms, terms_by_name, terms_field, terms_of_request
from ..runs.reading_leases import EXTRACTION, leases
from .dry_run import dry_summary
from .measure_statistics import Normalisation
from .options import ExtractOptions, TeacherRequest
from .other_weights import other_weights
from .pool import Workers, workers
from .summary import ShardReport, combined, progress, work_done
from .work_orders import WorkOrder, work_order, worker_count


@dataclass
class _Plan:
    """What there is and what is missing: shard → {teacher: key of its feature set}."""

    store: FeatureStore
    views: ViewSet
    specs: dict[str, TeacherSpec]
    readers: dict[str, FeatureReader]
    missing: dict[int, dict[str, str]]
    taken_over: int
    """Shards that an earlier version of the dataset gave."""

    @property
    def failed(self) -> dict[str, str]:
        """Images that failed in shards that are committed already, without those that were removed since."""
        failed, dataset = dict[str, str](), self.views.dataset
        for reader in self.readers.values():
            for shard in reader.group.committed():
                record = reader.group.record(shard)
                failed |= record.failed if record is not None else {}
        gone = {dataset.row(image).id for image in dataset.removed().tolist()} if failed else set()  # taken over, with the reason of then
        return {image_id: why for image_id, why in without_removed(failed).items() if image_id not in gone}


def extract_features(options: ExtractOptions, on_event: OnEvent = ignore_event) -> dict[str, Any]:
    """Make the store hold complete feature sets of the teachers over the views; returns a JSON-able summary.

    Raises `BadInput` for what the user must change, `CacheMismatch` for images or teachers that changed, and `Interrupted` when it was
    stopped with its state kept.
    """
    store = FeatureStore.open(options.store)
    if options.dry_run:
        store = FeatureStore(DryRunObjects(store.objects))
    dataset = store.dataset(options.data)
    specs = [resolve_request(request, options) for request in options.teachers]
    if len({spec.name for spec in specs}) != len(specs):
        raise BadInput(f"each teacher can be named once in an extraction, got {', '.join(spec.name for spec in specs)}")
    _ = [layout_of(spec, options) for spec in specs]  # refused before any work
    terms = extraction_terms(store.objects, options, specs)
    refuse_terms(options.require_licence, terms_by_name(terms))
    for text in filter(None, map(size_warning, specs)):
        on_event({"event": "warning", "text": text})
    renderer = choose_renderer(store.objects, dataset, options.views, options.images_per_shard, options.renderer, on_event)
    views = ViewSet.create(store.objects, dataset, options.views, options.images_per_shard, renderer)
    if options.resize == "device":
        require_device_renderer([views.renderer], on_event)
    if options.dry_run:
        return {
            **_dry_run(store, views, {spec.name: spec for spec in specs}, options, on_event),
            **options.result_fields(),
            **terms_field(terms_by_name(terms)),
        }
    record_unlisted_terms(store.objects, terms, specs, on_event)
    for spec in specs:
        if (teacher_file := _own_file(spec)) is not None:
            note_teacher_file(store.objects, spec.identity(), teacher_file)
    chosen = {spec.name: request.device for spec, request in zip(specs, options.teachers, strict=True) if request.device is not None}
    at_once = options.teachers_at_once or len(specs)
    groups = [{spec.name: spec for spec in specs[start : start + at_once]} for start in range(0, len(specs), at_once)]
    orders = [replace(work_order(store, views, group, options, chosen), layers=layers_of(group, options)) for group in groups]
    return {
        **combined([_extract_group(store, views, order, options, terms, on_event) for order in orders]),
        **options.result_fields(),
        **terms_field(terms_by_name(terms)),
    }


def _own_file(spec: TeacherSpec) -> TeacherFile | None:
    """Return where the file of a user's own teacher lies; None of any other teacher."""
    if spec.source is not None:
        weights = None if spec.weights_path == spec.source.path else spec.weights_path.absolute()
        return TeacherFile(spec.source.path, spec.source.function, weights)
    return TeacherFile(spec.weights_path, "", None) if spec.architecture["name"] == ONNX_FILE else None


def _extract_group(
    store: FeatureStore, views: ViewSet, order: WorkOrder, options: ExtractOptions, terms: Mapping[str, TermsByName], on_event: OnEvent
) -> dict[str, Any]:
    """Extract the teachers that are loaded at the same time, and return their summary; their terms are said before the first forward."""
    started, specs = time.perf_counter(), {spec.name: spec for spec in order.teachers}
    other = {"other_weights": others} if (others := other_weights(store, views, specs, on_event)) else {}
    normalisation = _normalisation(store, views, specs, options)
    if not normalisation.missing:
        plan = _plan(store, views, specs, normalisation, options, on_event)
        if not plan.missing:
            return {**_summary(plan, [], 0, 0, time.perf_counter() - started), **other, "statistics_views": {}}
    report_terms(terms_by_name({name: terms[name] for name in specs}), on_event)
    count, measured = worker_count(order, options), normalisation.missing
    kept = new_run() if measured and normalisation.whole else None
    try:
        with contextlib.ExitStack() as at_the_end, workers(replace(order, kept_run=kept), count, options.address, on_event) as pool:
            if kept is not None:
                at_the_end.callback(discard, kept)
            if normalisation.missing:
                normalisation.measure(pool, on_event)
                plan = _plan(store, views, specs, normalisation, options, on_event)
            computing = time.perf_counter()
            with leases(store, [reader.key for reader in plan.readers.values()], EXTRACTION, on_event):
                reports = list(_compute(pool, plan, options, on_event))
            spent = time.perf_counter() - computing
            summary = _summary(plan, reports, pool.retries, count or pool.most, spent)
            statistics = dict.fromkeys(measured, normalisation.sampled)
            return {**summary, **other, "statistics_views": statistics, "seconds": time.perf_counter() - started}
    except KeyboardInterrupt:
        raise Interrupted("stopped; every shard that was committed stays. Run the same command again to go on from there") from None


def _dry_run(
    store: FeatureStore, views: ViewSet, specs: dict[str, TeacherSpec], options: ExtractOptions, on_event: OnEvent
) -> dict[str, Any]:
    layouts = {name: layout_of(spec, options) for name, spec in specs.items()}
    other = {"other_weights": others} if (others := other_weights(store, views, specs, on_event)) else {}
    return other | dry_summary(store, views, layouts, _normalisation(store, views, specs, options))


def _normalisation(store: FeatureStore, views: ViewSet, specs: dict[str, TeacherSpec], options: ExtractOptions) -> Normalisation:
    borrowed = _borrowed(store, specs, options)
    return Normalisation(store, views, specs, options.statistics_batches, borrowed, options.normalisation, layers_of(specs, options))


def extraction_terms(objects: Objects, options: ExtractOptions, specs: Sequence[TeacherSpec]) -> dict[str, dict[str, Terms]]:
    """Return the terms of the weights of each teacher; raises `BadInput` for declarations of others."""
    return terms_of_request(objects, [(request.name, request.weights) for request in options.teachers], specs, options.terms)


def resolve_request(request: TeacherRequest, options: ExtractOptions) -> TeacherSpec:
    """Resolve the teacher that was asked for, on the device that this machine has."""
    if request.spec is not None:
        return request.spec
    return resolve_teacher(
        request.name,
        weights=request.weights,
        size_px=request.size_px,
        precision=choose_precision(options.precision, choose_device("auto").value).value,
        constants=options.constants,
        allow_random_weights=options.allow_random_weights,
    )


def layout_of(spec: TeacherSpec, options: ExtractOptions) -> FeatureLayout:
    """Return which of a teacher's tokens are stored, and how; raises `BadInput` naming the teacher whose grid does not allow it."""
    grid = options.grid or spec.grid
    try:
        resampled_from = None if grid == spec.grid else spec.grid
        in_image = options.tokens_per_view is not None and options.views.letterbox is not None
        layout = FeatureLayout(
            spec.cls_dim, spec.patch_dim, grid, options.codec, options.tokens_per_view, resampled_from, in_image=in_image
        )
    except BadInput as error:
        raise BadInput(f"teacher {spec.name}: {error}") from error
    return replace(layout, layers=stored_layers(spec, options.layers)) if options.layers else layout


def layers_of(specs: Mapping[str, TeacherSpec], options: ExtractOptions) -> dict[str, tuple[int, ...]]:
    """Return by teacher the intermediate layers that are stored, for those that have any; raises `BadInput` as `layout_of`."""
    by_teacher = {name: stored_layers(spec, options.layers) for name, spec in specs.items()} if options.layers else {}
    return {name: layers for name, layers in by_teacher.items() if layers}


def _borrowed(store: FeatureStore, specs: dict[str, TeacherSpec], options: ExtractOptions) -> list[str]:
    """Return the feature sets that give statistics to this group of teachers, when the teachers go in several."""
    if options.teachers_at_once is None:
        return list(options.statistics_from)
    weights = {spec.weights_sha256 for spec in specs.values()}
    return [key for key in options.statistics_from if store.features(key).identity["teacher"]["weights_sha256"] in weights]


def _plan(
    store: FeatureStore, views: ViewSet, specs: dict[str, TeacherSpec], normalisation: Normalisation, options: ExtractOptions,
    on_event: OnEvent,
) -> _Plan:  # fmt: skip
    readers = {}
    for name, spec in specs.items():
        known = normalisation.known[name]
        layout = layout_of(spec, options)
        identity = features_identity(spec.identity(), views, known, normalisation.sampling[name], layout)
        readers[name] = FeatureReader.create(store.objects, name, views, identity, known)
    return _planned(store, views, specs, readers, on_event)


def _planned(
    store: FeatureStore, views: ViewSet, specs: dict[str, TeacherSpec], readers: dict[str, FeatureReader], on_event: OnEvent
) -> _Plan:
    """Take over what earlier versions of the dataset have, and return the plan of what is missing then."""
    earlier, taken = EarlierSets.of(store, views, list(readers.values()), on_event), 0
    if views.dataset.earlier and not earlier.view_sets and _missing(readers):
        text = f"no earlier version of {views.dataset.name} has such views (their number, seed, images per shard, image library), so all "
        on_event({"event": "note", "text": f"{text}images are computed"})
    if earlier.view_sets and _missing(readers):
        with leases(store, [reader.key for reader in readers.values()], EXTRACTION, on_event):
            taken = earlier.take_over(list(readers.values()), on_event)
    return _Plan(store, views, specs, readers, _missing(readers), taken)


def complete(
    store: FeatureStore, views: ViewSet, specs: dict[str, TeacherSpec], readers: dict[str, FeatureReader], options: ExtractOptions,
    on_event: OnEvent,
) -> int:  # fmt: skip
    """Compute in this process what feature sets over one set of views lack; returns the shards. Raises as `extract_features` does."""
    plan = _planned(store, views, specs, readers, on_event)
    if not plan.missing:
        return 0
    try:
        lease = leases(store, [reader.key for reader in readers.values()], EXTRACTION, on_event)
        layers = {name: reader.layout.layers for name, reader in readers.items()}
        with workers(replace(work_order(store, views, specs, options, {}), layers=layers), 0, None) as pool, lease:
            return len(list(_compute(pool, plan, options, on_event)))
    except KeyboardInterrupt:
        raise Interrupted("stopped; every shard that was committed stays. Run the same command again to go on from there") from None


def _missing(readers: dict[str, FeatureReader]) -> dict[int, dict[str, str]]:
    missing: dict[int, dict[str, str]] = {}
    for name, reader in readers.items():
        for shard in reader.missing_shards():
            missing.setdefault(shard, {})[name] = reader.key
    return _shuffled(missing)


def _shuffled(missing: dict[int, dict[str, str]]) -> dict[int, dict[str, str]]:
    """Return the shards in a random order: two drivers that both went upwards would do the same shards, once one has caught up."""
    return {shard: missing[shard] for shard in random.SystemRandom().sample(sorted(missing), len(missing))}


def _compute(pool: Workers, plan: _Plan, options: ExtractOptions, on_event: OnEvent) -> Iterator[ShardReport]:
    """Do the missing shards; stops when more images failed than are allowed, with everything committed kept."""
    spans = [plan.views.group.shard_span(shard) for shard in plan.missing]
    total = plan.views.rows
    done = total - sum(last - first for first, last in spans)
    failed, started, fresh, written = plan.failed, time.perf_counter(), 0, 0
    for _, report in pool.run([("do_shard", (shard, keys)) for shard, keys in plan.missing.items()]):
        done, written = done + report.views, written + report.bytes
        fresh += report.computed
        failed |= without_removed(report.failed)
        event = progress(f"extract {', '.join(plan.specs)}", done, total, "views", started, fresh)
        rate = written / max(time.perf_counter() - started, 1e-9)
        rates = {"images_per_s": event["rate"] / plan.views.views_per_image, "bytes_per_s": rate}
        use = {} if report.gpu_use is None else {"gpu_use": report.gpu_use}
        on_event({**event, **rates, "failed": len(failed), "bytes": report.bytes, "retries": pool.retries, **use})
        _check_failures(failed, plan, options)
        yield report


def without_removed(failed: dict[str, str]) -> dict[str, str]:
    """Return the images that failed, without those that the user has removed: nobody expects tokens of them."""
    return {image_id: why for image_id, why in failed.items() if why != REMOVED}


def _check_failures(failed: dict[str, str], plan: _Plan, options: ExtractOptions) -> None:
    images = len(plan.views.dataset)
    if len(failed) > options.max_bad_share * images:
        named = "; ".join(f"{image_id}: {reason}" for image_id, reason in list(failed.items())[:5])
        raise BadInput(
            f"{len(failed)} of {images} images failed, more than the limit of {options.max_bad_share:.2%} ({named}"
            f"{'; …' if len(failed) > 5 else ''}); take these images out of the source and index it again with --allow-removed, or mend "
            "them and index it under another --name, or raise --max-bad-share. What was committed stays"
        )


def _summary(plan: _Plan, reports: list[ShardReport], retries: int, workers: int, seconds: float) -> dict[str, Any]:
    failed = plan.failed
    return {
        "event": "summary",
        "dry_run": False,
        "features": {name: reader.key for name, reader in plan.readers.items()},
        "views": plan.views.key,
        "images": len(plan.views.dataset),
        "images_failed": len(failed),
        "rows": plan.views.rows,
        "shards": plan.views.shards,
        "shards_missing": len(plan.missing) - len(reports),
        "failed": failed,
        "retries": retries,
        "seconds": seconds,
        "bytes": {name: reader.stored_bytes() for name, reader in plan.readers.items()},
        **({"shards_taken_over": plan.taken_over} if plan.views.dataset.earlier else {}),
        **work_done(reports, workers, seconds),
    }
