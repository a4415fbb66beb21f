"""`plan`: what an extraction would cost here and at the paper's scale, from a few measured batches, before anything is spent.

Measured on this machine: each teacher's forward (batch size found or given), the student's forward and backward, and how fast the store
reads back a probe that is written and removed; of a store that cannot be written, something that lies in it. What is local is dropped
from the page cache first, where the system lets us. The store gets nothing else: no views, no statistics.
"""

import contextlib
import os
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...storage.core.errors import BadInput, StoreUnavailable
from ...storage.core.events import OnEvent, ignore_event
from ...storage.earlier_sets import EarlierSets
from ...storage.objects.dry_run_objects import DryRunObjects
from ...storage.objects.objects import walk_keys
from ...storage.objects.probes import probe
from ...storage.store import FeatureStore
from ...storage.views.input_size import SizePx, area_px, size_hw, size_text
from ...storage.views.renderer_choice import choose_renderer
from ...storage.views.view_set import ViewSet
from ...student.model.recipe import TrainRecipe
from ...teachers.encoders.build import build_encoder
from ...teachers.registry.licences import refuse_terms
from ...teachers.registry.native_size import size_warning
from ...teachers.registry.resolve import load_teacher
from ...teachers.registry.spec import TeacherSpec
from ...teachers.runtime.devices import choose_device
from ..extraction.batch_size import SizedTeacher
from ..extraction.dry_run import dry_summary, rows_of_shard
from ..extraction.extract import extraction_terms, layout_of, resolve_request
from ..extraction.measure_statistics import Normalisation
from ..extraction.options import ExtractOptions
from ..runs.licences import report_terms, terms_by_name, terms_field
from .cost_model import PAPER_IMAGES, Measured, Prices, break_even, extraction_cost, reading_need
from .several_sizes import at_each_size, several_sizes

_PROBE_BYTES, _READ_BYTES = 64 << 20, 4 << 20
_STUDENT_BATCH = {"cpu": 4, "cuda": 128}
_LOOKED_AT = 64  # objects, to find a large one


@dataclass(frozen=True)
class PlanOptions:
    """The extraction whose cost is asked for, and what it is for."""

    extraction: ExtractOptions
    student: str | Mapping[str, Any] = "eupe_vitt16"
    """Architecture that will be trained: a name, or a mapping of a name and the options to change."""
    student_size_px: SizePx = 256
    student_images_per_s: float | None = None
    """None: measured here."""
    epochs_of_a_run: float = 100.0
    batches: int = 3
    """Of each measurement."""
    prices: Prices = field(default_factory=Prices)
    stage3: TrainRecipe | None = None
    """Recipe of a stage 3 whose targets are asked for both ways: from feature sets of each drawn size, and beside the live proxy."""

    def __post_init__(self) -> None:
        values = {"epochs of a run": self.epochs_of_a_run, "batches": self.batches, "the student's rate": self.student_images_per_s}
        bad = [f"{what} {value}" for what, value in values.items() if value is not None and not value > 0]
        if bad:
            raise BadInput(f"these must be above 0: {', '.join(bad)}")


def plan_extraction(plan: PlanOptions, on_event: OnEvent = ignore_event) -> dict[str, Any]:
    """Return a JSON-able plan of `extract_features` with the plan's options; raises `BadInput` as that would."""
    options = plan.extraction
    store = FeatureStore.open(options.store)
    images = len(store.dataset(options.data))
    specs = {spec.name: spec for spec in (resolve_request(request, options) for request in options.teachers)}
    terms = terms_by_name(extraction_terms(store.objects, options, list(specs.values())))
    refuse_terms(options.require_licence, terms)
    report_terms(terms, on_event)
    device = choose_device("auto")
    layouts = {name: layout_of(spec, options) for name, spec in specs.items()}  # what cannot be stored is refused before any measurement
    sized = {} if plan.stage3 is None else at_each_size(plan.stage3, specs, options)
    speeds = {
        name: teacher_speed(spec, device.value, options.batch_size, plan.batches, layouts[name].layers) for name, spec in specs.items()
    }
    pixels = options.views.pixels  # read and stored like one more teacher's tokens, at no device time
    stored = {} if pixels is None else {f"pixels at {size_text(pixels.size_px)} px": 3 * area_px(pixels.size_px)}
    measured = Measured(
        {name: layout.view_bytes for name, layout in layouts.items()} | stored,
        {name: seconds for name, (seconds, _) in speeds.items()} | dict.fromkeys(stored, 0.0),
        plan.student_images_per_s or student_speed(plan, device.value),
        store_speed(store, on_event),
    )
    views, shard, known = options.views.views_per_image, options.images_per_shard, rows_in_store(store, options, specs)
    warned = [text for text in map(size_warning, specs.values()) if text]
    return {
        **({"warnings": warned} if warned else {}),
        "device": f"{device.value} ({device.why})",
        "codec": options.codec,
        "teachers": {
            name: {
                "bytes_of_a_view": measured.row_bytes[name],
                "views_per_s": 1 / speeds[name][0],
                "batch_size": speeds[name][1],
                **({"layers": list(layout.layers)} if layout.layers else {}),
            }
            for name, layout in layouts.items()
        },
        f"for {options.data}": extraction_cost(images, views, shard, measured, plan.prices, known),
        "at the paper's scale": extraction_cost(PAPER_IMAGES, views, shard, measured, plan.prices),
        "reading": reading_need(measured),
        "break_even": break_even(images, views, plan.epochs_of_a_run, measured, plan.prices),
        **({} if plan.stage3 is None else {"stage 3": _stage3(plan, plan.stage3, store, sized, device.value, measured)}),
        **options.result_fields(),
        **terms_field(terms),
    }


