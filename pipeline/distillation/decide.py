"""Decide how tokens are cached and by what recipes is trained: by the recipe that was given, as recorded in the folder, or by rule.

What rules decide is written into the folder before anything is computed, and read back from there ever after. How tokens are cached is
decided once for a folder, by its first student: another student, and photos that were added, share the teachers' passes. Where the store
holds tokens of the same photos by the same teachers already, those are taken as they are.
"""

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from ...jobs.extraction.extract import resolve_request
from ...jobs.extraction.options import ExtractOptions, TeacherRequest
from ...jobs.training.layers import weighted_layers
from ...storage.core.choices import Codec
from ...storage.core.errors import BadInput
from ...storage.core.events import OnEvent
from ...storage.images.dataset import ImageDataset
from ...storage.images.hold_out import held_out_images
from ...storage.store import FeatureStore
from ...storage.views.input_size import SizePx, area_px, as_size, size_text
from ...storage.views.view_spec import VIEW_KINDS, ViewSpec
from ...student.model.recipe import TeacherConfig
from ...teachers.registry.layers import stored_layers
from ...teachers.runtime.devices import choose_device
from ..recipes.extraction import ExtractConfig
from ..recipes.typed_tables import leaves
from .budget import Choice, choose_within_budget
from .facts import ScaleFacts, TeacherFacts, measure_facts, proxy_as_teacher, student_facts
from .folder import DistillFolder
from .options import DistillOptions
from .plan import FORWARD_SHARE, student_rate_name, teacher_rate_name
from .recipes import DistillRecipes, read_recipes
from .rules import Ruled, ruled_recipe, ruled_sizes, ruled_views, write_recipe
from .steps import training_label
from .trial import Trial, trial_step

_HOURS_OF_STAGE = {  # shares of the hours that are left beside the teachers' passes, ours
    (2,): {2: 1.0},
    (2, 3): {2: 0.75, 3: 0.25},
    (1, 2): {1: 0.5, 2: 0.5},
    (1, 2, 3): {1: 0.45, 2: 0.4, 3: 0.15},
}
_HELD_OUT, _MOST_HELD_OUT, _HELD_OUT_IMAGES = 0.01, 0.1, 20
_SPEED_VIEWS = {"cpu": 8, "cuda": 32}
_ASKED = "ours: asked for"


@dataclasses.dataclass(frozen=True)
class Caching:
    """How tokens are cached, over which views, and why."""

    extract: ExtractConfig
    views: ViewSpec
    view_reasons: Mapping[str, str]

    def recorded(self) -> dict[str, Any]:
        """Return it as the folder keeps it."""
        values = {field.name: getattr(self.extract, field.name) for field in dataclasses.fields(self.extract)}
        return {"extract": values, "views": self.views.identity(), "view_reasons": dict(self.view_reasons)}

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> "Caching":
        """Return what `recorded` gave."""
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in record["extract"].items()
        }  # fmt: skip
        return cls(ExtractConfig(**values), ViewSpec.from_identity(record["views"]), record["view_reasons"])

    def table(self) -> dict[str, Any]:
        """Return the `[extract]` table of a recipe."""
        values = {key: value for key, value in vars(self.extract).items() if key != "origins"}
        return {key: value for key, value in values.items() if value not in ((), {}, 0)}


def decided_recipes(
    options: DistillOptions, folder: DistillFolder, store: FeatureStore, photos: ImageDataset, stages: tuple[int, ...], on_event: OnEvent
) -> DistillRecipes:
    """Return the recipes of a distillation; those that rules decide are written into the folder first, unless they stand there.

    A dry run writes them elsewhere for as long as it takes to read them.
    """
    names = [*options.students, *(["proxy"] if 1 in stages else [])]
    if options.recipe is not None:
        return read_recipes(
            dict.fromkeys(names, options.recipe), stages, options.teachers, options.layers, options.layer_weights, options.targets
        )
    missing = [name for name in names if not folder.recipe_file(name).is_file()]
    with tempfile.TemporaryDirectory(prefix="eupe-distill-") as elsewhere:

        def file_of(name: str) -> Path:
            file = folder.recipe_file(name)
            return Path(elsewhere) / file.name if options.dry_run and name in missing else file

        if missing:
            kept = _Rules(options, folder, store, photos, stages, on_event).write(missing, file_of)
            folder.keep(**kept, write=not options.dry_run)
        return read_recipes({name: str(file_of(name)) for name in names}, stages, options.teachers)


