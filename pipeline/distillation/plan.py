"""What a distillation will do and cost before it is begun: bytes and hours that are still to be spent, and when the cache pays.

Teachers' and students' rates are measured on this machine by a few batches and recorded, so that a call that goes on does not measure
again. Not counted: decoding where it is slower than the models, evaluation, export, a cluster's other machines.
"""

import json
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...jobs.estimates.cost_model import SizedSet, cached_or_live
from ...jobs.estimates.extraction import PlanOptions, student_speed, teacher_speed
from ...jobs.extraction.extract import extract_features, layout_of, resolve_request
from ...jobs.extraction.options import ExtractOptions, TeacherRequest
from ...storage.core.errors import BadInput
from ...storage.core.identity import short
from ...storage.core.urls import is_url
from ...storage.features.layout import FeatureLayout
from ...storage.images.dataset import ImageDataset
from ...storage.store import FeatureStore
from ...storage.views.input_size import SizePx, area_px, size_hw, size_text
from ...student.data.sized import cached_sizes
from ...student.model.recipe import StudentConfig, TrainRecipe
from ...teachers.encoders.build import facts
from ...teachers.registry.layers import stored_layers
from ...teachers.registry.spec import TeacherSpec
from ...teachers.runtime.devices import choose_device
from ..console.progress import duration
from ..recipes.load import ResolvedRecipe
from .budget import FIDELITY, in_hours, measured_anew
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


@dataclass(frozen=True)
class _Source:
    """A model whose tokens are targets: a teacher, or the proxy, trained or not."""

    name: str
    request: TeacherRequest | None
    """None: the proxy before it is trained."""
    size_px: SizePx
    """Of the set that stages 1 and 2 read."""
    seconds: float
    """Of a view's forward at that size."""
    layout: Callable[[SizePx, int | None], FeatureLayout]
    """Of the tokens at a size, whole or so many a view; raises BadInput for what cannot be."""

    def seconds_at(self, size_px: SizePx) -> float:
        """Return the seconds of a forward at another size: they follow the pixels."""
        return self.seconds * area_px(size_px) / area_px(self.size_px)

    def live_seconds(self, sizes_px: Collection[SizePx]) -> float:
        """Return the mean seconds over the sizes that are drawn, or at its own."""
        return sum(map(self.seconds_at, sizes_px)) / len(sizes_px) if sizes_px else self.seconds


