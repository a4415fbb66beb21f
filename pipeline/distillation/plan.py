"""What a distillation will do and cost before it is begun: bytes and hours that are still to be spent, and when the cache pays.

Teachers' and students' rates are measured on this machine by a few batches and recorded, so that a call that goes on does not measure
again. Not counted: decoding where it is slower than the models, evaluation, export, a cluster's other machines.
"""

import json
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...jobs.estimates.extraction import PlanOptions, student_speed, teacher_speed
from ...jobs.extraction.extract import extract_features, layout_of, resolve_request
from ...jobs.extraction.options import ExtractOptions
from ...storage.core.errors import BadInput
from ...storage.core.identity import short
from ...storage.core.urls import is_url
from ...storage.features.layout import FeatureLayout
from ...storage.images.dataset import ImageDataset
from ...storage.views.input_size import SizePx, area_px, size_hw, size_text
from ...student.model.recipe import StudentConfig
from ...teachers.encoders.build import facts
from ...teachers.registry.layers import stored_layers
from ...teachers.registry.spec import TeacherSpec
from ...teachers.runtime.devices import choose_device
from ..console.progress import duration
from ..recipes.load import ResolvedRecipe
from .folder import DistillFolder
from .options import DistillOptions
from .recipes import DistillRecipes
from .steps import training_label

ASK_ABOVE_HOURS, ASK_ABOVE_BYTES = 1.0, 20e9
_HOUR_S = 3600.0
_TOLERANCE = 1.05  # of hours: steps are whole, and rates rounded
_SPEED_VIEWS = {"cpu": 8, "cuda": 32}
FORWARD_SHARE = 1 / 3  # of a step's time: a backward pass costs two forwards


@dataclass(frozen=True)
class Training:
    """One training of the plan."""

    name: str
    out: Path
    resolved: ResolvedRecipe
    targets: str
    """`teachers` or `proxy`."""


def trainings_of(recipes: DistillRecipes, folder: DistillFolder) -> list[Training]:
    """Return the trainings in their order."""
    targets = "teachers" if recipes.proxy is None else "proxy"
    first = [] if recipes.proxy is None else [Training(training_label(folder, "proxy", 1), folder.proxy(), recipes.proxy, "teachers")]
    return first + [
        Training(training_label(folder, student, stage), folder.run(student, stage), resolved, targets)
        for student, stages in recipes.students.items()
        for stage, resolved in stages.items()
    ]


def teacher_rate_name(name: str, size_px: SizePx | None) -> str:
    """Return under what name the seconds of a teacher's view are recorded."""
    return f"teacher {name} at {size_text(size_px) if size_px else 'its own'} px"


def student_rate_name(student: StudentConfig) -> str:
    """Return under what name the seconds of an image of a student's step are recorded."""
    shape = {key: value for key, value in student.options.items() if key != "layer_scale"}
    changed = f" {json.dumps(shape, sort_keys=True)}" if shape else ""
    return f"student {student.architecture}{changed} at {size_text(max(student.sizes_px, key=area_px))} px"


class Rates:
    """Measured seconds of a teacher's view and images a second of a student's step, recorded in the folder."""

    def __init__(self, folder: DistillFolder, options: ExtractOptions, *, keep: bool) -> None:
        self._folder, self._options, self._keep = folder, options, keep
        self._known: dict[str, float] = dict(folder.kept.get("rates", {}))
        self.device = choose_device("auto").value

    def teacher(self, name: str) -> float:
        """Return seconds of one view of a teacher."""
        request = next(request for request in self._options.teachers if request.name == name)
        return self._measured(
            teacher_rate_name(name, request.size_px),
            lambda: self._teacher_seconds(resolve_request(request, self._options)),
        )  # fmt: skip

    def _teacher_seconds(self, spec: TeacherSpec) -> float:
        layers = stored_layers(spec, self._options.layers)
        return teacher_speed(spec, self.device, _SPEED_VIEWS[self.device], 1, layers)[0]

    def student(self, student: StudentConfig) -> float:
        """Return seconds of one image of a student's step, at its largest input."""
        options = PlanOptions(self._options, {**student.options, "name": student.architecture}, max(student.sizes_px, key=area_px))
        return self._measured(student_rate_name(student), lambda: 1 / student_speed(options, self.device))

    def _measured(self, what: str, measure: Any) -> float:
        if what not in self._known:
            self._known[what] = float(measure())
            self._folder.keep(rates=self._known, write=self._keep)
        return self._known[what]


