"""The distillation losses, as pure functions of tensors, computed in fp32 (in fp64 for fp64 tokens).

For each teacher: `L_cls = 1 − cos` of the class tokens, and `L_patch = 0.9·(1 − cos) + 0.1·smooth-L1` averaged over patch tokens (paper,
section 3.2). `LOSSES` has the others, by name, each with the work that it follows; a recipe turns them on, and none is on by default.
Grids of unequal size are aligned after the adapter (`grids`). Of letterboxed images only tokens that see any of the image are `taught`: the
mean is over those of an image, then over images, so that the padding of one takes nothing from another (ours).
Axes: B images, N tokens of an image, H and W grid, D channels; student first, teacher second, everywhere.
"""

from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ...storage.core.choices import NamedLoss
from ...storage.core.errors import BadInput
from ...teachers.encoders.tokens import SampledTokens, Tokens
from .grids import NO_SHIFT, Shift, align_grids, overlap, shared_cells, upsample
from .patch_terms import COSINE_EPS, patch_terms
from .recipe import LossConfig, TeacherWeights

__all__ = [
    "LOSSES", "ClassSpace", "Places", "align_grids", "angle_loss", "angular_dispersion", "cls_loss", "cosine_loss", "distillation_loss",
    "patch_loss", "relation_loss", "shift_loss", "taught_tokens", "teacher_terms", "upsample",
]  # fmt: skip

_LEAST_NORM = 1e-6  # of a token whose direction is compared: below, it has none


class ClassSpace(NamedTuple):
    """A teacher's own space of class tokens, which its normalised ones are led back to: `token = scale·normalised + mean`."""

    mean_D: Tensor
    scale: Tensor
    """(D,), or (D, D) where the normalisation has a matrix."""
    dispersion: float
    """Mean squared angle, in rad², of the teacher's class tokens to their mean direction."""


class Places(NamedTuple):
    """Where letterboxed images lie in the student's and a teacher's input: top, left, bottom, right as shares of it, fp64."""

    student_B4: Tensor
    teacher_B4: Tensor


NO_SPACES: Mapping[str, ClassSpace] = MappingProxyType({})
NO_PLACES: Mapping[str, Places] = MappingProxyType({})


def _precise(tokens: Tensor) -> Tensor:
    """Return tokens in fp32; fp64 stays."""
    return tokens if tokens.dtype == torch.float64 else tokens.float()


def cosine_loss(student_D: Tensor, teacher_D: Tensor) -> Tensor:
    """Return the mean over all leading axes of `1 − cos`; a zero vector counts as orthogonal to everything."""
    return (1.0 - functional.cosine_similarity(_precise(student_D), _precise(teacher_D), dim=-1, eps=COSINE_EPS)).mean()


def cls_loss(student_BD: Tensor, teacher_BD: Tensor) -> Tensor:
    """Return `L_cls`, a scalar; raises `BadInput` when the shapes differ."""
    _check_same_shape("class tokens", student_BD, teacher_BD)
    return cosine_loss(student_BD, teacher_BD)


def patch_loss(student_BHWD: Tensor, teacher_BHWD: Tensor, config: LossConfig, taught_BHW: Tensor | None = None) -> Tensor:
    """Return `L_patch`, the mean over tokens, of two aligned grids or of (B, T, D) tokens at the same positions.

    `taught_BHW` says which tokens count, None: all. The gradient goes to the student alone. Raises `BadInput` when the shapes differ.
    """
    _check_same_shape("patch tokens", student_BHWD, teacher_BHWD)
    channels = student_BHWD.shape[-1]
    share = _share(student_BHWD, taught_BHW).flatten()
    return patch_terms(student_BHWD.reshape(-1, channels), teacher_BHWD.reshape(-1, channels), share, config)


def _share(tokens_BHWD: Tensor, taught_BHW: Tensor | None) -> Tensor:
    """Return what each token counts of the mean: as much as any other where all are taught."""
    dtype = torch.promote_types(tokens_BHWD.dtype, torch.float32)
    if taught_BHW is None:
        tokens = tokens_BHWD[..., 0].numel()
        return torch.full((tokens,), 1 / tokens, dtype=dtype, device=tokens_BHWD.device)
    return _share_of_taught(taught_BHW.flatten(1), dtype)


