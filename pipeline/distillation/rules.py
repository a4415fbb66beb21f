"""Recipes for every scale by rule: from facts to the values of a stage, each with the rule and the numbers that gave it.

The formulas are those of `scaling`; here they are put in order, since each needs those before it: sizes → views a run looks at → batch →
steps → learning rate and the rest. Bounds come last: hours, where a step was timed; memory, by parts of a batch. Every value is "ours"
also where it equals the paper's, because a rule chose it. docs/recipes-by-rule.md has the rules with their sources and what they were
compared with.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ...storage.core.choices import TargetSource
from ...storage.core.errors import BadInput
from ...storage.views.input_size import SizePx, area_px, size_hw, size_text
from ...storage.views.view_spec import ViewSpec
from ...student.model.recipe import TrainRecipe
from ..recipes.load import ResolvedRecipe
from ..recipes.save import nested, save_recipe
from ..recipes.typed_tables import build, leaves
from . import scaling
from .facts import DeviceFacts, ScaleFacts, StudentFacts, student_facts

_DISTORTED_FROM_PX = 96
_PROXIES = ("eupe_vitt16", "eupe_vits16", "eupe_vitb16", "proxy-1.9b")
_PROXY_LARGER = 3.5
_MEGABYTES = 1024
_SHORT_RUN_SCALE = 1.0
_HOUR_S = 3600.0


@dataclass(frozen=True)
class Ruled:
    """The values of one stage's recipe by dotted key, and the reason of each: "ours: …"."""

    stage: int
    values: Mapping[str, Any]
    reasons: Mapping[str, str]
    views: ViewSpec = field(default_factory=ViewSpec)

    def recipe(self) -> TrainRecipe:
        """Return the recipe, its ranges checked."""
        return build(TrainRecipe, {"stage": self.stage, **nested(_listed(self.values))}, where="the recipe by rule")

    def resolved(self, name: str = "by rule") -> ResolvedRecipe:
        """Return the recipe with the origin of every value, as `load_recipe` returns it of the written file."""
        recipe = self.recipe()
        origins = {key: self.reasons.get(key, "default") for key, _ in leaves(recipe.to_dict())} | {"stage": f"file {name}"}
        return ResolvedRecipe(name, recipe, origins)

    def with_value(self, key: str, value: Any, reason: str) -> "Ruled":
        """Return the same with one value more, or another one."""
        return replace(self, values={**self.values, key: value}, reasons={**self.reasons, key: reason})


@dataclass(frozen=True)
class Length:
    """How long a run is, and why."""

    steps: int
    batch_size: int
    why_steps: str
    why_batch: str

    @property
    def samples(self) -> int:
        """Views that the student sees."""
        return self.steps * self.batch_size


