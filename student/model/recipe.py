"""The training recipe as frozen, typed data: every value that decides a run, with its range checked where it is made.

Nothing here reads files; the TOML loader fills these classes from tables of the same names. `OPERATIONAL` lists the values that change how
a run is carried out but not what it computes: a resumed run may change them. Defaults marked "ours" are not in the paper.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...storage.core.choices import CLASS_LOSSES, DEVICES, OPTIMIZERS, PRECISIONS, TARGET_SOURCES, NamedLoss
from ...storage.core.errors import BadInput, unknown_name
from ...storage.features.layers import layer_target, split_target
from ...storage.views.input_size import SizePx, as_size
from .view_config import ViewsConfig

ROPE_DRAWS = ("block", "forward")
INITIAL_WEIGHTS = ("official", "timm")
DECAYED = ("weights", "matrices")
PARALLEL = ("ddp", "fsdp")
ORDERS = ("auto", "global", "shards")
OPERATIONAL = (  # run.accumulate and the two after it change a run's rounding, and which masks drop-path draws, as other ranks do
    "student.init_from",  # the same start may lie elsewhere: its content is an identity of the run
    "run.checkpoint_every",
    "run.keep_checkpoints",
    "run.keep_best",
    "run.log_every",
    "run.prefetch_megabytes",
    "run.reader_threads",
    "run.accumulate",
    "run.recompute_activations",
    "run.parallel",
)

LEGACY_VALUES = {  # how runs were trained before these keys existed; a record leaves them out, so that such runs resume as they were begun
    "student.rope_draws": "forward",
    "student.initial_weights": "timm",
    "optimizer.decayed": "matrices",
}

ADDED_VALUES: dict[str, Any] = {
    "data.hold_out": 0.0, "teacher.layers": {}, "loss.cls": "cosine", "loss.relation": 0.0, "loss.shift": 0.0,
    "quantise.steps": 0, "quantise.bits": 8,
}  # fmt: skip
"""Of keys that came later, what every run of before did; a record leaves such a value out."""

_MAXIMA = {"reader_threads": 1024}  # beyond, the threads of no machine suffice


def _check(holds: bool, key: str, got: object, expected: str) -> None:
    """Raise `BadInput` unless `holds`."""
    if not holds:
        raise BadInput(f"recipe value {key} = {got!r} is out of range: expected {expected}")


def _check_choice(kind: str, got: str, known: tuple[str, ...]) -> None:
    """Raise `BadInput` that names the nearest choice for an unknown one."""
    if got not in known:
        raise unknown_name(kind, got, known)


def _checked_sizes(key: str, sizes: tuple[SizePx, ...]) -> tuple[SizePx, ...]:
    """Return input sizes in their one form; raise `BadInput` for those that no encoder has."""
    in_range = bool(sizes) and all(16 <= side <= 4096 for size in sizes for side in (size if isinstance(size, tuple) else (size,)))
    _check(in_range, key, sizes, "one or more sizes of 16 to 4096 px, each a number or [height, width]")
    return tuple(as_size(size, key) for size in sizes)


@dataclass(frozen=True)
class TeacherWeights:
    """Weights of one teacher's terms in the loss."""

    cls: float = 1.0
    """Weight of the class-token term."""
    patch: float = 1.0
    """Weight of the patch-token term (the paper's γ for DINOv3)."""

    def __post_init__(self) -> None:
        _check(self.cls >= 0 and self.patch >= 0 and self.cls + self.patch > 0, "teacher.weights", self, "≥ 0, not both 0")


