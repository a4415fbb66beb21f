"""What each command does, without the command line: typed values in, a JSON-able result out, progress through `on_event`.

Usable from a notebook as it is. Heavy imports stay inside the functions, so that looking at a recipe costs no torch.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ...storage.core.choices import Orientation, ViewKind
from ...storage.core.errors import BadInput
from ...storage.core.events import OnEvent

if TYPE_CHECKING:
    from ...jobs.extraction.options import TeacherRequest


def index(*, source: str, store: str, name: str, max_bad_share: float, on_event: OnEvent, verify: bool = False,
          dense_targets: bool = False, orientation: "Orientation | None" = None) -> dict[str, Any]:  # fmt: skip
    """Index a source into the store, which is made when absent; with `verify` only compare it with the index that is there.

    Images are turned upright unless `orientation` says otherwise; with `verify` it may repeat what the index says.
    """
    from ...storage.images.indexing import build_index
    from ...storage.images.verify_source import verify_source
    from ...storage.sources.locations import canonical_source
    from ...storage.store import FeatureStore

    if verify:
        indexed = FeatureStore.open(store).dataset(name)
        place = next((known for known in indexed.sources if canonical_source(known) == canonical_source(source)), None)
        if place is None:
            raise BadInput(
                f"{indexed.key} was indexed from {', '.join(indexed.sources)}, not from {source}; "
                "--verify compares with where its images lie"
            )
        if indexed.oriented and orientation not in (None, indexed.orientation):
            raise BadInput(f"{indexed.key} was indexed {indexed.orientation}, not {orientation}; leave --orientation out of --verify")
        verify_source(indexed, on_event, place)
        return {"dataset": indexed.key, "images": len(indexed), "source": place, "unchanged": True}
    opened = FeatureStore.create(store)
    turn: Orientation = orientation or "upright"
    dataset = build_index(
        opened.objects, source, name, max_bad_share=max_bad_share, dense_targets=dense_targets, orientation=turn, on_event=on_event
    )
    others = [key for key in opened.list_datasets() if key.partition("@")[0] == name and key != dataset.key]
    if others:
        text = f"{name} also names {', '.join(others)} of other images, which stay: say {dataset.key} for this one, or take another --name"
        on_event({"event": "warning", "text": text})
    counts = {"images": len(dataset), "labels": len(dataset.label_names)}
    turns = {"orientation": turn, "images_with_orientation": dataset.oriented}
    return {"dataset": dataset.key, **counts, **turns, "skipped": dataset.skipped, "left_out": dataset.left_out}


def extract(*, store: str, teachers: Sequence[str], teacher_sizes: Mapping[str, int], weights: Mapping[str, str],
            teacher_devices: Mapping[str, str], on_event: OnEvent, views: int | None = None, view_kind: ViewKind | None = None,
            seed: int | None = None, photometric: str | None = None, pixels_px: int | None = None, recipe: str | None = None,
            stage: int | None = None, **values: Any) -> Mapping[str, Any]:  # fmt: skip
    """Extract teachers' tokens over the views of a recipe, and of what is given instead; `values`: further fields of ExtractOptions."""
    from ...jobs.extraction.extract import extract_features
    from ...jobs.extraction.options import ExtractOptions
    from ..recipes.views import chosen_views

    requests = _teacher_requests(teachers, teacher_sizes, weights, teacher_devices)
    given = {"kind": view_kind, "views_per_image": views, "seed": seed, "photometric": photometric}
    spec, told = chosen_views(recipe, stage, given, pixels_px, on_event)
    found = extract_features(store, ExtractOptions(teachers=requests, views=spec, **values), on_event)
    return found if recipe is None else {**found, "view_values": told}


def _teacher_requests(teachers: Sequence[str], sizes: Mapping[str, int], weights: Mapping[str, str],
                      devices: Mapping[str, str] = MappingProxyType({})) -> "tuple[TeacherRequest, ...]":  # fmt: skip
    from ...jobs.extraction.options import TeacherRequest

    for option, named in (("--teacher-size", sizes), ("--weights", weights), ("--teacher-device", devices)):
        stray = sorted(set(named) - set(teachers))
        if stray:
            raise BadInput(f"{option} names {stray[0]!r}, which is not among the teachers of this command: {', '.join(teachers)}")
    paths = {teacher: Path(path) for teacher, path in weights.items()}
    return tuple(TeacherRequest(name, paths.get(name), sizes.get(name), devices.get(name)) for name in teachers)