def make_plan(
    options: DistillOptions, recipes: DistillRecipes, folder: DistillFolder, photos: ImageDataset, indexed: Collection[str]
) -> dict[str, Any]:
    """Return the plan: extraction by teacher, trainings, hours, bytes, break-even. `indexed` are the datasets that the store holds."""
    images = len(photos)
    extraction = recipes.extract.options(options.store_url, photos.key, recipes.extract.requests(options.teachers), recipes.views)
    rates = Rates(folder, extraction, keep=not options.dry_run)
    trainings = trainings_of(recipes, folder)
    forward = {name: rates.teacher(name) for name in recipes.extract.teachers}
    teachers_s = sum(forward.values())
    rows, missing = images * recipes.views.views_per_image, _missing_rows(extraction, photos, indexed)
    extracted: dict[str, dict[str, Any]] = {}
    for request in extraction.teachers:
        spec = resolve_request(request, extraction)
        size = layout_of(spec, extraction).view_bytes
        extracted[spec.name] = {
            "views": rows, "missing": missing, "bytes": missing * size, "hours": missing * forward[request.name] / _HOUR_S
        }  # fmt: skip
    target_s = {"teachers": teachers_s, "proxy": 0.0}
    if recipes.proxy is not None:
        extracted["proxy"], target_s["proxy"] = _proxy_extraction(
            recipes, rates, rows, finished=(folder.proxy() / "summary.json").is_file()
        )
    trained, live_h = {}, 0.0
    for training in trainings:
        run, student = training.resolved.recipe.run, training.resolved.recipe.student
        samples, live = run.steps * run.batch_size, training.resolved.recipe.teacher.source == "live"
        own_s = samples * rates.student(student)
        spent_s = own_s + (samples * target_s[training.targets] if live else 0.0)
        live_h += (own_s + samples * target_s[training.targets]) / _HOUR_S
        finished = (training.out / "summary.json").is_file()
        trained[training.name] = {
            "steps": run.steps,
            "batch": run.batch_size,
            "epochs": samples / max(1, images),
            "done": finished,
            "hours": 0.0 if finished else spent_s / _HOUR_S,
        }
    hours = sum(row["hours"] for row in (*extracted.values(), *trained.values()))
    samples = sum(t.resolved.recipe.run.steps * t.resolved.recipe.run.batch_size for t in trainings if t.targets == "teachers")
    return {
        "photos": images,
        "store": options.store_url,
        "extraction": extracted,
        "training": trained,
        "hours": hours,
        "bytes": sum(row["bytes"] for row in extracted.values()),
        "hours_with_live_teachers": live_h,
        "break_even": _break_even(rows, samples),
    }


def _missing_rows(extraction: ExtractOptions, photos: ImageDataset, indexed: Collection[str]) -> int:
    """Return the views whose tokens the store lacks; of photos that a dry run has not indexed, those that an earlier version lacks too."""
    versions = [
        (photos.key, len(photos)),
        *((f"{photos.name}@{short(version.digest)}", version.images) for version in reversed(photos.earlier)),
    ]
    data, images = next(((key, count) for key, count in versions if key in indexed), ("", 0))
    new = (len(photos) - images) * extraction.views.views_per_image
    if not data:
        return new
    rows = images * extraction.views.views_per_image
    summary = extract_features(replace(extraction, data=data, dry_run=True))
    missing, shards = int(summary["shards_missing"]), int(summary["shards"])
    return new + round(rows * missing / max(1, shards))


def _proxy_extraction(recipes: DistillRecipes, rates: Rates, rows: int, *, finished: bool) -> tuple[dict[str, Any], float]:
    """Return the proxy's row of the plan, and the seconds of its forward."""
    assert recipes.proxy is not None
    student, size_px = recipes.proxy.recipe.student, recipes.extract.proxy_size_px
    shape = facts({**student.options, "name": student.architecture})
    seconds = rates.student(student) * FORWARD_SHARE
    height, width = size_hw(size_px)
    grid, extract = (height // shape.stride_px, width // shape.stride_px), recipes.extract
    layout = FeatureLayout(shape.width, shape.width, grid, extract.codec, extract.tokens_per_view or None)
    missing = 0 if finished else rows
    return {"views": rows, "missing": missing, "bytes": missing * layout.view_bytes, "hours": missing * seconds / _HOUR_S}, seconds


def _break_even(rows: int, samples: int) -> str:
    """Return after how many such distillations the teachers' passes over all views cost less than live ones."""
    share = rows / max(1, samples)
    if share <= 1:
        return f"the cache costs {100 * share:.0f} % of one live training's teacher passes: it pays with the first student"
    return (
        f"the cache costs {share:.1f} times one live training's teacher passes: it pays from student number {-(-rows // max(1, samples))}"
    )


def check_room(plan: Mapping[str, Any]) -> None:
    """Raise BadInput for more bytes than the store's disk has."""
    store = str(plan["store"])
    if is_url(store):
        return
    around = next(folder for folder in (Path(store), *Path(store).parents) if folder.is_dir())
    free = shutil.disk_usage(around).free
    if plan["bytes"] > free:
        raise BadInput(
            f"the plan needs {plan['bytes'] / 1e9:.1f} GB in {store}, and its disk has {free / 1e9:.1f} GB free; give --budget "
            f"{free / 2e9:.0f}GB for smaller tokens or fewer views, or a --store elsewhere"
        )


def check_limits(plan: Mapping[str, Any], options: DistillOptions) -> None:
    """Raise BadInput for a plan above the limits, as several stages may be that each have their least number of steps."""
    if options.budget_bytes is not None and plan["bytes"] > options.budget_bytes:
        least = f"{plan['bytes'] / 1e9:.2g} GB"
        raise BadInput(f"the plan needs {least} where --budget is {options.budget_bytes / 1e9:.2g} GB; give that much, or fewer --stages")
    if options.hours is not None and plan["hours"] > options.hours * _TOLERANCE:
        least = f"{plan['hours']:.2g} hours"
        raise BadInput(f"the plan takes {least} where --hours is {options.hours:g}; give that much, fewer --stages or fewer students")


def needs_consent(plan: Mapping[str, Any]) -> str | None:
    """Return what a plan will cost where that is above what is spent without asking, None below."""
    if plan["hours"] <= ASK_ABOVE_HOURS and plan["bytes"] <= ASK_ABOVE_BYTES:
        return None
    return f"about {duration(_HOUR_S * plan['hours'])} on this machine and {plan['bytes'] / 1e9:.1f} GB in {plan['store']}"