@dataclass(frozen=True)
class StudentConfig:
    """`[student]`: what is trained."""

    architecture: str = "eupe_vitt16"
    """Name of an encoder architecture."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Values that replace the architecture's own, such as `layer_scale`."""
    sizes_px: tuple[SizePx, ...] = (256,)
    """Input sizes, each the side of a square or [height, width]; one is drawn for each step."""
    init_from: str = ""
    """Run whose backbone and adapters this run starts from, a folder or the URL it was trained to; empty for random weights."""
    drop_path: float = 0.0
    """Largest probability that a residual branch is left out of a sample, rising with depth (ours: the paper is silent)."""
    ema: float = 0.0
    """Decay of a moving average of the weights, saved beside the model; 0 for none (ours: the paper is silent)."""

    rope_draws: str = "block"
    """How often a ViT in training draws the rescale of its positions: anew in each `block` as the official code, or once a `forward`."""
    initial_weights: str = "official"
    """Random weights of EUPE's ViTs: `official` has std 0.02 in every linear layer, `timm` shrinks those that end block n by √(2n)."""

    def __post_init__(self) -> None:
        _check_choice("student.rope_draws", self.rope_draws, ROPE_DRAWS)
        _check_choice("student.initial_weights", self.initial_weights, INITIAL_WEIGHTS)
        _check(bool(self.architecture), "student.architecture", self.architecture, "a name")
        _check(0 <= self.drop_path < 1, "student.drop_path", self.drop_path, "in [0, 1)")
        _check(0 <= self.ema < 1, "student.ema", self.ema, "in [0, 1)")
        object.__setattr__(self, "sizes_px", _checked_sizes("student.sizes_px", self.sizes_px))


@dataclass(frozen=True)
class TeacherConfig:
    """`[teacher]`: where targets come from."""

    source: str = "cached"
    """`cached` reads feature sets, `live` runs the teacher beside the student."""
    sizes_px: tuple[SizePx, ...] = ()
    """Input sizes of the teachers, drawn apart from the student's: of live ones, or cached ones with a set each; empty: its own."""
    weights: Mapping[str, TeacherWeights] = field(default_factory=dict)
    """Loss weights by teacher name; 1.0 for teachers that are not named."""
    layers: Mapping[str, float] = field(default_factory=dict)
    """Weight of an intermediate layer's patch loss, by its block (`4`) for each teacher, or `TEACHER/4`; others are not read (ours)."""
    names: tuple[str, ...] = ()
    """The teachers that this recipe is about: feature sets of others, or fewer, are refused; empty for any."""
    drop_probability: float = 0.0
    """Probability that a teacher's loss counts nothing in a step; one teacher always stays (ours)."""

    def __post_init__(self) -> None:
        _check_choice("target source", self.source, TARGET_SOURCES)
        _check(0 <= self.drop_probability < 1, "teacher.drop_probability", self.drop_probability, "in [0, 1)")
        for key, weight in self.layers.items():
            block = key.rpartition("/")[2]
            _check(block.isdecimal() and block[0] != "0", "teacher.layers", key, "the number of a block from 1, as 4 or TEACHER/4")
            _check(0 <= weight < math.inf, f"teacher.layers.{key}", weight, "≥ 0")
        if self.sizes_px:
            object.__setattr__(self, "sizes_px", _checked_sizes("teacher.sizes_px", self.sizes_px))

    def layer_weight(self, teacher: str, layer: int) -> float:
        """Return the weight of a teacher's layer, 0 where it has none."""
        return self.layers.get(layer_target(teacher, layer), self.layers.get(str(layer), 0.0))

    def target_weights(self, targets: Iterable[str]) -> dict[str, TeacherWeights]:
        """Return the weights of each target, a teacher's or a layer's (`storage.features.layers`), by name."""
        weights = {}
        for target in targets:
            teacher, layer = split_target(target)
            of_teacher = self.weights.get(teacher, TeacherWeights())
            weights[target] = of_teacher if layer is None else TeacherWeights(patch=self.layer_weight(teacher, layer))
        return weights


@dataclass(frozen=True)
class AdapterConfig:
    """`[adapter]`: the heads that map student tokens to each teacher's width."""

    width: int = 3072
    """Hidden width (paper: 1536 in stage 1, 3072 after)."""

    def __post_init__(self) -> None:
        _check(1 <= self.width <= 65536, "adapter.width", self.width, "1 to 65536")


