"""Students with unusual options through every format, and other people's models: the same tokens, or a reason to refuse."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.teachers.checkpoints.official import to_official
from eupe_pipeline.teachers.checkpoints.published import Published, load_encoder, read_published
from eupe_pipeline.teachers.checkpoints.timm_folder import write_timm
from eupe_pipeline.teachers.checkpoints.transformers_folder import write_transformers
from eupe_pipeline.teachers.encoders.architectures import Options
from eupe_pipeline.teachers.encoders.encoder import Encoder
from eupe_pipeline.teachers.encoders.preprocessing import Preprocessing

from .test_official import randomised

PREP = Preprocessing(64)
VITS: list[Options] = [
    {"registers": 0},
    {"registers": 1},
    {"layer_scale": None},
    {"registers": 0, "layer_scale": None},
    {"qkv_bias": False},
    {"mlp_hidden": 100},
    {"patch_px": 14},
    {"rope_rescale": 1.0},
    {"depth": 1, "heads": 1},
    {"width": 80, "heads": 5},
    {"registers": 0, "qkv_bias": False, "layer_scale": None, "mlp": "swiglu", "mlp_hidden": 136},
]
CONVNEXTS: list[Options] = [{"layer_scale": None}, {"depths": [1, 1, 1, 1]}, {"widths": [8, 40, 24, 56]}]
VARIANTS = [{"name": "vit-mini", **one} for one in VITS] + [{"name": "convnext-mini", **one} for one in CONVNEXTS]


def write_eupe(tensors: Any, architecture: Options, preprocessing: Preprocessing, folder: Path) -> Path:
    torch.save(to_official(tensors, architecture), folder / "weights.pth")
    return folder / "weights.pth"


Write = Callable[[Any, Options, Preprocessing, Path], Path | None]
WRITERS: dict[str, Write] = {"eupe": write_eupe, "timm": write_timm, "transformers": write_transformers}


def tokens_differ_by(one: Encoder, other: Encoder) -> float:
    side = 3 * one.stride_px
    pixels = torch.randn(1, 3, side, 2 * side, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return max(float((a - b).abs().max()) for a, b in zip(one(pixels), other(pixels), strict=True))


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize("architecture", VARIANTS, ids=str)
def test_a_student_of_unusual_options_comes_back_with_its_own_tokens(form: str, architecture: Options, tmp_path: Path) -> None:
    encoder = randomised(architecture)
    source = WRITERS[form](encoder.state_dict(), encoder.architecture, PREP, tmp_path) or tmp_path
    found = read_published(source)
    assert tokens_differ_by(encoder, load_encoder(found.architecture, found.tensors)) <= 1e-4
    training_only = ("layer_scale", "rope_rescale")  # not in an official file, and ones are written for no layer scale
    shape = {key: value for key, value in encoder.architecture.items() if key not in training_only}
    assert {key: value for key, value in found.architecture.items() if key not in training_only} == shape


def timm_folder(folder: Path, name: str, **arguments: Any) -> tuple[Path, Any]:
    """As timm itself writes it."""
    import timm
    from timm.models import save_for_hf

    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, num_classes=0, **arguments).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3 if parameter.ndim < 2 else 0.1)
    save_for_hf(model, str(folder), model_args=arguments or None, safe_serialization=True)
    return folder, model


def taken(folder: Path) -> tuple[Published, Encoder]:
    found = read_published(folder)
    return found, load_encoder(found.architecture, found.tensors)


SMALL = {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}


@pytest.mark.parametrize("name", ["convnext_atto", "convnext_femto", "convnext_pico"])
def test_convolutional_mlps_are_read_as_the_linear_layers_that_they_are(name: str, tmp_path: Path) -> None:
    folder, model = timm_folder(tmp_path, name, **SMALL)
    found, encoder = taken(folder)
    assert found.notes == ["read as linear layers: the 1×1 convolutions of its MLPs"]
    pixels = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        torch.testing.assert_close(encoder(pixels).cls_BD, model(pixels), atol=1e-5, rtol=0)


@pytest.mark.parametrize("pool", ["avg", "token", "max", ""])
def test_a_vit_that_timm_pools_otherwise_is_taken_in_with_its_class_token(pool: str, tmp_path: Path) -> None:
    folder, model = timm_folder(tmp_path, "vit_tiny_patch16_dinov3_qkvb", depth=2, global_pool=pool)
    assert json.loads((folder / "config.json").read_text()).get("global_pool", "") == pool
    found, encoder = taken(folder)
    assert found.notes == ([] if pool == "token" else [f"timm pools these tokens by {pool!r}; the class token is taken as cls"])
    pixels = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        torch.testing.assert_close(encoder(pixels).cls_BD, model.forward_features(pixels)[:, 0], atol=1e-5, rtol=0)


def test_timms_own_published_vits_say_avg_and_are_taken_in(tmp_path: Path) -> None:
    folder, _ = timm_folder(tmp_path, "vit_tiny_patch16_dinov3_qkvb")
    assert json.loads((folder / "config.json").read_text())["global_pool"] == "avg"
    assert "class token" in taken(folder)[0].notes[0]


@pytest.mark.parametrize(("name", "arguments", "why"), [
    ("convnext_tiny_hnf", SMALL, "norms its map before pooling"),
    ("convnext_atto_rms", SMALL, "norms without a bias"),
    ("convnext_zepto_rms_ols", SMALL, "overlapping stem"),
    ("convnextv2_atto", SMALL, "global response norms"),
    ("convnext_large_mlp", SMALL, "hidden layer in its head"),
    ("test_convnext", {}, "another activation"),  # GELU by tanh: its tokens differ by less than the comparison's tolerance
    ("convnext_tiny", {**SMALL, "output_stride": 16}, "stride of 16 px"),
    ("convnext_tiny", {**SMALL, "global_pool": "max"}, "pools by 'max'"),
    ("convnext_tiny", {**SMALL, "kernel_sizes": 5}, "do not fit"),
    ("vit_tiny_patch16_dinov3_qkvb", {"depth": 1, "use_fc_norm": True}, "norms its tokens after pooling"),
    ("vit_tiny_patch16_dinov3_qkvb", {"depth": 1, "class_token": False}, "no class token"),
    ("vit_tiny_patch16_dinov3_qkvb", {"depth": 1, "global_pool": "map"}, "do not fit"),
    ("vit_small_patch16_rope_224", {"depth": 1}, "built otherwise"),
    ("eva02_tiny_patch14_224", {"depth": 1}, "no rotary embedding|norms its tokens after"),
])  # fmt: skip
def test_a_timm_model_of_another_kind_is_refused_by_its_true_reason(name: str, arguments: Any, why: str, tmp_path: Path) -> None:
    folder, _ = timm_folder(tmp_path, name, **arguments)
    with pytest.raises(BadInput, match=why):
        read_published(folder)


def folder_of_pictures(tmp_path: Path, size: list[int]) -> Path:
    folder, _ = timm_folder(tmp_path, "convnext_tiny", **SMALL)
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"]["input_size"] = size
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_timm_folder_of_other_pictures_than_rgb_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="takes inputs of 1×64×64"):
        read_published(folder_of_pictures(tmp_path, [1, 64, 64]))


def test_a_timm_folder_of_pictures_that_are_not_square_is_read_with_their_height_and_width(tmp_path: Path) -> None:
    assert read_published(folder_of_pictures(tmp_path, [3, 64, 96])).preprocessing.size_px == (64, 96)


@pytest.mark.parametrize(("file", "change", "why"), [
    ("config.json", {"hidden_act": "gelu_pytorch_tanh"}, "activation is gelu_pytorch_tanh"),
    ("preprocessor_config.json", {"do_normalize": False}, "switches do_normalize off"),
    ("preprocessor_config.json", {"size": {"height": 64, "width": 0}}, "expected the side of a square"),
    ("preprocessor_config.json", {"size": {"shortest_edge": 64}}, "does not say how"),
])  # fmt: skip
def test_a_transformers_folder_that_computes_otherwise_is_refused(file: str, change: Any, why: str, tmp_path: Path) -> None:
    encoder = randomised("vit-mini")
    write_transformers(encoder.state_dict(), encoder.architecture, PREP, tmp_path)
    (tmp_path / file).write_text(json.dumps({**json.loads((tmp_path / file).read_text()), **change}))
    with pytest.raises(BadInput, match=why):
        read_published(tmp_path)
