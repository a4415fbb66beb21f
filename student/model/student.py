"""The student: one encoder, and for each teacher an adapter for the class token and one for the patch tokens.

An adapter is `Linear(no bias) → LayerNorm → GELU → Linear(no bias)` to the teacher's width (paper, sections 3.1 and 4.1). Adapters are
dropped after training but kept beside the backbone: stage 3 starts from them and zero-shot evaluation needs them. A teacher without a class
token has no class adapter. An intermediate layer of a teacher is a target of its own, `TEACHER/4`, with an adapter of its own on the
student's final tokens: any encoder has those, and nothing but them is shipped. Axes: B images, H and W grid, C colours, D channels.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ...storage.core.errors import BadInput
from ...storage.features.layers import split_target
from ...storage.views.input_size import SizePx, size_hw, size_text
from ...teachers.encoders.build import build_encoder
from ...teachers.encoders.encoder import Encoder
from ...teachers.encoders.tokens import SampledTokens, Tokens, gather_tokens, grid_mismatch
from .grids import most_shifted, smallest_shift
from .recipe import TrainRecipe

NO_SAMPLED_TOKENS: Mapping[str, SampledTokens] = {}


@dataclass(frozen=True)
class TargetSpec:
    """What one teacher's targets look like."""

    cls_dim: int | None
    """Channels of the class token; None without one."""
    patch_dim: int
    """Channels of a patch token."""
    grid: tuple[int, int]
    """Rows and columns of patch tokens: at the teacher's own size, or as stored."""
    tokens: int | None = None
    """How many of the grid's tokens a view has, at recorded positions; None: all."""


def spec_of_target(specs: Mapping[str, TargetSpec], target: str) -> TargetSpec:
    """Return a target's spec from those of teachers: a layer has its teacher's patch tokens, and no class token."""
    teacher, layer = split_target(target)
    return specs[teacher] if layer is None else replace(specs[teacher], cls_dim=None)


def target_order(targets: Iterable[str]) -> list[str]:
    """Return targets by name, layers behind all teachers, so that layers do not change how the adapters of teachers begin."""

    def place(target: str) -> tuple[bool, str, int]:
        teacher, layer = split_target(target)
        return layer is not None, teacher, layer or 0

    return sorted(targets, key=place)


class Adapter(nn.Sequential):
    """Tokens (…, in_dim) → (…, out_dim)."""

    def __init__(self, in_dim: int, width: int, out_dim: int) -> None:
        first, last = nn.Linear(in_dim, width, bias=False), nn.Linear(width, out_dim, bias=False)
        super().__init__(first, nn.LayerNorm(width), nn.GELU(), last)


class TeacherHeads(nn.Module):
    """Both adapters of one teacher; `cls` is None for a teacher without a class token.

    `in_dim` is the width of the student's patch tokens, `cls_in_dim` that of its class token where it is another.
    """

    def __init__(self, in_dim: int, width: int, spec: TargetSpec, cls_in_dim: int | None = None) -> None:
        super().__init__()
        self.cls = Adapter(cls_in_dim or in_dim, width, spec.cls_dim) if spec.cls_dim is not None else None
        self.patch = Adapter(in_dim, width, spec.patch_dim)

    def forward(self, tokens: Tokens | SampledTokens) -> Tokens | SampledTokens:
        """Return the student's tokens, all or sampled ones, in the teacher's normalised space."""
        cls_BD = self.cls(tokens.cls_BD) if self.cls is not None else None
        if isinstance(tokens, SampledTokens):
            return tokens._replace(cls_BD=cls_BD, patch_BTD=self.patch(tokens.patch_BTD))
        return Tokens(cls_BD, self.patch(tokens.patch_BHWD))


class Student(nn.Module):
    """An encoder with adapters; `adapters` has one entry a teacher, in the order of `teacher_names`.

    Teacher names may hold characters that module names may not (dots), so the adapters are a list. Its order decides in which order sums
    are added and nothing else: in files an adapter has its teacher's name (`checkpoint_name`).
    """

    def __init__(self, encoder: Encoder, width: int, teachers: Mapping[str, TargetSpec]) -> None:
        super().__init__()
        self.encoder = encoder
        self.teacher_names = list(teachers)
        self.adapters = nn.ModuleList([TeacherHeads(encoder.width, width, spec, encoder.cls_width) for spec in teachers.values()])

    def forward(self, pixels_BHWC: Tensor, sampled: Mapping[str, SampledTokens] = NO_SAMPLED_TOKENS) -> dict[str, Tokens | SampledTokens]:
        """Map uint8 pixels (B, H, W, C) of any valid size to predicted tokens by teacher; those in `sampled` at its positions alone."""
        tokens: Tokens = self.encoder(self.encoder.preprocessing.apply(pixels_BHWC))
        heads_of = dict(zip(self.teacher_names, self.adapters, strict=True))
        return {name: heads(gather_tokens(tokens, sampled[name]) if name in sampled else tokens) for name, heads in heads_of.items()}