@dataclass(frozen=True)
class LossConfig:
    """`[loss]`: the patch loss's two terms, and losses by name beside the paper's (`losses.LOSSES`), all off unless asked for (ours)."""

    patch_cosine: float = 0.9
    """Weight of 1 − cos in the patch loss."""
    patch_smooth_l1: float = 0.1
    """Weight of smooth-L1 in the patch loss."""
    smooth_l1_beta: float = 1.0
    """Where smooth-L1 turns from quadratic to linear (ours)."""
    cls: str = "cosine"
    """Of class tokens: `cosine` of normalised ones, or `angle` in each teacher's own space, balanced by how far its tokens spread."""
    relation: float = 0.0
    """Weight of the cosines between an image's patch tokens, in proportion to the patch loss; 0 for none."""
    shift: float = 0.0
    """Deviation of the random shift of the student's window over the view, in the smallest shift that all grids have; 0 for none."""

    def __post_init__(self) -> None:
        for key, weight in {"loss.patch_cosine": self.patch_cosine, "loss.patch_smooth_l1": self.patch_smooth_l1}.items():
            _check(weight >= 0, key, weight, "≥ 0")
        _check(self.smooth_l1_beta > 0, "loss.smooth_l1_beta", self.smooth_l1_beta, "> 0")
        _check_choice("loss of class tokens", self.cls, CLASS_LOSSES)
        _check(0 <= self.relation <= 1000, "loss.relation", self.relation, "0 to 1,000")
        _check(0 <= self.shift <= 16, "loss.shift", self.shift, "0 to 16")

    def named(self) -> list[NamedLoss]:
        """Return which of the losses by name are on."""
        on: dict[NamedLoss, bool] = {"relation": self.relation > 0, "angle": self.cls == "angle", "shift": self.shift > 0}
        return [name for name in on if on[name]]


