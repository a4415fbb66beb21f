"""Students and the proxy: the official shapes, and the same numbers as an independent implementation."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.teachers.encoders.build import build_encoder
from eupe_pipeline.teachers.encoders.encoder import Encoder
from torch import Tensor

OFFICIAL = {
    "eupe_vitt16": 5_492_160,
    "eupe_vits16": 21_601_152,
    "eupe_vitb16": 85_669_632,
    "eupe_convnext_tiny": 27_820_128,
    "eupe_convnext_small": 49_454_688,
    "eupe_convnext_base": 87_566_464,
}
STATE_DICTS = Path(__file__).parents[4] / "shared" / "eupe_state_dicts.json"  # beside the checkout, where it is there


def on_meta(name: str) -> Encoder:
    with torch.device("meta"):
        return build_encoder(name)


def parameters(encoder: Encoder) -> int:
    return sum(parameter.numel() for parameter in encoder.parameters())


def only_official(encoder: Encoder) -> int:
    """Parameters of the official model that timm's lacks: the mask token, and the key biases that are masked to zero."""
    options = encoder.architecture
    return int(options["width"] * (1 + options["depth"])) if options["name"] == "vit" else 0


@pytest.mark.parametrize("name", sorted(OFFICIAL))
def test_a_student_has_the_official_number_of_parameters(name: str) -> None:
    encoder = on_meta(name)
    assert parameters(encoder) + only_official(encoder) == OFFICIAL[name]


def test_the_proxy_has_1_89_billion_parameters() -> None:
    assert parameters(on_meta("proxy-1.9b")) == 1_889_898_496


def official_name(name: str) -> str:
    """The official hub's name of a tensor of ours; q and v biases both map to the fused bias."""
    name = name.removeprefix("backbone.")
    for ours, theirs in (
        (r"reg_token", "storage_tokens"), (r"attn\.[qv]_bias", "attn.qkv.bias"), (r"gamma_([12])$", r"ls\1.gamma"),
        (r"stem\.", "downsample_layers.0."), (r"stages\.(\d)\.downsample", r"downsample_layers.\1"),
        (r"stages\.(\d)\.blocks", r"stages.\1"), (r"conv_dw", "dwconv"), (r"mlp\.fc([12])(?=.*pw)", r"pwconv\1"),
        (r"head\.norm", "norm"),
    ):  # fmt: skip
        name = re.sub(ours, theirs, name)
    return re.sub(r"^(stages.*)mlp\.fc", r"\1pwconv", name)


@pytest.mark.parametrize("name", sorted(OFFICIAL))
def test_every_tensor_has_its_counterpart_in_the_official_checkpoint(name: str) -> None:
    if not STATE_DICTS.is_file():
        pytest.skip(f"needs the official tensor list {STATE_DICTS}")
    theirs: dict[str, list[int]] = json.loads(STATE_DICTS.read_text())[name]
    encoder = on_meta(name)
    ours: dict[str, int] = {}
    for key, tensor in encoder.state_dict().items():
        ours[official_name(key)] = ours.get(official_name(key), 0) + tensor.numel()
    alone = set(theirs) - set(ours)
    assert not set(ours) - set(theirs)
    assert all(re.search(r"mask_token|rope_embed\.periods|bias_mask|^norms\.3\.", key) for key in alone)
    for key, count in ours.items():
        missing = encoder.width if key.endswith("attn.qkv.bias") else 0
        assert count + missing == math.prod(theirs[key]), key