def stored_caching(store: FeatureStore, photos: ImageDataset, options: DistillOptions) -> Caching | None:
    """Return how the store holds tokens of these photos by these teachers already, None where it does not; most views first."""
    best: tuple[int, Caching] | None = None
    sets = [(key, store.features_identity(key)) for key in store.list_features()]
    for views_key in store.list_view_sets():
        views = store.view_set(views_key)
        if views.dataset.digest != photos.digest or not VIEW_KINDS[views.spec.kind].is_random:
            continue
        over = {key: identity for key, identity in sets if identity["views"] == views.digest}
        set_keys = [_set_of(request, over, photos, options) for request in options.teachers]
        if None not in set_keys and len({_storing(over[key], options.layers) for key in set_keys if key is not None}) == 1:
            keys = [key for key in set_keys if key is not None]
            if best is None or views.views_per_image > best[0]:
                best = views.views_per_image, _caching_of(options, store, keys)
    return None if best is None else best[1]


def _set_of(request: TeacherRequest, over: Mapping[str, Mapping[str, Any]], photos: ImageDataset, options: DistillOptions) -> str | None:
    """Return the set among some over one set of views whose tokens are of the teacher that is asked for, None without one."""
    wanted = resolve_request(request, ExtractOptions(options.store_url, options.dataset, (request,), precision="auto"))
    for key, identity in over.items():
        size = identity["teacher"].get("preprocessing", {}).get("size_px")
        borrowed = "from_views" in identity["statistics"] and not photos.earlier  # which no number of batches names
        if borrowed or size is None or (request.size_px is not None and as_size(size) != request.size_px):
            continue
        if options.layers and tuple(identity["layout"].get("layers", ())) != stored_layers(wanted, options.layers):
            continue
        with contextlib.suppress(BadInput):  # a size that this teacher does not have
            if wanted.at_size(as_size(size)).identity() == identity["teacher"]:
                return key
    return None


def _storing(identity: Mapping[str, Any], layers: tuple[int, ...]) -> tuple[Any, ...]:
    """Return what sets that one extraction made share: of layers that are asked for, each teacher has those that it can give."""
    layout, sample = identity["layout"], identity["statistics"]
    return (
        layers or tuple(layout.get("layers", ())),
        layout["codec"],
        layout.get("tokens_per_view"),
        tuple(layout["grid"]) if "resampled_from" in layout else (),
        sample.get("batches", 0),
    )


def _caching_of(options: DistillOptions, store: FeatureStore, keys: Sequence[str]) -> Caching:
    readers = [store.features(key) for key in keys]
    views, layout = readers[0].views, readers[0].layout
    sizes = [reader.input_px for reader in readers]
    names = [request.name for request in options.teachers]
    why = f"ours: as the store holds them already, {', '.join(keys)}"
    config = ExtractConfig(
        teachers=tuple(names), teacher_sizes_px=dict(zip(names, sizes, strict=True)), views_per_image=views.views_per_image,
        seed=views.spec.seed, codec=cast(Codec, layout.codec), tokens_per_view=layout.tokens_per_view or 0,
        grid=() if layout.resampled_from is None else layout.grid, layers=options.layers or layout.layers,
        images_per_shard=views.images_per_shard,
        statistics_batches=readers[0].identity["statistics"].get("batches", 0), origins={"codec": why, "views_per_image": why},
    )  # fmt: skip
    stated = [key for key, _ in leaves(views.spec.identity())]
    return Caching(config, views.spec, {f"views.{key}": why for key in stated})


