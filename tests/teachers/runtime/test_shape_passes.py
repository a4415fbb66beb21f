"""Batch norm by its shape alone says what torch's own says on the meta device: shapes, and which tensors get a gradient."""

import pytest
import torch
from eupe_pipeline.teachers.runtime.shape_passes import BatchNormByShape
from torch import nn


@pytest.mark.parametrize(("norm", "shape"), [
    (nn.BatchNorm2d(4), (2, 4, 3, 5)),
    (nn.BatchNorm2d(4, affine=False), (2, 4, 3, 5)),
    (nn.BatchNorm2d(4, track_running_stats=False), (2, 4, 1, 1)),
    (nn.BatchNorm1d(4), (2, 4)),
    (nn.BatchNorm1d(4), (2, 4, 7)),
])  # fmt: skip
def test_shape_and_gradients_are_those_of_torch(norm: nn.Module, shape: tuple[int, ...]) -> None:
    norm = norm.to("meta")
    given = torch.zeros(shape, device="meta", requires_grad=True)
    tensors = [given, *norm.parameters()]
    with BatchNormByShape():
        quick = norm(given)
    right = norm(given)
    assert quick.shape == right.shape
    assert quick.dtype == right.dtype
    for gradient, wanted in zip(torch.autograd.grad(quick.sum(), tensors), torch.autograd.grad(right.sum(), tensors), strict=True):
        assert gradient.shape == wanted.shape


def test_another_width_is_refused() -> None:
    norm = nn.BatchNorm2d(4).to("meta")
    with BatchNormByShape(), pytest.raises(RuntimeError, match="is invalid for input of size 4"):
        norm(torch.zeros(2, 3, 5, 5, device="meta"))


def test_numbers_outside_the_block_are_torchs() -> None:
    with BatchNormByShape():
        pass
    found = nn.BatchNorm1d(1)(torch.tensor([[1.0], [3.0]]))
    assert found.flatten().tolist() == pytest.approx([-1.0, 1.0], abs=1e-4)