def _stage3(
    plan: PlanOptions, recipe: TrainRecipe, store: FeatureStore, sized: Mapping[str, TeacherSpec], device: str, measured: Measured
) -> dict[str, Any]:
    """Return the two ways to stage 3's targets, each size's forward and the student's step at each of its sizes measured here."""
    options, config = plan.extraction, recipe.student
    forward = {label: teacher_speed(spec, device, options.batch_size, plan.batches, options.layers)[0] for label, spec in sized.items()}
    architecture = {**config.options, "name": config.architecture}
    rates = [
        plan.student_images_per_s or student_speed(replace(plan, student=architecture, student_size_px=size_px), device)
        for size_px in config.sizes_px
    ]
    student_s = float(np.mean([1 / rate for rate in rates]))
    return several_sizes(recipe, options, store, sized, forward, student_s, measured.store_bytes_per_s)


def rows_in_store(store: FeatureStore, options: ExtractOptions, specs: Mapping[str, TeacherSpec]) -> dict[str, int]:
    """Return by teacher, and for stored pixels, the rows that the store has already, of this version of the dataset or an earlier one."""
    dataset = store.dataset(options.data)
    dry = FeatureStore(DryRunObjects(store.objects))
    renderer = choose_renderer(dry.objects, dataset, options.views, options.images_per_shard, options.renderer)
    views = ViewSet.create(dry.objects, dataset, options.views, options.images_per_shard, renderer)
    layouts = {name: layout_of(spec, options) for name, spec in specs.items()}
    layers = {name: layout.layers for name, layout in layouts.items() if layout.layers}
    normalisation = Normalisation(dry, views, specs, options.statistics_batches, options.statistics_from, options.normalisation, layers)
    summary = dry_summary(dry, views, layouts, normalisation)
    known = {name: views.rows - rows for name, rows in summary["rows_to_compute"].items()}
    if options.views.pixels is not None:
        of_views = EarlierSets.of(dry, views, [])
        committed = views.group.committed()
        known[f"pixels at {size_text(options.views.pixels.size_px)} px"] = sum(
            rows_of_shard(views, shard) if shard in committed else of_views.known_view_rows(shard) for shard in range(views.shards)
        )
    return known


def teacher_speed(spec: TeacherSpec, device: str, batch_size: int | None, batches: int, layers: tuple[int, ...] = ()) -> tuple[float, int]:
    """Return (device seconds of one view, views in a batch): the median of a few forwards after one that warms up."""
    teacher = SizedTeacher(load_teacher(spec, device), batch_size, layers=layers)
    pixels = np.random.default_rng(0).integers(0, 256, (teacher.views, *spec.preprocessing.input.shape), np.uint8)
    seconds = []
    for _ in range(batches + 1):
        started = time.perf_counter()
        teacher(pixels).patch_BHWD.cpu()
        seconds.append((time.perf_counter() - started) / len(pixels))
    return float(np.median(seconds[1:])), teacher.views


def student_speed(plan: PlanOptions, device: str) -> float:
    """Return images a second of the student's forward and backward, without adapters and optimiser: an upper bound of what it will read."""
    student = build_encoder(plan.student).to(device)
    batch = _STUDENT_BATCH.get(device, 4)
    pixels = torch.randn(batch, 3, *size_hw(plan.student_size_px), device=device)
    seconds = []
    for _ in range(plan.batches + 1):
        started = time.perf_counter()
        student(pixels).patch_BHWD.square().mean().backward()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return batch / float(np.median(seconds[1:]))


def store_speed(store: FeatureStore, on_event: OnEvent = ignore_event) -> float:
    """Return bytes a second of reading back a probe of 64 MB in pieces of 4 MB; the probe is removed.

    Where nothing can be written, of reading the largest of some objects that are there; that is said.
    """
    try:
        with probe(store.objects, secrets.token_bytes(_PROBE_BYTES)) as key:
            return _reading_speed(store, key)
    except StoreUnavailable as error:
        key = _large_object(store)
        size = min(store.objects.size(key) or 0, _PROBE_BYTES)
        small = ", which is too small to tell much" if size < _READ_BYTES else ""
        text = f"the store cannot be written, so its reading speed is measured on {size:,} bytes of {key}{small}: {error}"
        on_event({"event": "warning", "text": text})
        return _reading_speed(store, key)


def _large_object(store: FeatureStore) -> str:
    """Return the largest of the first few objects of a store's feature sets, or the index of its largest dataset."""
    objects: list[tuple[int, str]] = []
    for prefix in [*(f"features/{key}" for key in store.list_features()), *(f"datasets/{key}" for key in store.list_datasets())]:
        for _, key in zip(range(_LOOKED_AT), walk_keys(store.objects, prefix), strict=False):
            objects.append((store.objects.size(key) or 0, key))
    return max(objects)[1]


def _reading_speed(store: FeatureStore, key: str) -> float:
    """Return bytes a second of reading an object from its start, at most as much as a probe has."""
    _forget_cached(Path(store.url) / key)
    opened = store.objects.open(key)
    size = min(opened.size, _PROBE_BYTES)
    memory = memoryview(bytearray(_READ_BYTES))
    started = time.perf_counter()
    for offset in range(0, size, _READ_BYTES):
        opened.read_into([memory[: min(_READ_BYTES, size - offset)]], offset)
    seconds = time.perf_counter() - started
    opened.close()
    return size / seconds


def _forget_cached(path: Path) -> None:
    """Drop a local file from the page cache; memory would be measured instead of the disk."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
