"""timm's models against transformers' independent implementations, family by family, on small siblings with the same random weights.

The sibling has the option set of the row in the table (gated MLP, registers, layer scale, attention pool, pre-norm) at width 48, depth 2.
The largest error over all tokens stays below 2e-5 of the largest token.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from eupe_pipeline.teachers.registry.table import TEACHERS
from eupe_pipeline.teachers.runtime import torchvision_guard
from torch import Tensor, nn

torchvision_guard.install()

import timm  # noqa: E402 - only after the guard

TOLERANCE = 2e-5
SMALL = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3}
State = dict[str, Tensor]


def randomised(module: nn.Module) -> State:
    """Every tensor drawn anew, so that no zero bias or unit scale hides a difference."""
    torch.manual_seed(7)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point() and "period" not in name:
                tensor.copy_(torch.randn_like(tensor) * 0.15 + (1.0 if re.search(r"norm.*weight|lambda1", name) else 0.0))
    return module.state_dict()


def sibling(model: str, size_px: int, **options: Any) -> Any:
    found: nn.Module = timm.create_model(model, embed_dim=48, depth=2, num_heads=3, img_size=size_px, **options)
    return found.eval()


def renamed(state: State, rules: Mapping[str, str]) -> State:
    """Names by rule; q, k and v are joined, a bias that transformers does not have is zero."""
    found: State = {}
    for name, tensor in state.items():
        for pattern, replacement in rules.items():
            name = re.sub(pattern, replacement, name)
        found[name] = tensor
    for name in [name for name in found if name.endswith(".q.weight") and "blocks" in name]:
        stem = name.removesuffix("q.weight")
        width = len(found[name])
        found[stem + "qkv.weight"] = torch.cat([found.pop(f"{stem}{part}.weight") for part in "qkv"])
        found[stem + "qkv.bias"] = torch.cat([found.pop(f"{stem}{part}.bias", torch.zeros(width)) for part in "qkv"])
    return found


BLOCKS = {
    r"^(?:model|encoder)\.layers?\.": "blocks.", r"\.attention\.([qkv])_proj": r".attn.\1", r"\.self_attn\.([qkv])_proj": r".attn.\1",
    r"\.attention\.o_proj": ".attn.proj", r"\.self_attn\.out_proj": ".attn.proj", r"\.layer_norm([12])": r".norm\1",
    r"^embeddings\.patch_embeddings?\.(?:projection\.)?": "patch_embed.proj.", r"^post_layernorm": "norm", r"^layernorm": "norm",
    r"^embeddings\.cls_token": "cls_token", r"^embeddings\.register_tokens": "reg_token",
}  # fmt: skip


def dinov3(model: str = "vit_huge_plus_patch16_dinov3") -> tuple[Any, Any, State]:
    """H+ has a gated MLP and no biases for q, k, v; the students' `qkvb` shape has a plain MLP and biases, the key's zero."""
    import transformers

    gated = model.startswith("vit_huge_plus")
    biases = {"query_bias": not gated, "key_bias": False, "value_bias": not gated, "use_gated_mlp": gated, "mlp_bias": True}
    config = transformers.DINOv3ViTConfig(
        **SMALL, intermediate_size=192, num_register_tokens=4, hidden_act="silu" if gated else "gelu", **biases
    )
    theirs = transformers.DINOv3ViTModel(config).eval()
    rules = {**BLOCKS, r"\.layer_scale([12])\.lambda1": r".gamma_\1", "gate_proj": "fc1_g", "down_proj": "fc2"}
    state = renamed(randomised(theirs), {**rules, "up_proj": "fc1_x" if gated else "fc1"})
    state.pop("embeddings.mask_token")
    for name in [name for name in state if name.endswith("qkv.bias")]:
        joined = state.pop(name)
        if not gated:
            query, _, value = joined.chunk(3)
            state |= {name.replace("qkv.", "q_"): query, name.replace("qkv.", "v_"): value}
    return sibling(model, 64), theirs, state


def dinov2() -> tuple[Any, Any, State]:
    import transformers

    config = transformers.Dinov2WithRegistersConfig(**SMALL, image_size=56, patch_size=14, num_register_tokens=4, use_swiglu_ffn=True)
    theirs = transformers.Dinov2WithRegistersModel(config).eval()
    state = renamed(randomised(theirs), {**BLOCKS, r"\.layer_scale([12])\.lambda1": r".ls\1.gamma", "down_proj": "fc2"})
    state.pop("embeddings.mask_token")
    position = state.pop("embeddings.position_embeddings")
    state["cls_token"] = state["cls_token"] + position[:, :1]  # timm adds positions to patches alone
    state["pos_embed"] = position[:, 1:]
    for name in [name for name in state if "gate_proj" in name]:
        state[name.replace("gate_proj", "fc1")] = torch.cat([state.pop(name), state.pop(name.replace("gate", "up"))])
    return sibling("vit_giant_patch14_reg4_dinov2", 56), theirs, state


def siglip() -> tuple[Any, Any, State]:
    import transformers

    config = transformers.SiglipVisionConfig(**SMALL, intermediate_size=192, image_size=64, patch_size=16)
    theirs = transformers.SiglipVisionModel(config).eval()
    pool = {r"^head\.probe": "attn_pool.latent", r"^head\.attention\.out_proj": "attn_pool.proj", r"^head\.layernorm": "attn_pool.norm"}
    rules = {**BLOCKS, **pool, r"^head\.mlp": "attn_pool.mlp", r"^embeddings\.position_embedding\.weight": "pos_embed"}
    state = renamed(randomised(theirs), rules)
    state["pos_embed"] = state["pos_embed"][None]
    for kind in ("weight", "bias"):
        query, *rest = state.pop(f"head.attention.in_proj_{kind}").chunk(3)
        state |= {f"attn_pool.q.{kind}": query, f"attn_pool.kv.{kind}": torch.cat(rest)}
    return sibling("vit_giantopt_patch16_siglip_256", 64), theirs, state


def clip() -> tuple[Any, Any, State]:
    import transformers

    config = transformers.CLIPVisionConfig(**SMALL, intermediate_size=192, image_size=56, patch_size=14)
    theirs = transformers.CLIPVisionModel(config).eval()
    rules = {**BLOCKS, r"^pre_layrnorm": "norm_pre", r"^embeddings\.position_embedding\.weight": "pos_embed"}
    state = renamed(randomised(theirs), {**rules, r"^embeddings\.class_embedding": "cls_token"})
    state |= {"pos_embed": state["pos_embed"][None], "cls_token": state["cls_token"][None, None]}
    return sibling("vit_large_patch14_clip_quickgelu_336", 56, num_classes=0), theirs, state


FAMILIES: dict[str, tuple[Callable[[], tuple[Any, Any, State]], str]] = {
    "dinov3-h+": (dinov3, "vit_huge_plus_patch16_dinov3"),
    "eupe students": (lambda: dinov3("vit_small_patch16_dinov3_qkvb"), "vit_small_patch16_dinov3_qkvb"),
    "dinov2-g": (dinov2, "vit_giant_patch14_reg4_dinov2"),
    "siglip2-g": (siglip, "vit_giantopt_patch16_siglip_256"),
    "clip-l-quickgelu": (clip, "vit_large_patch14_clip_quickgelu_336"),
}


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_timm_and_transformers_give_the_same_tokens(name: str) -> None:
    make, model = FAMILIES[name]
    assert name not in TEACHERS or TEACHERS[name].architecture["model"].startswith(model)
    ours, theirs, state = make()
    assert set(state) == {key for key in ours.state_dict() if not key.startswith("head.")}
    ours.load_state_dict(state, strict=False)
    side = 56 if name in ("dinov2-g", "clip-l-quickgelu") else 64
    x_BCHW = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found, expected = ours.forward_features(x_BCHW), theirs(pixel_values=x_BCHW)
        states = theirs.post_layernorm(expected.last_hidden_state) if name == "clip-l-quickgelu" else expected.last_hidden_state
        largest = float((found - states).abs().max() / states.abs().max())
        assert largest < TOLERANCE
        if name == "siglip2-g":
            pooled = ours.forward_head(found, pre_logits=True)
            assert float((pooled - expected.pooler_output).abs().max() / pooled.abs().max()) < TOLERANCE
    assert float(found.std()) > 0.5
    print(f"{name}: largest error {largest:.1e} of the largest token")


def test_the_comparison_can_fail() -> None:
    """OpenAI's weights under GELU, as timm's plain row has it, are another function."""
    _, theirs, state = clip()
    gelu = sibling("vit_large_patch14_clip_336", 56, num_classes=0)
    gelu.load_state_dict(state, strict=False)
    x_BCHW = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        difference = gelu.forward_features(x_BCHW) - theirs.post_layernorm(theirs(pixel_values=x_BCHW).last_hidden_state)
    assert float(difference.abs().max()) > 1e-3