class _Targets:
    """What teaches in a distillation, and what of its tokens the store lacks."""

    def __init__(
        self, options: DistillOptions, recipes: DistillRecipes, folder: DistillFolder, photos: ImageDataset, indexed: Collection[str],
        rates: Rates, extraction: ExtractOptions,
    ) -> None:  # fmt: skip
        self.options, self.recipes, self.photos, self.indexed, self.extraction = options, recipes, photos, indexed, extraction
        self.rows = len(photos) * recipes.views.views_per_image
        self.teachers = [self._teacher(request, rates) for request in extraction.teachers]
        self.proxy = None if recipes.proxy is None else self._proxy(rates, folder)
        self._missing: dict[str, tuple[int, str | None]] = {}
        """By source: what its own set lacks, and that set's key where it is known."""

    @property
    def of_students(self) -> list[_Source]:
        """What teaches the students."""
        return self.teachers if self.proxy is None else [self.proxy]

    def _teacher(self, request: TeacherRequest, rates: Rates) -> _Source:
        spec = resolve_request(request, self.extraction)

        def layout(size_px: SizePx, tokens: int | None) -> FeatureLayout:
            return layout_of(spec.at_size(size_px), replace(self.extraction, tokens_per_view=tokens))

        return _Source(spec.name, request, spec.preprocessing.size_px, rates.teacher(request.name), layout)

    def _proxy(self, rates: Rates, folder: DistillFolder) -> _Source:
        assert self.recipes.proxy is not None
        student, extract = self.recipes.proxy.recipe.student, self.recipes.extract
        shape = facts({**student.options, "name": student.architecture})

        def layout(size_px: SizePx, tokens: int | None) -> FeatureLayout:
            height, width = (side // shape.stride_px for side in size_hw(size_px))
            grid = (extract.grid[0], extract.grid[1]) if extract.grid else (height, width)
            return FeatureLayout(
                shape.width, shape.width, grid, extract.codec, tokens, None if grid == (height, width) else (height, width)
            )

        run, size_px = folder.proxy(), extract.proxy_size_px
        request = TeacherRequest(str(run), size_px=size_px) if (run / "summary.json").is_file() else None
        return _Source("proxy", request, size_px, rates.student(student) * FORWARD_SHARE, layout)

    def own_rows(self) -> dict[str, dict[str, Any]]:
        """Return the plan's rows of the sets that stages 1 and 2 read."""
        table, tokens = dict[str, dict[str, Any]](), self.recipes.extract.tokens_per_view or None
        for sources in filter(None, (self.teachers, [] if self.proxy is None else [self.proxy])):
            self._missing |= self._missing_of(sources)
            for source in sources:
                missing = self._missing[source.name][0]
                table[source.name] = _row(self.rows, missing, source.layout(source.size_px, tokens), source.seconds)
        return table

    def _missing_of(self, sources: list[_Source]) -> dict[str, tuple[int, str | None]]:
        requests = [source.request for source in sources if source.request is not None]
        if not requests:
            return {source.name: (self.rows, None) for source in sources}
        options = self.extraction if sources is self.teachers else self.recipes.extract.options(
            self.extraction.store, self.extraction.data, tuple(requests), self.recipes.views
        )  # fmt: skip
        missing, keys = _missing_rows(options, self.photos, self.indexed)
        return {source.name: (missing, keys.get(source.name, next(iter(keys.values()), None))) for source in sources}

    def sized_rows(self, sizes_px: Collection[SizePx]) -> dict[str, tuple[SizedSet, dict[str, Any]]]:
        """Return by set what it costs, and its row of the plan ({} of one that is read anyway), of the students' targets at several sizes.

        Raises BadInput for sizes and grids that cannot be.
        """
        sized = {}
        for size_px in sizes_px:
            for source in self.of_students:
                layout = source.layout(size_px, None)
                is_own = size_px == source.size_px and not self.recipes.extract.tokens_per_view
                missing = 0 if is_own else self._missing_at(source, size_px)
                seconds = source.seconds_at(size_px)
                row = {} if is_own else _row(self.rows, missing, layout, seconds)
                sized[f"{source.name} at {size_text(size_px)} px"] = SizedSet(layout.view_bytes, seconds, missing), row
        return sized

    def _missing_at(self, source: _Source, size_px: SizePx) -> int:
        """Return the views that a set of another size lacks: all, unless the set is there whose statistics it has."""
        key = self._missing[source.name][1]
        if source.request is None or key is None or self.photos.key not in self.indexed:
            return self.rows
        if key not in FeatureStore.open(self.extraction.store).list_features():
            return self.rows
        (request,) = self.recipes.sized([source.request], size_px)
        options = self.recipes.sized_options(self.extraction.store, self.extraction.data, [request], [key])
        return _missing_rows(options, self.photos, self.indexed)[0]


def _row(rows: int, missing: int, layout: FeatureLayout, seconds: float) -> dict[str, Any]:
    return {"views": rows, "missing": missing, "bytes": missing * layout.view_bytes, "hours": missing * seconds / _HOUR_S}


def make_plan(
    options: DistillOptions, recipes: DistillRecipes, folder: DistillFolder, photos: ImageDataset, indexed: Collection[str]
) -> dict[str, Any]:
    """Return the plan: extraction by teacher, trainings, hours, bytes, break-even. `indexed` are the datasets that the store holds."""
    images = len(photos)
    extraction = recipes.extract.options(options.store_url, photos.key, recipes.extract.requests(options.teachers), recipes.views)
    rates = Rates(folder, extraction, keep=not options.dry_run)
    targets = _Targets(options, recipes, folder, photos, indexed, rates, extraction)
    trainings = trainings_of(recipes, folder)
    extracted, trained, stage3, live_h = targets.own_rows(), dict[str, Any](), dict[str, Any](), 0.0
    for training in trainings:
        recipe = training.resolved.recipe
        run, samples = recipe.run, recipe.run.steps * recipe.run.batch_size
        taught_by = targets.teachers if training.targets == "teachers" else targets.of_students
        own_s = rates.student(recipe.student)
        live_s = sum(source.live_seconds(recipe.teacher.sizes_px) for source in taught_by)
        live_h += samples * (own_s + live_s) / _HOUR_S
        finished = (training.out / "summary.json").is_file()
        spent_s = samples * (own_s + (live_s if recipe.teacher.source == "live" else 0.0))
        trained[training.name] = {
            "steps": run.steps,
            "batch": run.batch_size,
            "epochs": samples / max(1, images),
            "done": finished,
            "hours": 0.0 if finished else spent_s / _HOUR_S,
        }
        if cached_sizes(recipe):
            extracted |= {name: row for name, (_, row) in targets.sized_rows(recipe.teacher.sizes_px).items() if row}
        if recipe.stage == 3 and recipe.teacher.sizes_px:
            stage3[training.name] = _both_ways(targets, recipe, own_s)
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
        "break_even": _break_even(targets.rows, samples),
        **({"stage 3's targets": stage3} if stage3 else {}),
    }


