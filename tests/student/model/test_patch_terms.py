"""The patch loss's gradient in closed form is autograd's of torch's own functions."""

from typing import Any

import pytest
import torch
from eupe_pipeline.student.model import patch_terms as module
from eupe_pipeline.student.model.patch_terms import patch_terms
from eupe_pipeline.student.model.recipe import LossConfig
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.bench_patch_loss import Loss, by_autograd, kept_bytes


def tokens(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def loss_and_gradient(function: Loss, student: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    student = student.clone().requires_grad_()
    loss = function(student, *rest)
    (gradient,) = torch.autograd.grad(3 * loss, student)
    return loss.detach(), gradient


@given(
    count=st.integers(1, 40), channels=st.integers(1, 33), scale=st.sampled_from([1e-3, 1.0, 30.0]), seed=st.integers(0, 99),
    config=st.builds(LossConfig, patch_cosine=st.sampled_from([0.0, 0.9]), patch_smooth_l1=st.sampled_from([0.0, 0.1, 1.0]),
                     smooth_l1_beta=st.sampled_from([0.1, 1.0, 2.5])),
)  # fmt: skip
def test_value_and_gradient_are_those_of_torchs_functions(count: int, channels: int, scale: float, seed: int, config: LossConfig) -> None:
    student, teacher = scale * tokens(count, channels, seed=seed), tokens(count, channels, seed=seed + 1)
    share = torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) / count
    loss, gradient = loss_and_gradient(patch_terms, student, teacher, share, config)
    expected, slope = loss_and_gradient(by_autograd, student, teacher, share, config)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)
    length = student.norm(dim=-1, keepdim=True)  # a cosine's slope, and what rounding makes of a slope of 0, go with 1 / length
    torch.testing.assert_close(gradient * length, slope * length, rtol=1e-9, atol=1e-12)


def test_gradient_is_the_slope_of_the_loss() -> None:
    student, teacher = tokens(5, 7).requires_grad_(), tokens(5, 7, seed=1)
    share = torch.tensor([0.5, 0.0, 0.1, 0.1, 0.3], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda one: patch_terms(one, teacher, share, LossConfig(smooth_l1_beta=0.7)), student)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_tokens_of_less_precision_are_compared_in_fp32(dtype: torch.dtype) -> None:
    student, teacher, share = tokens(300, 64, dtype=dtype), tokens(300, 64, seed=1, dtype=torch.float16), torch.full((300,), 1 / 300)
    loss, gradient = loss_and_gradient(patch_terms, student, teacher, share, LossConfig())
    expected, slope = loss_and_gradient(by_autograd, student, teacher, share, LossConfig())
    assert loss.dtype == torch.float32
    assert gradient.dtype == dtype
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, slope, rtol=2 * torch.finfo(dtype).eps if dtype == torch.bfloat16 else 1e-5, atol=1e-9)


def test_pieces_of_tokens_give_the_bits_of_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    student, teacher, share = (tokens(101, 24, seed=seed, dtype=torch.float32) for seed in range(3))
    found = []
    try:
        torch.set_num_threads(1)
        for piece_bytes in (1, 24 * 4 * 10, 1 << 30):
            monkeypatch.setattr(module, "_PIECE_BYTES", piece_bytes)
            assert len(list(module._pieces(student))) == {1: 101, 960: 11, 1 << 30: 1}[piece_bytes]
            found.append(loss_and_gradient(patch_terms, student, teacher, share[:, 0], LossConfig()))
    finally:
        torch.set_num_threads(threads)
    for loss, gradient in found[1:]:
        assert torch.equal(loss, found[0][0])
        assert torch.equal(gradient, found[0][1])


def test_a_token_of_zeros_is_orthogonal_to_everything() -> None:
    zeros, teacher, share = torch.zeros(2, 8), tokens(2, 8, dtype=torch.float32), torch.full((2,), 0.5)
    loss, gradient = loss_and_gradient(patch_terms, zeros, teacher, share, LossConfig(patch_smooth_l1=0.0))
    assert float(loss) == pytest.approx(0.9)
    _expected, slope = loss_and_gradient(by_autograd, zeros, teacher, share, LossConfig(patch_smooth_l1=0.0))
    torch.testing.assert_close(gradient, slope)
    loss, gradient = loss_and_gradient(patch_terms, teacher, zeros, share, LossConfig(patch_smooth_l1=0.0))
    assert float(loss) == pytest.approx(0.9)
    assert bool(gradient.isfinite().all())


def test_a_number_that_is_not_finite_reaches_the_loss() -> None:
    student = tokens(4, 8, dtype=torch.float32)
    student[2, 3] = torch.inf
    loss, _ = loss_and_gradient(patch_terms, student, tokens(4, 8, seed=1, dtype=torch.float32), torch.full((4,), 0.25), LossConfig())
    assert not loss.isfinite()


def test_only_numbers_a_token_are_kept_for_the_backward_pass_beside_the_tokens() -> None:
    student, teacher = torch.randn(72, 64).requires_grad_(), torch.randn(72, 64)
    share = torch.full((72,), 1 / 72)
    assert kept_bytes(patch_terms, student, teacher, share) == 4 * share.nbytes
    assert kept_bytes(by_autograd, student, teacher, share) > student.nbytes
