"""timm's Perception Encoder against its definition, written down here by itself: no other package that installs has one of its own.

open_clip and transformers both call timm for it. So the definition stands here in plain tensor algebra (Bolya et al. 2025, and the settings
that Meta publishes for its G models): patches without bias, learnt positions, a norm before the blocks, rotations in the complex plane by
column and row, eight heads in the attention pool. It shares nothing with timm but the names of the tensors. Other sizes than the native
one are not compared: there Meta interpolates positions bilinearly and leaves rotations in steps of one patch, while timm stretches both.
"""

import pytest
import torch
from eupe_pipeline.teachers.registry.table import TEACHERS
from eupe_pipeline.teachers.runtime import torchvision_guard
from torch import Tensor
from torch.nn import functional

from .test_numerics import TOLERANCE, State, randomised

torchvision_guard.install()

import timm  # noqa: E402 - only after the guard

WIDTH, HEADS, POOL_HEADS, SIDE = 48, 2, 8, 4
MODELS = {
    "pecore-g": "vit_pe_core_gigantic_patch14_448", "pecore-b": "vit_pe_core_base_patch16_224",
    "pelang-g": "vit_pe_lang_gigantic_patch14_448", "pespatial-g": "vit_pe_spatial_gigantic_patch14_448",
    "pespatial-b": "vit_pe_spatial_base_patch16_512",
}  # fmt: skip


def norm(x: Tensor, state: State, name: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]


def linear(x: Tensor, state: State, name: str) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def mlp(x: Tensor, state: State, name: str) -> Tensor:
    hidden = linear(x, state, f"{name}.fc1")
    return linear(hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5)), state, f"{name}.fc2")


def attention(q_BND: Tensor, k_BND: Tensor, v_BND: Tensor, heads: int, turn_NC: Tensor | None) -> Tensor:
    """Softmax attention; queries and keys are turned pairwise in the complex plane."""
    q, k, v = (x.reshape(*x.shape[:-1], heads, -1).transpose(1, 2) for x in (q_BND, k_BND, v_BND))
    if turn_NC is not None:
        q, k = (
            torch.view_as_real(torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2).contiguous()) * turn_NC).flatten(-2) for x in (q, k)
        )
    weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
    found: Tensor = (weights @ v).transpose(1, 2).flatten(-2)
    return found


def turns(side: int, head_width: int, first: int = 0) -> Tensor:
    """(side², head_width / 2) complex: the first half of the pairs turns by column, the second by row, counted from `first`."""
    speeds = 10_000.0 ** (-torch.arange(0, head_width // 2, 2) / (head_width // 2))
    angles = torch.arange(first, first + side)[:, None] * speeds
    by_column, by_row = angles[None].expand(side, side, -1), angles[:, None].expand(side, side, -1)
    both = torch.cat([by_column, by_row], dim=-1).flatten(0, 1)
    return torch.polar(torch.ones_like(both), both)


def perception_encoder(state: State, x_BCHW: Tensor, depth: int) -> Tensor:
    """Tokens (B, N, D) after the last block, normed where the model has a norm; a class token does not turn, and patches count from 1."""
    patch_px = state["patch_embed.proj.weight"].shape[-1]
    x = functional.unfold(x_BCHW, patch_px, stride=patch_px).transpose(1, 2) @ state["patch_embed.proj.weight"].flatten(1).T
    turn = turns(SIDE, WIDTH // HEADS, first=int("cls_token" in state))
    if "cls_token" in state:
        x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x], dim=1)
        turn = torch.cat([torch.ones_like(turn[:1]), turn])
    x = norm(x + state["pos_embed"], state, "norm_pre")
    for name in (f"blocks.{number}" for number in range(depth)):
        q, k, v = linear(norm(x, state, f"{name}.norm1"), state, f"{name}.attn.qkv").chunk(3, dim=-1)
        one = torch.ones(())
        x = x + state.get(f"{name}.gamma_1", one) * linear(attention(q, k, v, HEADS, turn), state, f"{name}.attn.proj")
        x = x + state.get(f"{name}.gamma_2", one) * mlp(norm(x, state, f"{name}.norm2"), state, f"{name}.mlp")
    return norm(x, state, "norm") if "norm.weight" in state else x


def attention_pool(state: State, tokens_BND: Tensor) -> Tensor:
    """One probe asks all tokens; (B, D)."""
    probe = linear(state["attn_pool.latent"].expand(len(tokens_BND), -1, -1), state, "attn_pool.q")
    k, v = linear(tokens_BND, state, "attn_pool.kv").chunk(2, dim=-1)
    found = linear(attention(probe, k, v, POOL_HEADS, None), state, "attn_pool.proj")
    return (found + mlp(norm(found, state, "attn_pool.norm"), state, "attn_pool.mlp"))[:, 0]


@pytest.mark.parametrize("name", sorted(MODELS))
def test_timm_computes_the_published_definition(name: str) -> None:
    assert TEACHERS[name].architecture["model"].startswith(MODELS[name])
    side_px = SIDE * TEACHERS[name].stride_px
    model = timm.create_model(MODELS[name], embed_dim=WIDTH, depth=2, num_heads=HEADS, img_size=side_px, ref_feat_shape=(SIDE, SIDE)).eval()
    state = randomised(model)
    x_BCHW = torch.randn(2, 3, side_px, side_px, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found, expected = model.forward_features(x_BCHW), perception_encoder(state, x_BCHW, depth=2)
        largest = float((found - expected).abs().max() / expected.abs().max())
        assert largest < TOLERANCE
        assert float((found[0, 0] - found[0, -1]).abs().max()) > 0.1  # positions matter, or nothing was compared
        print(f"{name}: largest error {largest:.1e} of the largest token")
        if name.startswith("pecore"):
            ours, theirs = model.forward_head(found, pre_logits=True), attention_pool(state, expected)
            pooled = float((ours - theirs).abs().max() / theirs.abs().max())
            assert pooled < TOLERANCE
            print(f"{name}: largest error {pooled:.1e} of the largest pooled number")


def test_the_comparison_can_fail() -> None:
    """Rows and columns exchanged in the rotations are another function."""
    exchanged = torch.cat(turns(SIDE, WIDTH // HEADS).chunk(2, dim=-1)[::-1], dim=-1)
    tokens = torch.randn(1, SIDE**2, WIDTH, generator=torch.Generator().manual_seed(1))
    right, wrong = (attention(tokens, tokens, tokens, HEADS, turn) for turn in (turns(SIDE, WIDTH // HEADS), exchanged))
    assert float((right - wrong).abs().max()) > 1e-3