def _both_ways(targets: _Targets, recipe: TrainRecipe, student_s: float) -> dict[str, Any]:
    """Return what a stage 3 costs from feature sets of each size that it draws, and beside the live teachers."""
    sizes_px, codec = recipe.teacher.sizes_px, targets.recipes.extract.codec
    try:
        sets = {name: one for name, (one, _) in targets.sized_rows(sizes_px).items()}
    except BadInput as error:
        if recipe.teacher.source == "cached":
            raise
        return {"chosen": "live", "cached": f"cannot be: {error}"}
    kept = FIDELITY.get(codec)
    told = "exact" if kept is None else f"cosine {kept.mean:.5g}, 1st percentile {kept.p1:.5g}"
    return {
        "chosen": recipe.teacher.source,
        **cached_or_live(sets, len(sizes_px), recipe.run.steps * recipe.run.batch_size, student_s),
        "agreement": f"{codec}: {told} (docs/results/bench-codec.json); `plan --stage 3` measures the trained proxy's own",
        "hours_are": "estimated: forwards follow the pixels from the measured one, a proxy's is a third of its measured step",
    }


def _missing_rows(extraction: ExtractOptions, photos: ImageDataset, indexed: Collection[str]) -> tuple[int, dict[str, str | None]]:
    """Return the views whose tokens the store lacks, and the sets' keys where they are known.

    Of photos that a dry run has not indexed, those count that an earlier version lacks too.
    """
    versions = [
        (photos.key, len(photos)),
        *((f"{photos.name}@{short(version.digest)}", version.images) for version in reversed(photos.earlier)),
    ]
    data, images = next(((key, count) for key, count in versions if key in indexed), ("", 0))
    new = (len(photos) - images) * extraction.views.views_per_image
    if not data:
        return new, {}
    rows = images * extraction.views.views_per_image
    summary = extract_features(replace(extraction, data=data, dry_run=True))
    missing, shards = int(summary["shards_missing"]), int(summary["shards"])
    return new + round(rows * missing / max(1, shards)), summary["features"]


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
        raise BadInput(
            f"the plan takes {in_hours(plan['hours'])} where --hours is {options.hours:g}; give more, fewer --stages or fewer students; "
            f"{measured_anew(plan['hours'])}"
        )


def needs_consent(plan: Mapping[str, Any]) -> str | None:
    """Return what a plan will cost where that is above what is spent without asking, None below."""
    if plan["hours"] <= ASK_ABOVE_HOURS and plan["bytes"] <= ASK_ABOVE_BYTES:
        return None
    return f"about {duration(_HOUR_S * plan['hours'])} on this machine and {plan['bytes'] / 1e9:.1f} GB in {plan['store']}"
