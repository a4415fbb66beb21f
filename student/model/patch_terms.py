"""`L_patch` of tokens, with its gradient in closed form.

Autograd of a cosine and a smooth L1 goes over all tokens some twenty times and keeps one to four copies of the student's until the backward
pass. Here it is some twelve times, on one thread of a CPU over as many tokens at a time as stay in the core's cache, and only the inputs
and three numbers a token are kept.
For student `s`, teacher `t` of D channels, `β` the bend of the smooth L1 and `clip` to [−β, β]:

    d cos / ds       = t / (|s|·|t|) − cos · s / |s|²
    d smooth-L1 / ds = clip(s − t) / (β·D)

Axes: n tokens, D channels.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from .recipe import LossConfig

COSINE_EPS = 1e-8
"""The least norm that a token is divided by."""
_PIECE_BYTES = 512 * 1024  # of tokens at a time: what a pass reads and writes stays in a core's second cache


def patch_terms(student_nD: Tensor, teacher_nD: Tensor, share_n: Tensor, config: LossConfig) -> Tensor:
    """Return `Σ share·(patch_cosine·(1 − cos) + patch_smooth_l1·smooth-L1)`, a scalar, computed in the precision of the shares.

    The gradient goes to the student alone. A token of zeros counts as orthogonal to everything.
    """
    loss: Tensor = _PatchTerms.apply(student_nD, teacher_nD, share_n, config)  # type: ignore[no-untyped-call]
    return loss


class _PatchTerms(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student_nD: Tensor, teacher_nD: Tensor, share_n: Tensor, config: LossConfig) -> Tensor:
        loss_n, cosine_n, student_norm_n, teacher_norm_n = (torch.empty_like(share_n) for _ in range(4))
        for rows in _pieces(student_nD):
            student, teacher = _pair(student_nD[rows], teacher_nD[rows], share_n.dtype)
            smooth_l1 = functional.smooth_l1_loss(student, teacher, beta=config.smooth_l1_beta, reduction="none").mean(dim=-1)
            student_norm, teacher_norm = (torch.linalg.vector_norm(one, dim=-1).clamp_min(COSINE_EPS) for one in (student, teacher))
            cosine = (student * teacher).sum(dim=-1) / (student_norm * teacher_norm)
            student_norm_n[rows], teacher_norm_n[rows], cosine_n[rows] = student_norm, teacher_norm, cosine
            loss_n[rows] = config.patch_cosine * (1.0 - cosine) + config.patch_smooth_l1 * smooth_l1
        ctx.config = config
        ctx.save_for_backward(student_nD, teacher_nD, share_n, cosine_n, student_norm_n, teacher_norm_n)
        return (share_n * loss_n).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        student_nD, teacher_nD, share_n, cosine_n, student_norm_n, teacher_norm_n = ctx.saved_tensors
        config: LossConfig = ctx.config
        weight_n1 = (share_n * upstream)[:, None]
        slope_n1 = weight_n1 * (config.patch_smooth_l1 / (config.smooth_l1_beta * student_nD.shape[-1]))
        of_student_n1 = weight_n1 * (config.patch_cosine * cosine_n / student_norm_n.square())[:, None]
        of_teacher_n1 = weight_n1 * (-config.patch_cosine / (student_norm_n * teacher_norm_n))[:, None]
        gradient_nD = torch.empty_like(student_nD)
        for rows in _pieces(student_nD):
            student, teacher = _pair(student_nD[rows], teacher_nD[rows], share_n.dtype)
            clipped = (student - teacher).clamp_(-config.smooth_l1_beta, config.smooth_l1_beta)
            # Three of the same kernel: on a CPU, torch multiplies by a column six times slower than it adds a product with one.
            gradient = torch.zeros_like(clipped).addcmul_(clipped, slope_n1[rows])
            gradient_nD[rows] = gradient.addcmul_(student, of_student_n1[rows]).addcmul_(teacher, of_teacher_n1[rows])
        return gradient_nD, None, None, None


def _pair(student: Tensor, teacher: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return student.to(dtype), teacher.to(dtype)


def _pieces(tokens_nD: Tensor) -> Iterator[slice]:
    """Yield the rows of one piece after the other: on one thread of a CPU.

    Elsewhere all rows are one piece: several threads wait for each other after each pass, so that there should be few of these.
    """
    count, channels = tokens_nD.shape
    one_thread = tokens_nD.device.type == "cpu" and torch.get_num_threads() == 1
    rows = max(1, _PIECE_BYTES // (4 * channels) if one_thread else count)
    for start in range(0, count, rows):
        yield slice(start, start + rows)
