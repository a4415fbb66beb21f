"""`extract-features`: teachers by name, a dataset by name, and at the end feature sets that any training run can read.

Plan, measure, compute. The plan is what the store lacks: statistics that were not frozen yet, shards that have no record. Statistics are
measured on a fixed sample of views and frozen first. Then each missing shard is one task. Everything that is finished is committed, so that
the same command goes on after a kill, and says in seconds when nothing is missing.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..storage.errors import BadInput, Interrupted
from ..storage.features import FeatureLayout, FeatureReader, features_identity
from ..storage.statistics import Moments, Statistics
from ..storage.store import FeatureStore
from ..storage.views import ViewSpec
from ..storage.viewset import DEFAULT_IMAGES_PER_SHARD, ViewSet
from ..student.devices import choose_device, choose_precision
from ..teachers.registry import resolve_teacher
from ..teachers.spec import TeacherSpec
from .pool import Workers, workers
from .shard_work import SampleMoments, ShardReport, WorkOrder

Event = dict[str, Any]
OnEvent = Callable[[Event], None]
_SAMPLE_SEED = 0x5EED


@dataclass(frozen=True)
class TeacherRequest:
    """A teacher as the user asked for it: a name or a run's folder, and what overrides its own facts."""

    name: str
    weights: Any = None  # Path or None
    size_px: int | None = None


@dataclass(frozen=True)
class ExtractOptions:
    """What to extract and how; the defaults are ours."""

    data: str
    teachers: tuple[TeacherRequest, ...]
    views: ViewSpec = field(default_factory=ViewSpec)
    images_per_shard: int = DEFAULT_IMAGES_PER_SHARD
    codec: str = "int8"
    precision: str = "fp32"  # or "bf16", or "auto": bf16 where the device has it
    statistics_batches: int = 500  # of batch_size views; the paper measures over 500 iterations
    batch_size: int = 32
    workers: int | None = None  # None: one a GPU, or one a core; 0: in this process
    address: str | None = None  # of a Ray cluster
    max_bad_share: float = 0.001
    dry_run: bool = False


@dataclass
class _Plan:
    """What there is and what is missing: shard → {teacher: key of its feature set}."""

    store: FeatureStore
    views: ViewSet
    specs: dict[str, TeacherSpec]
    readers: dict[str, FeatureReader]
    missing: dict[int, dict[str, str]]

    @property
    def failed(self) -> dict[str, str]:
        """Images that failed in shards that are committed already."""
        found: dict[str, str] = {}
        for reader in self.readers.values():
            for shard in reader.group.committed():
                record = reader.group.record(shard)
                found |= record.failed if record is not None else {}
        return found


def extract_features(store_url: str, options: ExtractOptions, on_event: OnEvent = lambda event: None) -> dict[str, Any]:
    """Make the store hold complete feature sets of the teachers over the views; returns a JSON-able summary.

    Raises `BadInput` for what the user must change, `CacheMismatch` for images that changed since they were indexed, and `Interrupted`
    when it was stopped with its state kept.
    """
    started = time.perf_counter()
    store = FeatureStore.open(store_url)
    dataset = store.dataset(options.data)
    specs = {spec.name: spec for spec in (_resolve(request, options) for request in options.teachers)}
    if len(specs) != len(options.teachers):
        raise BadInput("each teacher can be named once in an extraction")
    views = ViewSet.create(store.objects, dataset, options.views, options.images_per_shard)
    order = _work_order(store, views, specs, options)
    statistics = {name: store.kept_statistics(name, _measured_on(spec, views, options)) for name, spec in specs.items()}
    unmeasured = [name for name, found in statistics.items() if found is None]
    if not unmeasured:
        plan = _plan(store, views, specs, statistics, options)
        if not plan.missing or options.dry_run:
            return _summary(plan, [], 0, time.perf_counter() - started, options)
    elif options.dry_run:
        return _dry_summary(views, specs, unmeasured, options)
    try:
        with workers(order, _worker_count(order, options), options.address) as crew:
            _measure(crew, store, views, specs, statistics, options, on_event)
            plan = _plan(store, views, specs, statistics, options)
            reports = list(_compute(crew, plan, options, on_event))
            return _summary(plan, reports, crew.retries, time.perf_counter() - started, options)
    except KeyboardInterrupt:
        raise Interrupted("stopped; every shard that was committed stays. Run the same command again to go on from there") from None