@pytest.mark.parametrize(("name", "stride_px"), [("vit-mini", 8), ("convnext-mini", 32)])
def test_tokens_have_the_promised_shapes_at_any_multiple_of_the_stride(name: str, stride_px: int) -> None:
    encoder = build_encoder(name).eval()
    for height, width in ((64, 64), (32, 96)):
        cls_BD, patch_BHWD = encoder(torch.zeros(2, 3, height, width))
        assert cls_BD.shape == (2, encoder.width)
        assert patch_BHWD.shape == (2, height // stride_px, width // stride_px, encoder.width)
    assert encoder.stride_px == stride_px


@pytest.mark.parametrize("size", [(0, 64), (60, 64), (64, 33)])
def test_a_side_off_the_stride_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(BadInput, match="stride"):
        build_encoder("convnext-mini")(torch.zeros(1, 3, *size))


def test_a_patch_sits_where_its_pixels_are() -> None:
    encoder = build_encoder({"name": "vit-mini", "depth": 1, "layer_scale": 1e-9}).eval()
    pixels = torch.zeros(1, 3, 32, 32)
    pixels[:, :, 8:16, 24:32] = 5.0  # row 1, column 3 of 8-pixel patches
    with torch.no_grad():
        difference = (encoder(pixels).patch_BHWD - encoder(torch.zeros_like(pixels)).patch_BHWD).abs().sum(dim=-1)[0]
    assert difference.argmax().item() == 1 * 4 + 3
    assert difference.sum() - difference.max() < 1e-3


def test_rotary_coordinates_are_rescaled_in_training_only() -> None:
    encoder = build_encoder("vit-mini")
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert not torch.equal(encoder(pixels).patch_BHWD, encoder(pixels).patch_BHWD)
        encoder.eval()
        assert torch.equal(encoder(pixels).patch_BHWD, encoder(pixels).patch_BHWD)
        off = build_encoder({"name": "vit-mini", "rope_rescale": 1.0})
        assert torch.equal(off(pixels).patch_BHWD, off(pixels).patch_BHWD)


def test_layer_scale_starts_where_the_options_say() -> None:
    state = build_encoder({"name": "vit-mini", "layer_scale": 0.25}).state_dict()
    assert torch.equal(state["backbone.blocks.0.gamma_1"], torch.full((48,), 0.25))
    assert not any("gamma" in name for name in build_encoder({"name": "vit-mini", "layer_scale": None}).state_dict())


def test_swiglu_has_exactly_the_hidden_width_that_was_asked_for() -> None:
    for hidden in (8, 64, 136):
        state = build_encoder({"name": "vit-mini", "mlp": "swiglu", "mlp_hidden": hidden}).state_dict()
        assert state["backbone.blocks.1.mlp.fc1_g.weight"].shape == (hidden, 48)


def test_the_convnext_class_token_is_the_norm_of_the_mean() -> None:
    encoder = build_encoder("convnext-mini").eval()
    with torch.no_grad():
        cls_BD, patch_BHWD = encoder(torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    for tokens in (cls_BD, patch_BHWD):  # the fresh norm has weight 1 and bias 0
        torch.testing.assert_close(tokens.mean(dim=-1), torch.zeros(tokens.shape[:-1]), atol=1e-5, rtol=0)
    assert not torch.allclose(cls_BD, patch_BHWD.mean(dim=(1, 2)), atol=1e-4)


def to_transformers(encoder: Encoder) -> dict[str, Tensor]:
    """Our tensors under the names of transformers' DINOv3ViT, q, k and v apart and with a zero key bias."""
    state, out = encoder.backbone.state_dict(), {}
    for name, tensor in state.items():
        if "qkv" in name or "_bias" in name:
            continue
        for ours, theirs in (
            (r"^cls_token", "embeddings.cls_token"), (r"^reg_token", "embeddings.register_tokens"),
            (r"^patch_embed\.proj", "embeddings.patch_embeddings"), (r"^blocks\.", "layer."), (r"attn\.proj", "attention.o_proj"),
            (r"gamma_([12])", r"layer_scale\1.lambda1"), (r"fc1_g", "gate_proj"), (r"fc1_x|fc1", "up_proj"), (r"fc2", "down_proj"),
        ):  # fmt: skip
            name = re.sub(ours, theirs, name)
        out[name] = tensor
    for block in range(encoder.architecture["depth"]):
        prefix, zero = f"blocks.{block}.attn.", torch.zeros(encoder.width)
        biases = (state[prefix + "q_bias"], zero, state[prefix + "v_bias"])
        for letter, weight, bias in zip("qkv", state[prefix + "qkv.weight"].chunk(3), biases, strict=True):
            out[f"layer.{block}.attention.{letter}_proj.weight"] = weight
            out[f"layer.{block}.attention.{letter}_proj.bias"] = bias
    return out


@pytest.mark.parametrize("mlp", ["gelu", "swiglu"])
def test_a_vit_gives_the_numbers_of_transformers_dinov3(mlp: str) -> None:
    from transformers import DINOv3ViTConfig, DINOv3ViTModel  # seconds to import: only here

    torch.manual_seed(3)
    encoder = build_encoder({"name": "vit-mini", "mlp": mlp, "mlp_hidden": 96, "layer_scale": 0.7}).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():  # biases and norms too: zeros would hide a swap
            parameter.add_(torch.randn_like(parameter) * 0.05)
    config = DINOv3ViTConfig(
        patch_size=8, hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=3, num_register_tokens=4,
        query_bias=True, key_bias=True, value_bias=True, use_gated_mlp=mlp == "swiglu", layer_norm_eps=1e-5, rope_theta=100.0,
        hidden_act="silu" if mlp == "swiglu" else "gelu", attn_implementation="eager",
    )  # fmt: skip
    reference = DINOv3ViTModel(config).eval()
    names = {name.replace("model.layer.", "layer."): name for name in reference.state_dict()}
    ours = {names[name]: tensor for name, tensor in to_transformers(encoder).items()}
    assert set(reference.state_dict()) - set(ours) <= {"embeddings.mask_token"}
    reference.load_state_dict(ours, strict=False)
    pixels = torch.randn(2, 3, 40, 24)
    with torch.no_grad():
        theirs = reference(pixels).last_hidden_state
        cls_BD, patch_BHWD = encoder(pixels)
    torch.testing.assert_close(cls_BD, theirs[:, 0], atol=2e-5, rtol=0)
    torch.testing.assert_close(patch_BHWD.flatten(1, 2), theirs[:, 5:], atol=2e-5, rtol=0)