def _times(value: float) -> str:
    """Return how often, as people write it."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _listed(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _lists(value) for key, value in values.items()}


def _lists(value: Any) -> Any:
    return list(map(_lists, value)) if isinstance(value, tuple) else value


def ruled_sizes(facts: ScaleFacts, asked: Collection[str] = ()) -> tuple[ScaleFacts, dict[str, str]]:
    """Return the facts with each teacher at the input that suits the photos, and the reasons by name; those that were `asked` for stay."""
    teachers, reasons, aspect = [], {}, facts.aspect(asked)
    for teacher in facts.teachers:
        own, stride = teacher.size_px, teacher.stride_px
        size = own if teacher.name in asked else scaling.teacher_size_of(own, stride, facts.median_side_px, aspect)
        teachers.append(teacher if size == own else teacher.at_size(size))
        why = "its own size" if size == own else f"its own are {size_text(own)} px"
        shape = "" if aspect == 1 else f", {aspect:.3g} times as wide as high like the other inputs"
        reasons[teacher.name] = f"ours: the least multiple of its stride from 4 × {facts.median_side_px} px photos on{shape}; {why}"
    return replace(facts, teachers=tuple(teachers)), reasons


def run_length(
    stage: int, facts: ScaleFacts, *, steps: int | None = None, batch_size: int | None = None, images_per_s: float | None = None,
    hours: float | None = None,
) -> Length:  # fmt: skip
    """Return steps and batch: as given, else from the photos, within `hours` at `images_per_s`; on a CPU a night bounds them by itself."""
    if steps is not None:
        batch = batch_size or scaling.batch_of_steps(steps)
        return Length(steps, batch, f"ours: {steps:,} were asked for", _why_batch(steps * batch, batch, batch_size))
    epochs = scaling.epochs_of(facts.images) * (scaling.STAGE3_SHARE if stage == 3 else 1.0)
    samples = epochs * facts.images
    why = f"ours: {_times(epochs)} epochs of {facts.images:,} photos (100 · (1.28 million / photos)^0.55, at most 3,000"
    why += ", an eighth of them in stage 3)" if stage == 3 else ")"
    if hours is None and images_per_s is not None and facts.device.kind == "cpu":
        hours = scaling.CPU_HOURS
    if hours is not None and images_per_s is not None and samples > hours * _HOUR_S * images_per_s:
        samples = hours * _HOUR_S * images_per_s
        why = f"ours: what {hours:.3g} hours hold at {images_per_s:,.0f} images/s, where the photos would be worth {_times(epochs)} epochs"
    batch = batch_size or scaling.batch_of(samples)
    wanted = int(samples // batch)
    if wanted < scaling.LEAST_STEPS:
        wanted, why = scaling.LEAST_STEPS, f"ours: the least that is worth a run, above {wanted:,} steps; {why.removeprefix('ours: ')}"
    return Length(wanted, batch, why, _why_batch(wanted * batch, batch, batch_size))


def _why_batch(samples: int, batch: int, asked: int | None) -> str:
    if asked is not None:
        return f"ours: {batch:,} were asked for"
    return f"ours: √(views / 40) of {samples:,} views, a power of two from {scaling.LEAST_BATCH} to {scaling.LARGEST_BATCH:,}"


def ruled_views(facts: ScaleFacts, *, epochs: float | None = None, views_per_image: int | None = None, seed: int = 0) -> tuple[
    ViewSpec, dict[str, str]
]:  # fmt: skip
    """Return which views of each photo are drawn, and the reasons by dotted key; `views_per_image` is what a budget left."""
    epochs = scaling.epochs_of(facts.images) if epochs is None else epochs
    count = views_per_image or scaling.views_of(epochs)
    small = facts.median_side_px < _DISTORTED_FROM_PX
    side = f"photos of {facts.median_side_px} px"
    aspect = facts.aspect()
    low, high = (bound if aspect == 1 else float(f"{bound * aspect:.6g}") for bound in ViewSpec.ratio)
    spec = ViewSpec(views_per_image=count, seed=seed, ratio=(low, high), photometric="none" if small else "teacher_same")
    counted = f"{count} of a photo that is seen {_times(epochs)} times" if views_per_image is None else "what the budget left"
    crop = "ours: DINOv3's public recipe; the paper names crops and flips without their values"
    seen = f"small {side} (below {_DISTORTED_FROM_PX}) are left as they are" if small else f"as in the paper, for {side}"
    return spec, {
        "views.kind": "ours: the paper's kind of views",
        "views.views_per_image": f"ours: one for every 100 epochs, a power of two from 2 to 16; {counted}",
        "views.seed": "ours: any",
        "views.scale": crop,
        "views.ratio": crop if aspect == 1 else f"{crop}; times the inputs' width over height, {aspect:.3g}, so that shapes stay",
        "views.flip_probability": crop,
        "views.photometric": f"ours: {seen}",
    }


def ruled_proxy(student: StudentFacts, device: DeviceFacts) -> tuple[str, str] | None:
    """Return (architecture, reason) of stage 1's proxy: the least with 3.5 times the student's parameters; None where none is so large.

    On a CPU, and below 40 GB, the paper's 1.9 B proxy is left out.
    """
    fits = device.kind == "cuda" and device.memory_bytes >= 40e9
    for name in _PROXIES if fits else _PROXIES[:-1]:
        parameters = _parameters(name)
        if parameters >= _PROXY_LARGER * student.parameters:
            times = parameters / student.parameters
            return name, f"ours: the least of ours with {_PROXY_LARGER} times the student's parameters ({times:.1f} times)"
    return None


def _parameters(name: str) -> int:
    return student_facts(name).parameters


def ruled_recipe(
    stage: int, facts: ScaleFacts, *, steps: int | None = None, batch_size: int | None = None, fits: int | None = None,
    images_per_s: float | None = None, hours: float | None = None, views: tuple[ViewSpec, Mapping[str, str]] | None = None, seed: int = 0,
    start: Ruled | None = None, targets: TargetSource | None = None,
) -> Ruled:  # fmt: skip
    """Return the recipe of a stage; `facts` are those of its own student and teachers (stage 1: the proxy as student).

    `fits` is how many views go through the student at once (a trial step's); a larger batch goes in parts. `hours` at `images_per_s` bound
    the steps. `views` are those of an extraction that is made or decided. `start` is the recipe of the run that a stage 3 begins from: what
    shapes the model and the views are its. Stage 3 leaves `student.init_from` to the caller; `targets` says where its own come from.
    """
    if stage not in (1, 2, 3):
        raise BadInput(f"stage {stage} has no recipe; there are 1, 2 and 3")
    length = run_length(stage, facts, steps=steps, batch_size=batch_size, images_per_s=images_per_s, hours=hours)
    if start is not None:
        views = views or (start.views, {key: reason for key, reason in start.reasons.items() if key.startswith("views.")})
    spec, view_reasons = views or ruled_views(facts, epochs=length.samples / facts.images, seed=seed)
    pairs: dict[str, tuple[Any, str]] = {
        "seed": (seed, "ours: any"),
        "precision": ("auto", f"ours: {_what_auto_is(facts)}"),
        **_student_values(stage, facts, length, targets),
        **_adapter_values(stage, facts),
        **_optimizer_values(stage, facts, length),
        **_run_values(stage, facts, length, fits, targets),
    }
    if start is not None:
        pairs = {key: pair for key, pair in pairs.items() if not key.startswith("student.options.")}
        pairs |= {
            key: (value, "ours: as in the run that this one starts from") for key, value in start.values.items() if _shapes_model(key)
        }
    values = {key: value for key, (value, _) in pairs.items()} | _view_values(spec)
    reasons = {key: reason for key, (_, reason) in pairs.items()} | dict(view_reasons)
    return Ruled(stage, values, {key: reason for key, reason in reasons.items() if key in values}, spec)


def _shapes_model(key: str) -> bool:
    return key.startswith("student.options.") or key in ("student.initial_weights", "adapter.width")


def _view_values(spec: ViewSpec) -> dict[str, Any]:
    drawn = {key: value for key, value in leaves(spec.identity()) if not key.startswith(("distortion.", "pixels."))}
    return {f"views.{key}": value for key, value in drawn.items()}


def _what_auto_is(facts: ScaleFacts) -> str:
    return "auto: bf16, which this device computes in" if facts.device.bf16 else "auto: fp32, since this device has no bf16 arithmetic"


def _student_values(stage: int, facts: ScaleFacts, length: Length, targets: TargetSource | None = None) -> dict[str, tuple[Any, str]]:
    student, teacher = facts.student, min(facts.teachers, key=lambda teacher: teacher.cells)
    size = scaling.student_size_of(student.patch_px, teacher.grid, teacher.size_px, facts.median_side_px)
    why = f"ours: the {teacher.grid[0]}×{teacher.grid[1]} grid of {teacher.name} in patches of {student.patch_px} px, at most its "
    why += f"{size_text(teacher.size_px)} px and four times the photos' {facts.median_side_px} px"
    long = length.steps >= scaling.LONG_RUN_STEPS
    values: dict[str, tuple[Any, str]] = {"student.architecture": (student.name, "ours: asked for")}
    if student.layer_scale is not None and not long:
        values["student.options.layer_scale"] = (
            _SHORT_RUN_SCALE,
            f"ours: 1 below {scaling.LONG_RUN_STEPS:,} steps, since from {student.layer_scale:g} a block needs tens of thousands of steps",
        )
    if stage == 3:
        sizes = _sizes_around(size, student.patch_px, facts.median_side_px)
        values["student.sizes_px"] = (
            sizes,
            f"ours: three sizes around or from {size_text(size)} px on, as the paper's 256, 384, 512; {why[6:]}",
        )
        shares = [size_hw(other)[0] / size_hw(size)[0] for other in sizes]
        teacher_sizes = tuple(scaling.scaled(teacher.size_px, share, teacher.stride_px) for share in shares)
        values["teacher.source"] = ("live", "ours: live, as in the paper") if targets is None else (targets, "ours: asked for")
        values["teacher.sizes_px"] = (
            tuple(dict.fromkeys(teacher_sizes)),
            f"ours: {size_text(teacher.size_px)} px by the same factors, in its strides",
        )
    else:
        values["student.sizes_px"] = ((size,), why)
        values["teacher.source"] = ("cached", "ours: the same targets as live ones on the same views, read instead of computed")
    start = "official" if long else "timm"
    shrunk = "as the official code begins" if long else f"branches shrunk with depth below {scaling.LONG_RUN_STEPS:,} steps"
    return values | {"student.initial_weights": (start, f"ours: {shrunk}")}


def _sizes_around(size: SizePx, patch_px: int, side_px: int) -> tuple[SizePx, ...]:
    factors = (1.0, 1.5, 2.0) if min(size_hw(size)) <= side_px else (0.75, 1.0, 1.25)
    return tuple(dict.fromkeys(scaling.scaled(size, factor, patch_px) for factor in factors))


def _adapter_values(stage: int, facts: ScaleFacts) -> dict[str, tuple[Any, str]]:
    widest, own = max(teacher.width for teacher in facts.teachers), facts.student.width
    times = "once" if stage == 1 else "twice"
    return {
        "adapter.width": (
            scaling.adapter_width_of(stage, widest, own),
            f"ours: {times} the widest teacher's {widest:,} as in the paper, at most 4 × the student's {own:,} but never below it",
        )
    }


def _optimizer_values(stage: int, facts: ScaleFacts, length: Length) -> dict[str, tuple[Any, str]]:
    steps, batch, width, samples = length.steps, length.batch_size, facts.student.width, length.samples
    beta2 = scaling.beta2_of(steps)
    if scaling.uses_lamb(stage, batch):
        name, rate, why = "lamb", scaling.lamb_rate(batch), f"1e-3 · √({batch:,} / 1,024), by the root of the batch (arXiv 1904.00962)"
    else:
        rate = (scaling.stage3_rate if stage == 3 else scaling.adamw_rate)(samples, batch, width)
        name, why = "adamw", f"2e-3 · √({batch:,} / 32) · √(40,000 / {samples:,} views) · (192 / {width:,} channels), 1e-6 to 3e-3"
        why += "; a fifth of it to finetune in stage 3" if stage == 3 else " (arXiv 2205.10287, 2203.03466)"
    decay = 0.02 if stage == 1 else 1e-4
    return {
        "optimizer.name": (name, "ours: LAMB for stage 1 from batches of 1,024 on, AdamW below and after"),
        "optimizer.learning_rate": (float(f"{rate:.3g}"), f"ours: {why}"),
        "optimizer.beta2": (beta2, f"ours: the second moment averages over a fiftieth of {steps:,} steps, 0.95 to 0.999"),
        "optimizer.warmup_share": (
            scaling.warmup_share_of(steps, beta2),
            f"ours: 5 % and at least 2 / (1 − beta2) = {2 / (1 - beta2):,.0f} steps (arXiv 1910.04209), at most a fifth",
        ),
        "optimizer.weight_decay": (decay, "ours: not stated for stage 1" if stage == 1 else "ours: the paper's"),
        "optimizer.final_learning_rate": (0.0, "ours: a cosine to nothing"),
        "optimizer.clip_norm": (3.0, "ours: the same at every scale, since a cosine loss has gradients of one size"),
    }


def _run_values(
    stage: int, facts: ScaleFacts, length: Length, fits: int | None, targets: TargetSource | None
) -> dict[str, tuple[Any, str]]:
    steps, batch = length.steps, length.batch_size
    checkpoint = min(1000, max(50, steps // 20))
    values: dict[str, tuple[Any, str]] = {
        "run.steps": (steps, length.why_steps),
        "run.batch_size": (batch, length.why_batch),
        "run.checkpoint_every": (min(steps, checkpoint), "ours: twenty in a run, every 50 to 1,000 steps"),
        "run.log_every": (min(10, max(1, steps // 100)), "ours: at least a hundred lines of metrics"),
        "run.prefetch_megabytes": (
            _prefetch_megabytes(stage, facts, batch, targets),
            "ours: two batches of pixels and stored tokens, in 1,024s",
        ),
    }
    if fits is not None and fits < batch:
        values["run.accumulate"] = (-(-batch // fits), f"ours: {fits:,} views go through the student at once, by a trial step")
    return values


def _prefetch_megabytes(stage: int, facts: ScaleFacts, batch: int, targets: TargetSource | None) -> int:
    """Return memory for two batches: pixels of the student, and tokens of the largest size as int8, or pixels of live teachers."""
    values = _student_values(stage, facts, Length(1, 1, "", ""), targets)
    largest = max(map(area_px, values["student.sizes_px"][0]))
    is_live = values["teacher.source"][0] == "live"
    drawn = max(map(area_px, values["teacher.sizes_px"][0])) if stage == 3 else 0
    cells = [math.ceil(teacher.cells * (drawn or area_px(teacher.size_px)) / area_px(teacher.size_px)) for teacher in facts.teachers]
    tokens = sum(
        2 * (teacher.class_width or 0) + count * (teacher.width + 2 * -(-teacher.width // 128))
        for teacher, count in zip(facts.teachers, cells, strict=True)
    )
    live = sum(3 * 4 * area_px(teacher.size_px) for teacher in facts.teachers)
    view = 3 * largest + (live if is_live else 2 * tokens if facts.device.kind == "cpu" else tokens) + 64
    return -(-2 * batch * view // (_MEGABYTES * 1_000_000)) * _MEGABYTES


def write_recipe(
    path: Path, ruled: Mapping[int, Ruled], extract: Mapping[str, Any] | None = None, extract_reasons: Mapping[str, str] | None = None
) -> None:
    """Write stages as a recipe that `train --recipe FILE` and `extract-features --recipe FILE` take, each value with its origin.

    `extract` is the file's `[extract]` table: how tokens are cached, for the commands that read it.
    """
    tables: dict[str, tuple[Mapping[str, Any], Mapping[str, str]]] = {}
    if extract:
        tables["extract"] = (extract, extract_reasons or {})
    for stage, recipe in sorted(ruled.items()):
        if stage != recipe.stage:
            raise BadInput(f"the recipe of stage {recipe.stage} was given as that of stage {stage}")
        tables[f"stage{stage}"] = (recipe.values, recipe.reasons)
    save_recipe(path, tables, "Decided by rule (docs/recipes-by-rule.md): each value with its reason below.")
