"""Everything that the picture does not decide is computed once, by torch, and nothing else changes."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from eupe_pipeline.student.edge.fold import fold_constants, largest_value, plain_attention
from eupe_pipeline.student.export.runtimes import ExportWrapper, eager_runner
from torch import Tensor, fx, nn

from ...teachers.checkpoints.test_official import randomised


def targets(folded: fx.GraphModule) -> set[str]:
    """The operators of a graph."""
    return {str(node.target) for node in folded.graph.nodes if node.op == "call_function"}


def constants(folded: fx.GraphModule) -> list[Tensor]:
    return [value for name, value in folded.named_buffers() if name.startswith("constant_")]


def test_a_vits_rotary_tables_are_timms_own_numbers() -> None:
    encoder = randomised("vit-mini")
    pixels = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    folded = fold_constants(ExportWrapper(encoder), pixels)
    assert not {name for name in targets(folded) if any(word in name for word in ("arange", "sin", "cos", "meshgrid", "scaled_dot"))}
    rope: Any = encoder.backbone
    embedding = rope.rope.get_embed(shape=(4, 6))
    half = embedding.shape[-1] // 2
    assert any(one.numel() == half * 24 and torch.equal(one.reshape(24, half), embedding[:, :half]) for one in constants(folded))
    for found, wanted in zip(folded(pixels), eager_runner(encoder)(pixels), strict=True):
        torch.testing.assert_close(found, wanted, atol=2e-6, rtol=1e-5)


class Mixed(nn.Module):
    """Constants of each kind: of a table, in a list, of random numbers, in two places, and one that is changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.arange(12.0).reshape(3, 4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        twice = self.table[torch.tensor([2, 0])] * 2
        twice.add_(1)
        first, second = torch.split(torch.arange(4, device=x.device), 2)
        return torch.cat([x, twice]) + twice.sum(), x[:, first] - x[:, second], torch.rand_like(self.table[:1] * 1.0)


def test_constants_in_lists_in_two_places_and_changed_in_place_are_folded_and_random_numbers_are_not() -> None:
    module, x = Mixed().eval(), torch.ones(2, 4)
    folded = fold_constants(module, x)
    wanted = module(x)
    found = folded(x)
    assert torch.equal(found[0], wanted[0])
    assert torch.equal(found[1], wanted[1])
    assert not torch.equal(folded(x)[2], found[2])
    assert not {name for name in targets(folded) if "arange" in name or "mul" in name}


@pytest.mark.parametrize("given", [
    {}, {"scale": 0.3}, {"is_causal": True}, {"attn_mask": torch.linspace(-2, 2, 30, dtype=torch.float64).reshape(5, 6)},
    {"attn_mask": torch.arange(30).reshape(5, 6) % 4 != 1},
])  # fmt: skip
def test_plain_attention_is_torchs(given: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 4, n, 8, generator=generator, dtype=torch.float64) for n in (5, 6, 6))
    torch.testing.assert_close(plain_attention(query, key, value, **given), F.scaled_dot_product_attention(query, key, value, **given))
    grouped = plain_attention(query, key[:, :2], value[:, :2], enable_gqa=True, **given)
    torch.testing.assert_close(grouped, F.scaled_dot_product_attention(query, key[:, :2], value[:, :2], enable_gqa=True, **given))


class Peaks(nn.Module):
    """Its largest value is neither its input's nor its output's, and infinite ones do not count."""

    def forward(self, x: Tensor) -> Tensor:
        masked = torch.where(x > 0, x * 1000, -torch.inf)
        return torch.softmax(masked, -1)


def test_the_largest_value_is_that_of_any_step() -> None:
    x = torch.tensor([[1.0, -2.0, 3.0]])
    assert largest_value(fold_constants(Peaks(), x), x) == (3000.0, "aten.mul.Tensor")