def checkpoint_name(module: nn.Module, name: str) -> str:
    """Return the name of a module's tensor in a checkpoint: adapters have their teacher's name instead of their number.

    Numbers follow the order in which teachers were given, and two teachers of one width would take each other's adapters.
    """
    if not isinstance(module, Student) or not name.startswith("adapters."):
        return name
    _, number, rest = name.split(".", 2)
    return f"adapters.{module.teacher_names[int(number)]}.{rest}"


def count_parameters(module: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def refuse_losses(recipe: TrainRecipe, grids: Mapping[str, Sequence[tuple[int, int]]], specs: Mapping[str, TargetSpec]) -> None:
    """Raise `BadInput` where a loss by name (`losses.LOSSES`) cannot be computed at one of the student's sizes.

    `grids` has the grids that each teacher's targets may have, by name.
    """
    loss = recipe.loss
    if loss.cls == "angle" and all(spec.cls_dim is None for spec in specs.values()):
        raise BadInput(f"loss.cls = 'angle' balances class tokens, and no teacher has one: {', '.join(specs)}; leave it at 'cosine'")
    if not (loss.relation or loss.shift):
        return
    with torch.device("meta"):
        encoder = build_encoder({**recipe.student.options, "name": recipe.student.architecture})
    for size_px in recipe.student.sizes_px:
        own = encoder.grid(*size_hw(size_px))
        who = f"{recipe.student.architecture} at {size_text(size_px)} px, which has a grid of {own[0]}×{own[1]}"
        for name, spec in specs.items():
            of_teacher = grids[split_target(name)[0]]  # its layers lie on its grid
            if loss.relation and (spec.tokens or max(math.prod(map(max, own, grid)) for grid in of_teacher)) < 2:
                raise BadInput(f"loss.relation compares two tokens of an image, and of teacher {name} and {who}, there is one; set it to 0")
            if loss.shift and spec.tokens is not None:
                raise BadInput(
                    f"loss.shift needs all tokens of a view, and the feature set of {name} holds {spec.tokens} of each: of each image "
                    "others would be left in the overlap; extract without --tokens-per-view, or set loss.shift to 0"
                )
        if loss.shift:
            _refuse_shift(who, size_px, own, grids)


def _refuse_shift(who: str, size_px: SizePx, own: tuple[int, int], grids: Mapping[str, Sequence[tuple[int, int]]]) -> None:
    """Raise `BadInput` where no shift is whole in the tokens of the student and of all teachers, and small enough."""
    for axis, side in enumerate(own):
        units = [smallest_shift(side, [grid[axis] for grid in together]) for together in itertools.product(*grids.values())]
        if size_hw(size_px)[axis] % side or max(units) > most_shifted(side):
            theirs = ", ".join(f"{name} {'/'.join(f'{h}×{w}' for h, w in several)}" for name, several in grids.items())
            raise BadInput(
                f"loss.shift moves the student's window by whole tokens of all grids and by a quarter of its own at most, and there is no "
                f"such shift for {who} (teachers: {theirs}); choose student.sizes_px so that one grid divides the other, and has four "
                "tokens or more, or set loss.shift to 0"
            )


def refuse_unequal_grids(recipe: TrainRecipe, specs: Mapping[str, TargetSpec]) -> None:
    """Raise `BadInput` when a teacher's tokens are sampled and the student's grid is not the stored one at each of its sizes."""
    sampled = {name: spec for name, spec in specs.items() if spec.tokens is not None}
    if not sampled:
        return
    with torch.device("meta"):
        encoder = build_encoder({**recipe.student.options, "name": recipe.student.architecture})
    for size_px in recipe.student.sizes_px:
        for name, spec in sampled.items():
            if (grid := encoder.grid(*size_hw(size_px))) != spec.grid:
                who = f"{recipe.student.architecture} at {size_text(size_px)} px"
                raise BadInput(f"teacher {name}: {grid_mismatch(who, grid, spec.grid)}")
