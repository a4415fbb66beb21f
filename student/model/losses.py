"""The distillation losses of every stage (paper, section 3.2), as pure functions of tensors, computed in fp32.

For each teacher: `L_cls = 1 − cos` of the class tokens, and `L_patch = 0.9·(1 − cos) + 0.1·smooth-L1` averaged over patch tokens. Grids of
unequal size are aligned after the adapter: the smaller one is upsampled to the larger by 2-D bicubic interpolation. That interpolation is
linear and separable, so it is done here by two small matrix products: the same values as `torch.nn.functional.interpolate` up to rounding,
and its backward pass is a matrix product too (on a CPU the library's bicubic backward is scalar code).
Axes: B images, H and W grid, D channels; student first, teacher second, everywhere.
"""

from collections.abc import Collection, Mapping
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from ...storage.core.errors import BadInput
from ...teachers.encoders.tokens import SampledTokens, Tokens
from .recipe import LossConfig, TeacherWeights

_COSINE_EPS = 1e-8


def cosine_loss(student_D: Tensor, teacher_D: Tensor) -> Tensor:
    """Return the mean over all leading axes of `1 − cos`; a zero vector counts as orthogonal to everything."""
    return (1.0 - functional.cosine_similarity(student_D.float(), teacher_D.float(), dim=-1, eps=_COSINE_EPS)).mean()


def cls_loss(student_BD: Tensor, teacher_BD: Tensor) -> Tensor:
    """Return `L_cls`, a scalar; raises `BadInput` when the shapes differ."""
    _check_same_shape("class tokens", student_BD, teacher_BD)
    return cosine_loss(student_BD, teacher_BD)


def patch_loss(student_BHWD: Tensor, teacher_BHWD: Tensor, config: LossConfig) -> Tensor:
    """Return `L_patch`, the mean over tokens, of two aligned grids or of (B, T, D) tokens at the same positions.

    Raises `BadInput` when the shapes differ.
    """
    _check_same_shape("patch tokens", student_BHWD, teacher_BHWD)
    student, teacher = student_BHWD.float(), teacher_BHWD.float()
    smooth_l1 = functional.smooth_l1_loss(student, teacher, beta=config.smooth_l1_beta)
    return config.patch_cosine * cosine_loss(student, teacher) + config.patch_smooth_l1 * smooth_l1


def align_grids(student_BHWD: Tensor, teacher_BHWD: Tensor) -> tuple[Tensor, Tensor]:
    """Return both grids at the larger height and the larger width of the two; one that has them already is returned as it is."""
    height = max(student_BHWD.shape[1], teacher_BHWD.shape[1])
    width = max(student_BHWD.shape[2], teacher_BHWD.shape[2])
    return upsample(student_BHWD, height, width), upsample(teacher_BHWD, height, width)


def upsample(tokens_BHWD: Tensor, height: int, width: int) -> Tensor:
    """Return a grid upsampled to (B, height, width, D), bicubic (a = −0.75, half-pixel centres)."""
    if tokens_BHWD.shape[1] != height:
        weights = _bicubic_matrix(tokens_BHWD.shape[1], height, tokens_BHWD.device, tokens_BHWD.dtype)
        tokens_BHWD = torch.einsum("gh,bhwd->bgwd", weights, tokens_BHWD)
    if tokens_BHWD.shape[2] != width:
        weights = _bicubic_matrix(tokens_BHWD.shape[2], width, tokens_BHWD.device, tokens_BHWD.dtype)
        tokens_BHWD = torch.einsum("gw,bhwd->bhgd", weights, tokens_BHWD)
    return tokens_BHWD


@lru_cache(maxsize=256)
def _bicubic_matrix(small: int, large: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return (large, small): each output position as a weighted sum of input positions, read off torch's interpolation."""
    with torch.no_grad():
        unit_vectors = torch.eye(small).reshape(1, small, small, 1)
        columns = functional.interpolate(unit_vectors, size=(large, 1), mode="bicubic", align_corners=False)
    return columns.reshape(small, large).t().contiguous().to(device, dtype)


def distillation_loss(
    student: Mapping[str, Tokens | SampledTokens],
    targets: Mapping[str, Tokens | SampledTokens],
    config: LossConfig,
    weights: Mapping[str, TeacherWeights],
    dropped: Collection[str] = (),
) -> tuple[Tensor, dict[str, dict[str, Tensor]]]:
    """Return `Σ_teachers (w_cls·L_cls + w_patch·L_patch)`, and the unweighted terms by teacher and name (`cls`, `patch`).

    A teacher without a class token has no `cls` term; one that is not in `weights` has weights 1. A `dropped` teacher counts times 0, so
    that its adapters still have a gradient (DDP and FSDP wait for each one).
    """
    terms: dict[str, dict[str, Tensor]] = {}
    total: Tensor | float = 0.0
    for name, target in targets.items():
        weight = weights.get(name, TeacherWeights())
        terms[name] = teacher_terms(student[name], target, config)
        for term, value in terms[name].items():
            total = total + (0.0 if name in dropped else getattr(weight, term)) * value
    return torch.as_tensor(total), terms


def teacher_terms(student: Tokens | SampledTokens, target: Tokens | SampledTokens, config: LossConfig) -> dict[str, Tensor]:
    """Return the unweighted terms of one teacher; raises `BadInput` when only one of both sides is sampled."""
    terms: dict[str, Tensor] = {}
    if target.cls_BD is not None and student.cls_BD is not None:
        terms["cls"] = cls_loss(student.cls_BD, target.cls_BD)
    if isinstance(target, SampledTokens) and isinstance(student, SampledTokens):
        terms["patch"] = patch_loss(student.patch_BTD, target.patch_BTD, config)
    elif isinstance(target, Tokens) and isinstance(student, Tokens):
        terms["patch"] = patch_loss(*align_grids(student.patch_BHWD, target.patch_BHWD), config)
    else:
        raise BadInput("a teacher's sampled tokens are compared with the student's at the same places: take those with `gather_tokens`")
    return terms


def _check_same_shape(what: str, student: Tensor, teacher: Tensor) -> None:
    """Raise `BadInput` when the shapes differ."""
    if student.shape != teacher.shape:
        raise BadInput(f"{what} of student and teacher differ in shape: {tuple(student.shape)} against {tuple(teacher.shape)}")