def _resolve(request: TeacherRequest, options: ExtractOptions) -> TeacherSpec:
    precision = choose_precision(options.precision, choose_device("auto").value).value
    return resolve_teacher(request.name, weights=request.weights, size_px=request.size_px, precision=precision)


def _work_order(store: FeatureStore, views: ViewSet, specs: dict[str, TeacherSpec], options: ExtractOptions) -> WorkOrder:
    import torch

    if options.batch_size < 1 or options.statistics_batches < 1:
        raise BadInput(f"batch size and statistics batches must be at least 1, got {options.batch_size}, {options.statistics_batches}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    threads = torch.get_num_threads() if options.workers == 0 else 1
    return WorkOrder(store.url, views.key, tuple(specs.values()), device, threads, options.batch_size)


def _worker_count(order: WorkOrder, options: ExtractOptions) -> int:
    """One worker a GPU; on CPUs one a core, because single-threaded teachers side by side beat threads inside one."""
    if options.workers is not None:
        return options.workers
    import torch

    return torch.cuda.device_count() if order.device == "cuda" else torch.get_num_threads()


def _measured_on(spec: TeacherSpec, views: ViewSet, options: ExtractOptions) -> dict[str, Any]:
    sample = {"batches": options.statistics_batches, "batch_size": options.batch_size, "seed": _SAMPLE_SEED}
    return {"teacher": spec.identity(), "views": views.digest, "sample": sample}


def sample_rows(rows: int, count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """`count` views for the statistics, ascending; all of them, once, when there are no more than that."""
    if count >= rows:
        return np.arange(rows)
    raw = np.asarray(np.random.Philox(key=_SAMPLE_SEED).random_raw(count), np.uint64)
    return np.sort((raw % np.uint64(rows)).astype(np.int64))


def _measure(
    crew: Workers,
    store: FeatureStore,
    views: ViewSet,
    specs: dict[str, TeacherSpec],
    statistics: dict[str, Statistics | None],
    options: ExtractOptions,
    on_event: OnEvent,
) -> None:
    """Fill in the statistics that are missing, each frozen in the store as soon as it is known."""
    names = [name for name, found in statistics.items() if found is None]
    if not names:
        return
    rows = sample_rows(views.rows, options.statistics_batches * options.batch_size)
    batches = [rows[start : start + options.batch_size].tolist() for start in range(0, len(rows), options.batch_size)]
    results: list[SampleMoments] = [SampleMoments(0, {})] * len(batches)
    started = time.perf_counter()
    for done, (number, result) in enumerate(crew.run([("measure", (batch, names)) for batch in batches]), start=1):
        results[number] = result
        on_event(_progress("statistics", done, len(batches), "batches", started, done))
    for name in names:
        measured = _merged(results, name)
        statistics[name] = store.keep_statistics(name, _measured_on(specs[name], views, options), measured)


def _merged(results: Sequence[SampleMoments], name: str) -> Statistics:
    """Merge in the order of the batches, so that which worker did which does not change a bit of the result."""
    parts = [result.moments[name] for result in results if name in result.moments]
    if not parts:
        raise BadInput("none of the sampled images can be decoded; look at the source, then index it again")
    patch = Moments(parts[0][1].dim)
    cls = None if parts[0][0] is None else Moments(parts[0][0].dim)
    for cls_part, patch_part in parts:
        patch.merge(patch_part)
        if cls is not None and cls_part is not None:
            cls.merge(cls_part)
    return Statistics.from_moments(cls, patch, sum(result.views for result in results))


def _plan(
    store: FeatureStore,
    views: ViewSet,
    specs: dict[str, TeacherSpec],
    statistics: dict[str, Statistics | None],
    options: ExtractOptions,
) -> _Plan:
    readers = {}
    for name, spec in specs.items():
        known = statistics[name]
        assert known is not None
        layout = FeatureLayout(spec.cls_dim, spec.patch_dim, spec.grid, options.codec)
        sampling = _measured_on(spec, views, options)["sample"]
        identity = features_identity(spec.identity(), views, known, sampling, layout)
        readers[name] = FeatureReader.create(store.objects, name, views, identity, known)
    missing: dict[int, dict[str, str]] = {}
    for name, reader in readers.items():
        for shard in reader.missing_shards():
            missing.setdefault(shard, {})[name] = reader.key
    return _Plan(store, views, specs, readers, dict(sorted(missing.items())))


def _compute(crew: Workers, plan: _Plan, options: ExtractOptions, on_event: OnEvent) -> Iterator[ShardReport]:
    """Do the missing shards; stops when more images failed than are allowed, with everything committed kept."""
    spans = [plan.views.group.shard_span(shard) for shard in plan.missing]
    total = plan.views.rows
    done = total - sum(last - first for first, last in spans)
    failed, started, fresh = plan.failed, time.perf_counter(), 0
    for _, report in crew.run([("do_shard", (shard, keys)) for shard, keys in plan.missing.items()]):
        done, fresh = done + report.views, fresh + report.views
        failed |= report.failed
        event = _progress(f"extract {', '.join(plan.specs)}", done, total, "views", started, fresh)
        on_event({**event, "failed": len(failed), "bytes": report.bytes, "retries": crew.retries})
        _check_failures(failed, plan, options)
        yield report


def _check_failures(failed: dict[str, str], plan: _Plan, options: ExtractOptions) -> None:
    images = len(plan.views.dataset)
    if len(failed) > options.max_bad_share * images:
        named = "; ".join(f"{image_id}: {reason}" for image_id, reason in list(failed.items())[:5])
        raise BadInput(
            f"{len(failed)} of {images} images failed, more than the limit of {options.max_bad_share:.2%} ({named}"
            f"{'; …' if len(failed) > 5 else ''}); mend the source and index it again, or raise --max-bad-share. What was committed stays"
        )


def _progress(stage: str, done: int, total: int, unit: str, started: float, fresh: int) -> Event:
    seconds = max(time.perf_counter() - started, 1e-9)
    rate = fresh / seconds
    left = (total - done) / rate if rate else None
    return {"event": "progress", "stage": stage, "done": done, "total": total, "unit": unit, "rate": rate, "seconds_left": left}


def _summary(plan: _Plan, reports: list[ShardReport], retries: int, seconds: float, options: ExtractOptions) -> dict[str, Any]:
    phases = {phase for report in reports for phase in report.seconds}
    views_done = sum(report.views for report in reports)
    return {
        "event": "summary",
        "dry_run": options.dry_run,
        "features": {name: reader.key for name, reader in plan.readers.items()},
        "views": plan.views.key,
        "rows": plan.views.rows,
        "shards": plan.views.shards,
        "shards_missing": len(plan.missing) - len(reports),
        "views_done": views_done,
        "failed": plan.failed,
        "retries": retries,
        "seconds": seconds,
        "views_per_second": views_done / seconds if views_done else None,
        "bytes_committed": sum(report.bytes for report in reports),
        "bytes": {name: reader.stored_bytes() for name, reader in plan.readers.items()},
        "worker_seconds": {phase: sum(report.seconds.get(phase, 0.0) for report in reports) for phase in sorted(phases)},
    }


def _dry_summary(views: ViewSet, specs: dict[str, TeacherSpec], unmeasured: list[str], options: ExtractOptions) -> dict[str, Any]:
    """What a run would do, before any statistics exist: sizes follow from the shapes."""
    sizes = {}
    for name, spec in specs.items():
        layout = FeatureLayout(spec.cls_dim, spec.patch_dim, spec.grid, options.codec)
        sizes[name] = views.rows * sum(array.row_bytes for array in layout.specs(views))
    return {
        "event": "summary",
        "dry_run": True,
        "views": views.key,
        "rows": views.rows,
        "shards": views.shards,
        "shards_missing": views.shards,
        "statistics_missing": unmeasured,
        "bytes_expected": sizes,
    }