@dataclass(frozen=True)
class OptimizerConfig:
    """`[optimizer]`: update rule and learning-rate schedule."""

    name: str = "adamw"
    """The update rule, an optimiser of `student.model.optimizers`."""
    learning_rate: float = 2e-5
    """Peak of the schedule; not scaled with the batch."""
    weight_decay: float = 1e-4
    """Decoupled decay of the parameters that `decayed` names (ours)."""
    decayed: str = "weights"
    """`weights` of linear layers and convolutions alone; or all `matrices`, which takes class and register tokens in."""
    beta1: float = 0.9
    """Decay of the first moment (ours)."""
    beta2: float = 0.999
    """Decay of the second moment (ours)."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    warmup_share: float = 0.05
    """Share of the steps with a linear warm-up (ours)."""
    final_learning_rate: float = 0.0
    """Where the cosine ends (ours)."""
    clip_norm: float = 3.0
    """Largest norm of the whole gradient (ours); 0 for no clipping."""

    def __post_init__(self) -> None:
        _check_choice("optimizer", self.name, OPTIMIZERS)
        _check_choice("optimizer.decayed", self.decayed, DECAYED)
        _check(0 < self.learning_rate < 10, "optimizer.learning_rate", self.learning_rate, "above 0, below 10")
        _check(0 <= self.weight_decay < 10, "optimizer.weight_decay", self.weight_decay, "0 to 10")
        _check(0 <= self.beta1 < 1 and 0 <= self.beta2 < 1, "optimizer.beta1, beta2", (self.beta1, self.beta2), "in [0, 1)")
        _check(0 < self.eps < 1, "optimizer.eps", self.eps, "above 0, below 1")
        _check(0 <= self.warmup_share < 1, "optimizer.warmup_share", self.warmup_share, "in [0, 1)")
        ends_low = 0 <= self.final_learning_rate <= self.learning_rate
        _check(ends_low, "optimizer.final_learning_rate", self.final_learning_rate, "0 to learning_rate")
        _check(self.clip_norm >= 0, "optimizer.clip_norm", self.clip_norm, "≥ 0")


@dataclass(frozen=True)
class DataConfig:
    """`[data]`: which images a run sees, and in what order."""

    shares: Mapping[str, float] = field(default_factory=dict)
    """Share of the batches by dataset; each batch is all of one (paper: ImageNet-1k 0.10). Empty for a run over one dataset."""
    order: str = "auto"
    """`global` permutes all images, `shards` those of some whole shards at a time; `auto` is `shards` for a store behind a URL."""
    window_shards: int = 64
    """Shards among which images are shuffled at a time with `order = "shards"` (ours)."""
    replace_failed: bool = False
    """Whether an image without tokens gives its place to the next of its batch instead of being left out: `train --follow` sets it."""
    hold_out: float = 0.0
    """Share of the images that is never drawn, chosen by their ids, for `train --evaluate agreement` (ours)."""

    def __post_init__(self) -> None:
        _check_choice("order of images", self.order, ORDERS)
        _check(1 <= self.window_shards < 2**31, "data.window_shards", self.window_shards, "at least 1")
        whole = not self.shares or abs(sum(self.shares.values()) - 1) < 1e-9
        _check(whole and all(share > 0 for share in self.shares.values()), "data.shares", dict(self.shares), "above 0, 1 together")
        _check(0 <= self.hold_out < 1, "data.hold_out", self.hold_out, "0 or a share below 1, such as 0.01 for one percent")


@dataclass(frozen=True)
class RunConfig:
    """`[run]`: how long, in what portions, and what is kept."""

    steps: int = 390_000
    """Optimiser steps."""
    batch_size: int = 8192
    """Views in a step."""
    checkpoint_every: int = 1000
    """Steps between checkpoints; one is always written at the end."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints stay."""
    keep_best: bool = False
    """Whether the best checkpoint stays as well and becomes `best/model`: by evaluations where there are any, else by the smoothed loss."""
    log_every: int = 10
    """Steps between lines of metrics."""
    prefetch_megabytes: int = 4096
    """Host memory of a rank for its batches, the one in use and those made ahead of it (ours); two have to fit."""
    reader_threads: int = 2
    """Threads that decode, crop and read targets."""
    accumulate: int = 1
    """Parts in which a step's batch goes through the student, for less memory."""
    recompute_activations: bool = False
    """Whether blocks are computed again in the backward pass instead of kept (activation checkpointing)."""
    parallel: str = "ddp"
    """How several ranks share a student: `ddp` gives each a whole copy, `fsdp` a share of the weights."""

    def __post_init__(self) -> None:
        _check_choice("way to train in parallel", self.parallel, PARALLEL)
        for name, value in dataclasses.asdict(self).items():
            most = _MAXIMA.get(name, 2**40)
            whole = not isinstance(value, int) or isinstance(value, bool)
            _check(whole or 1 <= value <= most, f"run.{name}", value, f"1 to {most:,}")
        _check(self.accumulate <= self.batch_size, "run.accumulate", self.accumulate, "at most run.batch_size")


@dataclass(frozen=True)
class QuantiseConfig:
    """`[quantise]`: a last phase in which the encoder computes as its int8 graph will (ours; `student.quantised.aware`)."""

    steps: int = 0
    """The run's last steps that are trained so; 0 for none."""
    bits: int = 8
    """Of weights and activations: 8 alone, which both runtimes have static kernels for."""

    def __post_init__(self) -> None:
        _check(0 <= self.steps <= 2**40, "quantise.steps", self.steps, "0 (none) to run.steps")
        _check(self.bits == 8, "quantise.bits", self.bits, "8: ONNX Runtime and ExecuTorch have static kernels for int8 alone")