def held_out_share(photos: ImageDataset) -> tuple[float, str]:
    """Return the share of the photos that no training draws, and the reason: 1 %, of few photos up to 10 % for 20 of them; 0 for a few."""
    images = len(photos)
    share = round(min(_MOST_HELD_OUT, max(_HELD_OUT, _HELD_OUT_IMAGES / images)), 4)
    count = len(held_out_images(photos, share))
    if count < 2:  # a mean over one says nothing
        return 0.0, f"ours: {images:,} photos are too few to hold any out"
    return (
        share,
        f"ours: {count:,} of {images:,} photos are not learnt from: agreement with the teachers is measured on them",
    )


class _Rules:
    """The decisions of one distillation that its folder does not hold yet."""

    def __init__(
        self, options: DistillOptions, folder: DistillFolder, store: FeatureStore, photos: ImageDataset, stages: tuple[int, ...],
        on_event: OnEvent,
    ) -> None:  # fmt: skip
        self.options, self.folder, self.store, self.photos, self.stages = options, folder, store, photos, stages
        self.on_event = on_event
        self.device = choose_device("auto").value
        self.rates: dict[str, float] = dict(folder.kept.get("rates", {}))

    def write(self, names: Sequence[str], into: Callable[[str], Path]) -> dict[str, Any]:
        """Decide and write the recipes of students and of "proxy" that are missing; returns what the folder is to keep."""
        students = [name for name in names if name != "proxy"] or list(self.options.students[:1])
        self.on_event({"event": "note", "text": f"measuring the teachers and {students[0]} on this machine"})
        facts, caching, left_hours = self._caching(students[0])
        for name in names:
            ruled = self._of_proxy(facts, caching, left_hours) if name == "proxy" else self._of_student(name, facts, caching, left_hours)
            write_recipe(into(name), ruled, caching.table(), caching.extract.origins)
        return {"caching": caching.recorded(), "rates": self.rates}

    def _caching(self, student: str) -> tuple[ScaleFacts, Caching, float | None]:
        """Return the facts with the teachers at their sizes, how tokens are cached, and the hours that are left for training."""
        kept, hours = self.folder.kept.get("caching"), self.options.hours
        stored = Caching.of_record(kept) if kept is not None else stored_caching(self.store, self.photos, self.options)
        requests = self.options.teachers if stored is None else stored.extract.requests(self.options.teachers)
        facts = measure_facts(
            self.store, self.photos.key, requests, student, speed_batches=1, batch_size=_SPEED_VIEWS[self.device],
            layers=self.options.layers if stored is None else stored.extract.layers,
        )  # fmt: skip
        _ = weighted_layers(TeacherConfig(layers=self.options.layer_weights), {one.name: one.layers for one in facts.teachers})
        sizes: dict[str, str] = {}
        if stored is None:
            asked = [one.name for request, one in zip(requests, facts.teachers, strict=True) if request.size_px is not None]
            facts, sizes = ruled_sizes(facts, asked)
        for request, teacher in zip(requests, facts.teachers, strict=True):
            if teacher.images_per_s is not None:
                self.rates[teacher_rate_name(request.name, teacher.size_px)] = 1 / teacher.images_per_s
        if stored is not None:
            if kept is None:
                text = f"{stored.extract.origins['codec'].removeprefix('ours: ')}; another --store would have tokens by rule"
                self.on_event({"event": "note", "text": f"tokens are taken {text}"})
            return facts, stored, hours
        trained = self._as_target(facts, student)
        trial = self._trial(self._weighted(ruled_recipe(2, trained), trained), trained, None)
        of_proxy = () if trained.teachers == facts.teachers else trained.teachers
        everything = dataclasses.replace(facts, teachers=(*facts.teachers, *of_proxy, *self._sized(facts)))
        choice = choose_within_budget(
            everything, store_bytes=self.options.budget_bytes, hours=hours, student_images_per_s=trial.images_per_s,
            students=len(self.options.students),
        )  # fmt: skip
        if self.options.budget_bytes is not None or hours is not None:
            for line in choice.explanation:
                self.on_event({"event": "note", "text": line})
        return facts, self._chosen(requests, facts, sizes, choice), None if hours is None else hours - (choice.extraction_hours or 0.0)

    def _chosen(self, requests: Sequence[TeacherRequest], facts: ScaleFacts, sizes: Mapping[str, str], choice: Choice) -> Caching:
        candidate, why = choice.candidate, f"ours: {choice.explanation[1]}; {choice.explanation[2]}"
        limited = self.options.budget_bytes is not None or self.options.hours is not None
        epochs = choice.length.samples / facts.images
        spec, reasons = ruled_views(facts, epochs=epochs, views_per_image=candidate.views_per_image if limited else None)
        names = [request.name for request in requests]
        why_sizes = "; ".join(
            f"{name}: {sizes[teacher.name].removeprefix('ours: ')}" for name, teacher in zip(names, facts.teachers, strict=True)
        )
        config = ExtractConfig(
            teachers=tuple(names), teacher_sizes_px={name: teacher.size_px for name, teacher in zip(names, facts.teachers, strict=True)},
            views_per_image=spec.views_per_image, seed=spec.seed, proxy_size_px=self._proxy_size(facts), codec=candidate.codec,
            tokens_per_view=candidate.tokens_per_view or 0, grid=candidate.grid or (), layers=self.options.layers,
            origins={"teacher_sizes_px": f"ours: {why_sizes}", "views_per_image": reasons["views.views_per_image"], "codec": why,
                     **({"layers": _ASKED} if self.options.layers else {})},
        )  # fmt: skip
        return Caching(config, spec, reasons)

    @property
    def proxy(self) -> str:
        """Architecture of the proxy."""
        return str(self.folder.kept.get("proxy") or self.options.proxy)

    def _of_proxy(self, facts: ScaleFacts, caching: Caching, left_hours: float | None) -> dict[int, Ruled]:
        own = dataclasses.replace(facts, student=student_facts(self.proxy))
        return {1: self._ruled(1, own, caching, left_hours)}

    def _of_student(self, name: str, facts: ScaleFacts, caching: Caching, left_hours: float | None) -> dict[int, Ruled]:
        own = self._as_target(facts, name)
        second = self._ruled(2, own, caching, left_hours)
        return {2: second} | ({3: self._ruled(3, own, caching, left_hours, second)} if 3 in self.stages else {})

    def _as_target(self, facts: ScaleFacts, student: str) -> ScaleFacts:
        """Return the facts of a student's own training: its teacher is the proxy where there is one."""
        own = dataclasses.replace(facts, student=student_facts(student))
        if 1 not in self.stages:
            return own
        proxy = proxy_as_teacher(student_facts(self.proxy), self._proxy_size(facts))
        of_proxy = dataclasses.replace(facts, student=student_facts(self.proxy))
        ruled = ruled_recipe(1, of_proxy)
        rate = self.rates.get(student_rate_name(ruled.recipe().student))
        if rate is None:
            rate = 1 / self._trial(self._weighted(ruled, of_proxy), of_proxy, None).images_per_s
        return dataclasses.replace(own, teachers=(dataclasses.replace(proxy, images_per_s=1 / (rate * FORWARD_SHARE)),))

    def _sized(self, facts: ScaleFacts) -> list[TeacherFacts]:
        """Return what teaches the students at each further size of which stage 3 reads feature sets; none where it runs live."""
        if 3 not in self.stages or self.options.targets != "cached":
            return []
        sets = dict[str, TeacherFacts]()
        for name in self.options.students:
            own = self._as_target(facts, name)
            sizes: tuple[SizePx, ...] = ruled_recipe(3, own).values["teacher.sizes_px"]
            for teacher, size in ((teacher, size) for teacher in own.teachers for size in sizes if size != teacher.size_px):
                label = f"{teacher.name} at {size_text(size)} px"
                sets[label] = dataclasses.replace(teacher.at_size(size), name=label)
        return list(sets.values())

    def _proxy_size(self, facts: ScaleFacts) -> SizePx:
        """Return the input of the proxy, the one that it is trained at."""
        if 1 not in self.stages:
            return ExtractConfig(()).proxy_size_px
        ruled = ruled_recipe(1, dataclasses.replace(facts, student=student_facts(self.proxy)))
        sizes: tuple[SizePx, ...] = ruled.values["student.sizes_px"]
        return sizes[0]

    def _ruled(self, stage: int, facts: ScaleFacts, caching: Caching, left_hours: float | None, start: Ruled | None = None) -> Ruled:
        views = (caching.views, caching.view_reasons)
        targets = self.options.targets if stage == 3 else None
        tried = self._weighted(ruled_recipe(stage, facts, views=views, start=start, targets=targets), facts)
        trial = self._trial(tried, facts, None if stage == 3 else caching.extract.tokens_per_view or None)
        hours = None if left_hours is None else left_hours * self._share(stage)
        rate = trial.images_per_s
        if tried.values["teacher.source"] == "live":  # the teacher runs beside the student
            rate = 1 / (1 / rate + _live_seconds(facts, tried.values["teacher.sizes_px"]))
        ruled = ruled_recipe(
            stage, facts, fits=trial.fits, images_per_s=rate, hours=hours, views=views, start=start, targets=targets
        )  # fmt: skip
        ruled = self._weighted(ruled, facts)
        share, reason = held_out_share(self.photos)
        kept_best = ruled.with_value("run.keep_best", True, "ours: the best by agreement on held-out photos stays beside the last")
        return kept_best.with_value("data.hold_out", share, reason) if share else ruled

    def _weighted(self, ruled: Ruled, facts: ScaleFacts) -> Ruled:
        """Return the recipe with the weights of layers that were asked for, where the teachers' own tokens are learnt."""
        weights = self.options.layer_weights
        return ruled.with_value("teacher.layers", dict(weights), _ASKED) if weights and any(one.layers for one in facts.teachers) else ruled

    def _share(self, stage: int) -> float:
        share = _HOURS_OF_STAGE[self.stages][stage]
        return share if stage == 1 else share / len(self.options.students)

    def _trial(self, ruled: Ruled, facts: ScaleFacts, tokens_per_view: int | None) -> Trial:
        """Take a trial step and keep its rate for the plan."""
        recipe = ruled.recipe()
        trial = trial_step(recipe, facts.target_specs(tokens_per_view, recipe.teacher), device=facts.device)
        self.rates[student_rate_name(recipe.student)] = 1 / trial.images_per_s
        return trial


