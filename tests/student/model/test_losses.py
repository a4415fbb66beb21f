"""The losses against values worked out by hand, against an independent float64 formula, and against the library's interpolation."""

import math

import numpy as np
import pytest
import torch
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.student.model.losses import align_grids, cls_loss, distillation_loss, patch_loss, upsample
from eupe_pipeline.student.model.recipe import LossConfig, TeacherWeights
from eupe_pipeline.teachers.encoders.tokens import Tokens
from numpy.typing import NDArray
from torch import Tensor


def tensor(*values: float) -> Tensor:
    return torch.tensor(values)


def test_cls_loss_is_zero_for_parallel_one_for_orthogonal_two_for_opposite_tokens() -> None:
    assert float(cls_loss(tensor(3, 4)[None], tensor(6, 8)[None])) == pytest.approx(0, abs=1e-6)
    assert float(cls_loss(tensor(1, 0)[None], tensor(0, 5)[None])) == pytest.approx(1)
    assert float(cls_loss(tensor(1, 2)[None], tensor(-1, -2)[None])) == pytest.approx(2)


def test_cls_loss_averages_over_the_batch() -> None:
    student, teacher = torch.stack([tensor(1, 0), tensor(3, 4)]), torch.stack([tensor(1, 0), tensor(4, 3)])
    assert float(cls_loss(student, teacher)) == pytest.approx((0 + 1 - 24 / 25) / 2, abs=1e-6)


def test_patch_loss_by_hand() -> None:
    """Token 1: (1, 0) against (0, 0.5): cos 0, smooth-L1 (0.5·1, 0.5·0.25). Token 2: (2, 0) against (5, 0): cos 1, smooth-L1 (2.5, 0)."""
    student = torch.tensor([[[[1.0, 0.0], [2.0, 0.0]]]])
    teacher = torch.tensor([[[[0.0, 0.5], [5.0, 0.0]]]])
    cosine, smooth_l1 = (1 + 0) / 2, (0.5 + 0.125 + 2.5 + 0) / 4
    assert float(patch_loss(student, teacher, LossConfig())) == pytest.approx(0.9 * cosine + 0.1 * smooth_l1, abs=1e-6)


def test_smooth_l1_beta_moves_the_bend() -> None:
    student, teacher = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[1.5, 0.0]]]])
    config = LossConfig(patch_cosine=0.0, patch_smooth_l1=1.0, smooth_l1_beta=0.25)
    assert float(patch_loss(student, teacher, config)) == pytest.approx((0.5 - 0.125) / 2)


def float64_patch_loss(student: NDArray[np.float32], teacher: NDArray[np.float32], beta: float) -> float:
    """The paper's formula, token by token, in Python's own arithmetic."""
    cosines, smooth = [], []
    for s, t in zip(student.reshape(-1, student.shape[-1]), teacher.reshape(-1, teacher.shape[-1]), strict=True):
        pairs = [(float(a), float(b)) for a, b in zip(s, t, strict=True)]
        dot = math.fsum(a * b for a, b in pairs)
        norms = math.sqrt(math.fsum(a * a for a, _ in pairs)) * math.sqrt(math.fsum(b * b for _, b in pairs))
        cosines.append(1 - dot / norms)
        gaps = [abs(a - b) for a, b in pairs]
        smooth += [0.5 * gap * gap / beta if gap < beta else gap - beta / 2 for gap in gaps]
    return 0.9 * math.fsum(cosines) / len(cosines) + 0.1 * math.fsum(smooth) / len(smooth)


@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_patch_loss_equals_an_independent_float64_formula(beta: float) -> None:
    generator = np.random.default_rng(7)
    student, teacher = (generator.normal(size=(3, 4, 5, 33)).astype(np.float32) for _ in range(2))
    got = patch_loss(torch.from_numpy(student), torch.from_numpy(teacher), LossConfig(smooth_l1_beta=beta))
    assert float(got) == pytest.approx(float64_patch_loss(student, teacher, beta), rel=1e-6)


def test_losses_of_bf16_tokens_are_computed_in_fp32() -> None:
    student, teacher = torch.randn(2, 3, 3, 16).bfloat16(), torch.randn(2, 3, 3, 16)
    assert torch.equal(patch_loss(student, teacher, LossConfig()), patch_loss(student.float(), teacher, LossConfig()))


@pytest.mark.parametrize(("small", "large"), [((4, 4), (7, 7)), ((2, 3), (5, 3)), ((1, 1), (3, 2)), ((16, 16), (32, 32))])
def test_upsampling_equals_the_librarys_bicubic_interpolation(small: tuple[int, int], large: tuple[int, int]) -> None:
    tokens = torch.randn(2, *small, 6, requires_grad=True)
    reference = torch.nn.functional.interpolate(tokens.permute(0, 3, 1, 2), size=large, mode="bicubic", align_corners=False)
    ours = upsample(tokens, *large)
    torch.testing.assert_close(ours, reference.permute(0, 2, 3, 1), rtol=1e-5, atol=1e-5)
    weights = torch.randn_like(ours)
    ours_gradient = torch.autograd.grad((ours * weights).sum(), tokens, retain_graph=True)[0]
    reference_gradient = torch.autograd.grad((reference.permute(0, 2, 3, 1) * weights).sum(), tokens)[0]
    torch.testing.assert_close(ours_gradient, reference_gradient, rtol=1e-4, atol=1e-4)


def test_the_smaller_grid_is_upsampled_whoever_has_it() -> None:
    small, large = torch.randn(2, 3, 3, 4), torch.randn(2, 5, 5, 4)
    student, teacher = align_grids(small, large)
    assert student.shape == large.shape
    assert teacher is large
    student, teacher = align_grids(large, small)
    assert student is large
    assert teacher.shape == large.shape


def test_grids_that_cross_meet_at_the_larger_of_each_axis() -> None:
    student, teacher = align_grids(torch.randn(1, 2, 5, 4), torch.randn(1, 3, 4, 4))
    assert student.shape == teacher.shape == (1, 3, 5, 4)


def test_the_total_is_the_weighted_sum_over_teachers_and_terms() -> None:
    student = {name: Tokens(torch.randn(2, 8), torch.randn(2, 2, 2, 8)) for name in "ab"}
    targets = {"a": Tokens(torch.randn(2, 8), torch.randn(2, 2, 2, 8)), "b": Tokens(None, torch.randn(2, 3, 3, 8))}
    total, terms = distillation_loss(student, targets, LossConfig(), {"a": TeacherWeights(cls=0.5, patch=2.0)})
    assert set(terms["a"]) == {"cls", "patch"}
    assert set(terms["b"]) == {"patch"}
    assert float(total) == pytest.approx(float(0.5 * terms["a"]["cls"] + 2 * terms["a"]["patch"] + terms["b"]["patch"]), rel=1e-6)


def test_tokens_of_unequal_width_are_refused() -> None:
    with pytest.raises(BadInput, match=r"\(2, 8\) against \(2, 9\)"):
        cls_loss(torch.randn(2, 8), torch.randn(2, 9))
    with pytest.raises(BadInput, match="patch tokens"):
        patch_loss(torch.randn(2, 1, 1, 8), torch.randn(2, 1, 1, 9), LossConfig())