@dataclass(frozen=True)
class TrainRecipe:
    """One training run, wholly described."""

    stage: int = 2
    """1: teachers to proxy, 2: proxy to student, 3: live proxy at several scales."""
    seed: int = 0
    """Decides order, initial weights and every draw."""
    precision: str = "auto"
    """Autocast of the forward pass: `bf16`, `fp32`, or `auto` for bf16 where the device computes in it."""
    device: str = "auto"
    """`cpu`, `cuda`, or `auto` for CUDA where it is present."""
    compile: bool = False
    """Whether the student goes through torch.compile."""
    student: StudentConfig = field(default_factory=StudentConfig)
    """What is trained."""
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    """Where targets come from."""
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    """The heads."""
    loss: LossConfig = field(default_factory=LossConfig)
    """The losses."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """The update rule."""
    run: RunConfig = field(default_factory=RunConfig)
    """Length and portions."""
    data: DataConfig = field(default_factory=DataConfig)
    """Images and their order."""
    views: ViewsConfig = field(default_factory=ViewsConfig)
    """Which views the targets are of."""
    quantise: QuantiseConfig = field(default_factory=QuantiseConfig)
    """The last phase that knows of int8."""

    def __post_init__(self) -> None:
        _check(self.stage in (1, 2, 3), "stage", self.stage, "1, 2 or 3")
        _check(0 <= self.seed < 2**63, "seed", self.seed, "0 to 2^63 − 1")
        _check_choice("precision", self.precision, PRECISIONS)
        _check_choice("device", self.device, DEVICES)
        _check(self.quantise.steps <= self.run.steps, "quantise.steps", self.quantise.steps, f"at most run.steps = {self.run.steps}")
        for key, on in {"compile": self.compile, "run.recompute_activations": self.run.recompute_activations}.items():
            _check(not (self.quantise.steps and on), key, on, "false, as quantise.steps computes with a graph that torch.export traced")

    @property
    def first_aware_step(self) -> int:
        """Return the first step that knows of int8, `run.steps` where none does."""
        return self.run.steps - self.quantise.steps

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as nested plain data (tuples as lists), fit for JSON and for comparing."""
        return {key: _to_plain(value) for key, value in vars(self).items()} | {"views": _to_plain(self.views.stated())}

    def decisive(self) -> dict[str, Any]:
        """Return `to_dict` as `decisive` leaves it: equal for two runs that compute the same thing."""
        return decisive(self.to_dict())

    def as_recorded(self, decisive: Mapping[str, Any], origins: Mapping[str, str]) -> tuple["TrainRecipe", list[str]]:
        """Return the recipe with the `LEGACY_VALUES` that a begun run's `decisive` record lacks, and their keys.

        What was given by `--set` stays as it is.
        """
        recipe, taken = self, []
        for dotted, value in LEGACY_VALUES.items():
            table, key = dotted.split(".")
            part = getattr(recipe, table)
            if key not in decisive[table] and getattr(part, key) != value and origins.get(dotted) != "--set":
                recipe = dataclasses.replace(recipe, **{table: dataclasses.replace(part, **{key: value})})
                taken.append(dotted)
        return recipe, taken


def _to_plain(value: Any) -> Any:
    """Return dataclasses, mappings and tuples as nested dicts and lists."""
    if dataclasses.is_dataclass(value):
        return {key: _to_plain(part) for key, part in vars(value).items()}
    if isinstance(value, Mapping):
        return {key: _to_plain(part) for key, part in value.items()}
    return [_to_plain(part) for part in value] if isinstance(value, tuple | list) else value


def decisive(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return a plain recipe without OPERATIONAL, LEGACY_VALUES and ADDED_VALUES; teachers are sorted, as their order means nothing."""
    kept = {key: dict(value) if isinstance(value, Mapping) else value for key, value in plain.items()}
    kept.pop("views", None)  # the sets that were trained on have theirs in their identity
    left_out = LEGACY_VALUES | ADDED_VALUES
    for dotted in (*OPERATIONAL, *left_out):
        table, key = dotted.split(".")
        if key in kept.get(table, {}) and kept[table][key] == left_out.get(dotted, kept[table][key]):
            del kept[table][key]
    kept = {key: value for key, value in kept.items() if key != "quantise" or value}  # a table that runs of before have not
    kept["teacher"]["names"] = sorted(kept["teacher"].get("names", ()))
    return kept