def _live_seconds(facts: ScaleFacts, sizes_px: Sequence[SizePx]) -> float:
    """Return the seconds of all teachers' forwards of a view, the mean over the sizes that are drawn: they follow the pixels."""
    mean_area = sum(map(area_px, sizes_px)) / len(sizes_px)
    return sum(mean_area / area_px(teacher.size_px) / teacher.images_per_s for teacher in facts.teachers if teacher.images_per_s)


def decisions_of(recipes: DistillRecipes, folder: DistillFolder) -> dict[str, Any]:
    """Return each decision with its origin, by training and dotted key, of what is not a default."""
    origins = recipes.extract.origins
    extract = {
        key: {"value": ", ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, Mapping) else value,
              "origin": origins.get(key, "default")}
        for key, value in vars(recipes.extract).items()
    }  # fmt: skip
    shown: dict[str, Any] = {"extract": {key: row for key, row in extract.items() if key != "origins" and row["origin"] != "default"}}
    resolved: Mapping[str, Any] = {
        **({} if recipes.proxy is None else {training_label(folder, "proxy", 1): recipes.proxy}),
        **{
            training_label(folder, student, stage): recipe
            for student, by_stage in recipes.students.items()
            for stage, recipe in by_stage.items()
        },
    }
    for name, recipe in resolved.items():
        shown[name] = {key: {"value": value, "origin": origin} for key, value, origin in recipe.rows() if origin != "default"}
    return shown
