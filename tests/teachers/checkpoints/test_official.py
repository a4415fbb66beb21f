"""Our tensors under the official hub's names: exact names and shapes, the same outputs, and back bit for bit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.teachers.checkpoints.official import from_official, rope_periods, to_official
from eupe_pipeline.teachers.encoders.build import build_encoder, canonical
from eupe_pipeline.teachers.encoders.encoder import Encoder

from ...official_hub import official_model

PUBLISHED_SHAPES = Path(__file__).parents[4] / "shared" / "eupe_state_dicts.json"
STUDENTS = ["eupe_vitt16", "eupe_vits16", "eupe_vitb16", "eupe_convnext_tiny", "eupe_convnext_small", "eupe_convnext_base"]
MINIS: list[Any] = ["vit-mini", "convnext-mini"]


def randomised(architecture: Any) -> Encoder:
    """Every tensor moved away from its start, so that a forgotten one shows."""
    torch.manual_seed(3)
    encoder = build_encoder(architecture).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return encoder


@pytest.mark.parametrize("name", STUDENTS)
def test_names_and_shapes_are_exactly_the_published_ones(name: str) -> None:
    if not PUBLISHED_SHAPES.is_file():
        pytest.skip(f"needs the list of published names and shapes: {PUBLISHED_SHAPES}")
    published = json.loads(PUBLISHED_SHAPES.read_text())[name]
    with torch.device("meta"):
        shapes = {key: torch.zeros(tensor.shape, device="cpu") for key, tensor in build_encoder(name).state_dict().items()}
    found = to_official(shapes, name)
    assert {key: list(tensor.shape) for key, tensor in found.items()} == published


@pytest.mark.parametrize("size_px", [(64, 64), (96, 64)])
@pytest.mark.parametrize("architecture", MINIS)
def test_the_official_mathematics_gives_our_tokens_from_an_export(architecture: Any, size_px: tuple[int, int]) -> None:
    encoder = randomised(architecture)
    model = official_model(encoder.architecture)
    model.load_state_dict(to_official(encoder.state_dict(), architecture), strict=True)
    pixels = torch.randn(2, 3, *size_px, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found, ours = model.forward_features(pixels), encoder(pixels)
        torch.testing.assert_close(found["x_norm_clstoken"], ours.cls_BD, atol=1e-4, rtol=0)
        torch.testing.assert_close(found["x_norm_patchtokens"], ours.patch_BHWD.flatten(1, 2), atol=1e-4, rtol=0)
        if "x_storage_tokens" in found:
            backbone: Any = encoder.backbone
            torch.testing.assert_close(found["x_storage_tokens"], backbone.forward_features(pixels)[:, 1:5], atol=1e-4, rtol=0)


@pytest.mark.parametrize("architecture", [*MINIS, {"name": "proxy-small", "depth": 1}, {"name": "vit-mini", "layer_scale": None}])
def test_there_and_back_is_bitwise_the_same_in_both_directions(architecture: Any) -> None:
    encoder = randomised(architecture)
    official = to_official(encoder.state_dict(), architecture)
    back = from_official(official)
    assert back.notes == []
    assert back.architecture == {**encoder.architecture, "layer_scale": back.architecture["layer_scale"]}
    assert all(torch.equal(back.tensors[name], tensor) for name, tensor in encoder.state_dict().items())
    again = to_official(back.tensors, back.architecture)
    assert again.keys() == official.keys()
    assert all(torch.equal(again[name], official[name]) for name in official)


def test_the_keys_bias_is_masked_and_the_mask_token_is_zero() -> None:
    found = to_official(randomised("vit-mini").state_dict(), "vit-mini")
    mask, bias = found["blocks.0.attn.qkv.bias_mask"], found["blocks.0.attn.qkv.bias"]
    assert [sorted(set(part.tolist())) for part in mask.chunk(3)] == [[1.0], [0.0], [1.0]]
    assert not bias.chunk(3)[1].any()
    assert bias.chunk(3)[0].any()
    assert not found["mask_token"].any()


def test_rotary_periods_are_those_that_timm_computes() -> None:
    backbone: Any = build_encoder("vit-mini").backbone
    assert torch.equal(rope_periods(canonical("vit-mini")), backbone.rope.periods)
    official = rope_periods(canonical("eupe_vitt16"))
    assert (len(official), official[0].item(), official.dtype) == (16, 1.0, torch.float32)


def changed(name: str, value: torch.Tensor) -> dict[str, torch.Tensor]:
    return {**to_official(randomised("vit-mini").state_dict(), "vit-mini"), name: value}


def test_what_has_no_influence_is_left_out_and_said() -> None:
    bias = torch.ones(3 * 48)
    found = from_official({
        **changed("blocks.0.attn.qkv.bias", bias), "projectors.0.weight": torch.ones(2), "mask_token": torch.ones(1, 48),
        "rope_embed.periods": rope_periods(canonical("vit-mini")).bfloat16(),
    })  # fmt: skip
    assert [note.split(":")[0] for note in found.notes] == ["left out", "left out", "replaced", "left out"]
    assert "projectors" in found.notes[0]
    assert "1 blocks" in found.notes[1]


@pytest.mark.parametrize(("name", "value", "why"), [
    ("rope_embed.periods", torch.ones(4), "not those of base 100"),
    ("blocks.1.attn.qkv.bias_mask", torch.ones(144), "bias_mask must be"),
    ("stray", torch.ones(1), r"1 do not belong \['stray'\]"),
])  # fmt: skip
def test_what_would_compute_something_else_is_refused(name: str, value: torch.Tensor, why: str) -> None:
    with pytest.raises(BadInput, match=why):
        from_official(changed(name, value))


def test_a_missing_tensor_a_second_norm_that_differs_and_strangers_are_refused() -> None:
    tensors = changed("norm.bias", torch.zeros(48))
    del tensors["norm.bias"]
    with pytest.raises(BadInput, match=r"1 tensors are missing \['norm.bias'\]"):
        from_official(tensors)
    convnext = to_official(randomised("convnext-mini").state_dict(), "convnext-mini")
    with pytest.raises(BadInput, match=r"norms\.3 differs"):
        from_official({**convnext, "norms.3.bias": convnext["norm.bias"] + 1})
    with pytest.raises(BadInput, match="neither storage_tokens nor downsample_layers"):
        from_official({"conv1.weight": torch.ones(1)})