def plan(*, store: str, data: str, teachers: Sequence[str], teacher_sizes: Mapping[str, int], weights: Mapping[str, str],
         device_hour: float, gigabyte_month: float, months: float, extraction: Mapping[str, Any], on_event: OnEvent,
         views: int | None = None, pixels_px: int | None = None, recipe: str | None = None, stage: int | None = None,
         **values: Any) -> Mapping[str, Any]:  # fmt: skip
    """Say what an extraction would cost; `extraction` are further fields of ExtractOptions, `values` of jobs.plan.PlanOptions."""
    from ...jobs.estimates.cost_model import Prices
    from ...jobs.estimates.extraction import PlanOptions, plan_extraction
    from ...jobs.extraction.options import ExtractOptions
    from ..recipes.views import chosen_views

    requests = _teacher_requests(teachers, teacher_sizes, weights)
    spec, told = chosen_views(recipe, stage, {"views_per_image": views}, pixels_px, on_event)
    options = ExtractOptions(data, requests, spec, **extraction)
    costs = PlanOptions(prices=Prices(device_hour, gigabyte_month, months), **values)
    found = plan_extraction(store, options, costs, on_event)
    return found if recipe is None else {**found, "view_values": told}


def _request(teacher: str | None, weights: Path | None) -> Any:
    from ...jobs.extraction.options import TeacherRequest

    if weights is not None and teacher is None:
        raise BadInput("--weights needs --teacher: which teacher's weights are they?")
    return None if teacher is None else TeacherRequest(teacher, weights)


def repair(*, key: str | None, store: str, teacher: str | None, weights: Path | None, dry_run: bool, on_event: OnEvent) -> dict[str, Any]:
    """Mend what is damaged of a store, or of what one feature set needs, and touch nothing else."""
    from ...jobs.repair.repair import repair_features

    return repair_features(store, key, teacher=_request(teacher, weights), dry_run=dry_run, on_event=on_event)


def fidelity(*, key: str, store: str, teacher: str | None, weights: Path | None, sample: int, on_event: OnEvent) -> dict[str, Any]:
    """Compare a feature set with a fresh forward of its teacher over a sample of views."""
    from ...jobs.repair import repair as upkeep

    return upkeep.fidelity(store, key, teacher=_request(teacher, weights), sample=sample)


def recipe_table(rows: Sequence[tuple[str, object, str]]) -> dict[str, dict[str, object]]:
    """Return recipe rows as {dotted key: {value, origin}}."""
    return {key: {"value": value, "origin": origin} for key, value, origin in rows}


def list_recipe_names(*, on_event: OnEvent) -> dict[str, Any]:
    """Return the names of the recipes that come with the package."""
    from ..recipes.load import list_recipes

    return {"recipes": list_recipes()}


def show_recipe(*, name: str, stage: int | None, settings: Sequence[str], on_event: OnEvent) -> dict[str, Any]:
    """Return each value with its origin: of the recipe, or of each stage when the file holds several and none is picked."""
    from ..recipes.load import load_recipe, read_document, stages_of

    stages = stages_of(read_document(name)[1]) if stage is None else []
    if not stages:
        return {"recipe": recipe_table(load_recipe(name, stage=stage, settings=settings).rows())}
    return {f"stage{one}": recipe_table(load_recipe(name, stage=one, settings=settings).rows()) for one in stages}


def demo(*, out: Path, store: str, fetch_only: bool, on_event: OnEvent) -> Mapping[str, Any]:
    """Run the demonstration, or only fetch what it needs."""
    if fetch_only:
        from ..demo.fetch import fetch_demo

        return {"fetched": {name: str(path) for name, path in fetch_demo(on_event).items()}}
    from ..demo.demo import run_demo

    return run_demo(out, store, on_event)


def export(*, run: Path | str, out: Path, proxy: Path | str | None = None, on_event: OnEvent, **options: Any) -> dict[str, Any]:
    """Write a finished run's student in the formats that people deploy; `options`: further fields of student.export.ExportOptions."""
    from ...jobs.runs.run_source import run_at_hand
    from ...student.export.export import ExportOptions
    from ...student.export.export import export as export_run

    chosen = ExportOptions(proxy=None if proxy is None else run_at_hand(proxy), **options)
    return {**export_run(run_at_hand(run), chosen, out, on_event), "run": str(run)}


def import_weights(*, source: Path, out: Path, size_px: int | None, on_event: OnEvent) -> dict[str, Any]:
    """Turn a published checkpoint into a run's folder."""
    from ...student.export.import_published import import_weights as import_published

    return import_published(source, out, size_px)


def convert_weights(*, source: Path, out: Path, on_event: OnEvent) -> dict[str, Any]:
    """Turn a PyTorch checkpoint of plain tensors into a safetensors file; says the sha256 that feature sets will be named by."""
    from ...storage.core.identity import file_sha256
    from ...teachers.checkpoints.convert import convert_checkpoint

    convert_checkpoint(source, out)
    return {"weights": str(out), "bytes": out.stat().st_size, "sha256": file_sha256(out)}


def latency(*, folder: Path, on_event: OnEvent, **options: Any) -> dict[str, Any]:
    """Measure an export folder's latency; `options`: student.latency.LatencyOptions' fields."""
    from ...student.export.latency import LatencyOptions
    from ...student.export.latency import latency as measure_latency

    return measure_latency(folder, LatencyOptions(**options), on_event)