def _share_of_taught(taught_BN: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what each token counts of the mean over images of the mean over an image's taught tokens; those of an image without any, 0."""
    taught_BN = taught_BN.to(dtype)
    return taught_BN / (taught_BN.sum(dim=1, keepdim=True).clamp_min(1) * len(taught_BN))


def relation_loss(student_BND: Tensor, teacher_BND: Tensor, taught_BN: Tensor | None = None) -> Tensor:
    """Return the mean squared difference of the cosines between each two different tokens of an image.

    DINOv3's Gram anchoring, `‖XₛXₛᵀ − XₜXₜᵀ‖²` (Frobenius) of tokens of length 1, over the N·(N − 1) pairs. Ours are this mean in the place
    of the sum, and the teacher in the place of an earlier checkpoint; negative cosines count, as in the paper's formula. A token's
    cosine with itself says nothing and is left out, so that a sample of the tokens gives an unbiased estimate of the mean over all. The
    widths may differ; `taught_BN` says which tokens count, None: all. Raises `BadInput` for other numbers of tokens, and for a single one.
    """
    if student_BND.shape[:2] != teacher_BND.shape[:2] or student_BND.shape[1] < 2:
        shapes = f"{tuple(student_BND.shape)} against {tuple(teacher_BND.shape)}"
        raise BadInput(f"relations are between two or more tokens that student and teacher both have, got {shapes}")
    student_BNN, teacher_BNN = _cosines(student_BND), _cosines(teacher_BND)
    pairs = student_BNN.shape[1] * (student_BNN.shape[1] - 1)
    squares_BNN = (student_BNN - teacher_BNN).square()
    others = ~torch.eye(student_BNN.shape[1], dtype=torch.bool, device=squares_BNN.device)
    if taught_BN is not None:
        taught_BNN = others & taught_BN[:, :, None] & taught_BN[:, None, :]
        return (squares_BNN.flatten(1) * _share_of_taught(taught_BNN.flatten(1), squares_BNN.dtype)).sum()
    return (squares_BNN * others).sum(dim=(1, 2)).mean() / pairs


def _cosines(tokens_BND: Tensor) -> Tensor:
    unit_BND = functional.normalize(_precise(tokens_BND), dim=-1, eps=_LEAST_NORM)
    return unit_BND @ unit_BND.transpose(1, 2)


def angle_loss(student_BD: Tensor, teacher_BD: Tensor, dispersion: float) -> Tensor:
    """Return the mean squared angle between class tokens over the teacher's dispersion.

    After C-RADIOv4's balanced summary loss, which divides by the angular dispersion of each teacher; that both are squares is ours.
    A student that knows only a teacher's mean direction has 1 with each teacher, however narrow the cone of its tokens is; with `1 − cos`
    the widest cone would count most. Raises `BadInput` when the shapes differ.
    """
    _check_same_shape("class tokens", student_BD, teacher_BD)
    return _angles(student_BD, teacher_BD).square().mean() / dispersion


def _angles(one_BD: Tensor, other_BD: Tensor) -> Tensor:
    """Return angles in rad; by half the chord and half the sum, because the arc cosine's slope is infinite where tokens agree."""
    one_BD, other_BD = (functional.normalize(_precise(tokens), dim=-1, eps=_LEAST_NORM) for tokens in (one_BD, other_BD))
    return 2 * torch.atan2(torch.linalg.vector_norm(one_BD - other_BD, dim=-1), torch.linalg.vector_norm(one_BD + other_BD, dim=-1))


def angular_dispersion(tokens_nD: Tensor, weight_n: Tensor) -> float:
    """Return the weighted mean squared angle, in rad², of class tokens to the direction of their mean direction, computed in fp64."""
    unit_nD = functional.normalize(tokens_nD.double(), dim=-1, eps=_LEAST_NORM)
    share_n = weight_n.double() / weight_n.double().sum()
    mean_D = share_n @ unit_nD
    return float(share_n @ _angles(unit_nD, mean_D.expand_as(unit_nD)).square())


def shift_loss(student_BHWD: Tensor, teacher_BHWD: Tensor, shift: Shift, config: LossConfig) -> Tensor:
    """Return `L_patch` where a shifted student and an unshifted teacher see the same pixels.

    After C-RADIOv4's shift-equivariant loss, in which student and teachers are each shifted; that the student alone is, is ours.
    """
    return patch_loss(*overlap(student_BHWD, teacher_BHWD, shift), config)


class LossRow(NamedTuple):
    """A loss by name: how a recipe turns it on, its function, and the work that it follows."""

    setting: str
    function: Callable[..., Tensor]
    follows: str


LOSSES: dict[NamedLoss, LossRow] = {
    "relation": LossRow("loss.relation", relation_loss, "after Gram anchoring of DINOv3 (arXiv 2508.10104)"),
    "angle": LossRow("loss.cls", angle_loss, "after the balanced summary loss of C-RADIOv4 (arXiv 2601.17237)"),
    "shift": LossRow("loss.shift", shift_loss, "after the shift-equivariant loss of C-RADIOv4 (arXiv 2601.17237)"),
}


def described(config: LossConfig) -> dict[str, str]:
    """Return the work that each named loss of a recipe follows, by its name; {} for the paper's losses alone."""
    return {name: LOSSES[name].follows for name in config.named()}


def distillation_loss(
    student: Mapping[str, Tokens | SampledTokens],
    targets: Mapping[str, Tokens | SampledTokens],
    config: LossConfig,
    weights: Mapping[str, TeacherWeights],
    dropped: Collection[str] = (),
    *,
    shift: Shift = NO_SHIFT,
    spaces: Mapping[str, ClassSpace] = NO_SPACES,
    places: Mapping[str, Places] = NO_PLACES,
) -> tuple[Tensor, dict[str, dict[str, Tensor]]]:
    """Return `Σ_teachers (w_cls·L_cls + w_patch·(L_patch + w_relation·L_relation))`, and the unweighted terms by teacher and name.

    A teacher without a class token has no `cls` term; one that is not in `weights` has weights 1. A `dropped` teacher counts times 0, so
    that its adapters still have a gradient (DDP and FSDP wait for each one). `shift` is how far on the student's window lies, `spaces`
    the teachers' own spaces of class tokens, for the angle, `places` where letterboxed images lie, by target.
    """
    terms: dict[str, dict[str, Tensor]] = {}
    total: Tensor | float = 0.0
    for name, target in targets.items():
        factors = term_weights(weights.get(name, TeacherWeights()), config)
        terms[name] = teacher_terms(student[name], target, config, shift, spaces.get(name), places.get(name))
        for term, value in terms[name].items():
            total = total + (0.0 if name in dropped else factors[term]) * value
    return torch.as_tensor(total), terms


def term_weights(weight: TeacherWeights, config: LossConfig) -> dict[str, float]:
    """Return the weight of each term of a teacher, by the term's name."""
    return {"cls": weight.cls, "patch": weight.patch, "relation": weight.patch * config.relation}


def teacher_terms(
    student: Tokens | SampledTokens, target: Tokens | SampledTokens, config: LossConfig, shift: Shift = NO_SHIFT,
    space: ClassSpace | None = None, places: Places | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """Return the unweighted terms of one teacher; raises `BadInput` when only one of both sides is sampled, or both with a shift."""
    terms: dict[str, Tensor] = {}
    if target.cls_BD is not None and student.cls_BD is not None:
        terms["cls"] = _class_term(student.cls_BD, target.cls_BD, config, space)
    if isinstance(target, SampledTokens) and isinstance(student, SampledTokens):
        if shift != NO_SHIFT:
            raise BadInput("sampled tokens cannot be compared under a shift: of each image others would be left")
        pair = student.patch_BTD, target.patch_BTD
    elif isinstance(target, Tokens) and isinstance(student, Tokens):
        pair = overlap(student.patch_BHWD, target.patch_BHWD, shift)
    else:
        raise BadInput("a teacher's sampled tokens are compared with the student's at the same places: take those with `gather_tokens`")
    taught = None if places is None else taught_tokens(student, target, places, shift)
    terms["patch"] = patch_loss(*pair, config, taught)
    if config.relation:
        ours_BND, theirs_BND = (tokens.flatten(1, -2) for tokens in pair)
        terms["relation"] = relation_loss(ours_BND, theirs_BND, None if taught is None else taught.flatten(1))
    return terms


def taught_tokens(student: Tokens | SampledTokens, target: Tokens | SampledTokens, places: Places, shift: Shift = NO_SHIFT) -> Tensor:
    """Return which of two models' compared tokens see any of a letterboxed image: (B, h, w) of aligned grids, (B, T) of sampled ones."""
    if isinstance(target, SampledTokens):
        cells_BHW = shared_cells(*places, target.grid, target.grid)
        return cells_BHW.flatten(1).gather(1, target.position_BT.long())
    assert isinstance(student, Tokens)
    grids = [(patch_BHWD.shape[1], patch_BHWD.shape[2]) for patch_BHWD in (student.patch_BHWD, target.patch_BHWD)]
    return shared_cells(*places, grids[0], grids[1], shift)


def _class_term(student_BD: Tensor, teacher_BD: Tensor, config: LossConfig, space: ClassSpace | None) -> Tensor:
    """Return the class term: of normalised tokens, or by angles in the teacher's own space, where its tokens lie in a cone."""
    if config.cls != "angle":
        return cls_loss(student_BD, teacher_BD)
    if space is None:
        raise BadInput("loss.cls = 'angle' compares class tokens in each teacher's own space, and one of a teacher was not given")
    return angle_loss(_own(student_BD, space), _own(teacher_BD, space), space.dispersion)


def _own(normalised_BD: Tensor, space: ClassSpace) -> Tensor:
    tokens_BD = _precise(normalised_BD)
    return (tokens_BD * space.scale if space.scale.ndim == 1 else tokens_BD @ space.scale.T) + space.mean_D


def _check_same_shape(what: str, student: Tensor, teacher: Tensor) -> None:
    """Raise `BadInput` when the shapes differ."""
    if student.shape != teacher.shape:
        raise BadInput(f"{what} of student and teacher differ in shape: {tuple(student.shape)} against {tuple(teacher.shape)}")
