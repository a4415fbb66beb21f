"""timm and transformers folders: their own library gives our tokens, and taking them in gives the same tensors."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.teachers.checkpoints.official import to_official
from eupe_pipeline.teachers.checkpoints.published import load_encoder, read_published
from eupe_pipeline.teachers.checkpoints.timm_folder import NAMES, read_timm, timm_name, timm_tokens, write_timm
from eupe_pipeline.teachers.checkpoints.transformers_folder import read_transformers, transformers_tokens, write_transformers
from eupe_pipeline.teachers.encoders.build import canonical
from eupe_pipeline.teachers.encoders.encoder import Encoder
from eupe_pipeline.teachers.encoders.preprocessing import HALF, Preprocessing

from .test_official import randomised

PREP = Preprocessing(64, mean=HALF, std=HALF)
SHAPES: list[Any] = ["vit-mini", "convnext-mini", {"name": "proxy-small", "depth": 1}, {"name": "convnext-mini", "layer_scale": None}]
Write = Callable[[Any, Any, Preprocessing, Path], None]
LAYOUTS: dict[str, tuple[Write, Any, Any]] = {
    "timm": (write_timm, read_timm, timm_tokens),
    "transformers": (write_transformers, read_transformers, transformers_tokens),
}


def worst(one: Any, other: Any) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
class TestFolder:
    """What every layout must do."""

    def write(self, layout: str, encoder: Encoder, folder: Path) -> Path:
        LAYOUTS[layout][0](encoder.state_dict(), encoder.architecture, PREP, folder)
        return folder

    @pytest.mark.parametrize("architecture", SHAPES)
    def test_taken_in_again_the_tensors_are_bitwise_the_same(self, layout: str, architecture: Any, tmp_path: Path) -> None:
        encoder = randomised(architecture)
        found = read_published(self.write(layout, encoder, tmp_path))
        assert (found.layout, found.notes, found.preprocessing) == (layout, [], PREP)
        scale = encoder.architecture["layer_scale"]
        assert found.architecture == {**encoder.architecture, "layer_scale": 1.0 if scale is None else scale}
        assert all(torch.equal(found.tensors[name], tensor) for name, tensor in encoder.state_dict().items())

    @pytest.mark.parametrize("sides", [(256, 256), (224, 224), (384, 384), (192, 320)])
    @pytest.mark.parametrize("architecture", ["vit-mini", "convnext-mini"])
    def test_the_library_gives_our_tokens_at_every_size(
        self, layout: str, architecture: str, sides: tuple[int, int], tmp_path: Path
    ) -> None:
        encoder = randomised(architecture)
        _, _, model = LAYOUTS[layout][1](self.write(layout, encoder, tmp_path))
        pixels = torch.randn(1, 3, *sides, generator=torch.Generator().manual_seed(2))
        with torch.no_grad():
            assert worst(encoder(pixels), LAYOUTS[layout][2](model, pixels)) <= 1e-4

    def test_an_oblong_input_is_written_and_read_as_height_and_width(self, layout: str, tmp_path: Path) -> None:
        encoder = randomised("vit-mini")
        prep = replace(PREP, size_px=(32, 64))
        LAYOUTS[layout][0](encoder.state_dict(), encoder.architecture, prep, tmp_path)
        found = read_published(tmp_path)
        assert (found.preprocessing, found.architecture) == (prep, encoder.architecture)
        if layout == "transformers":
            assert json.loads((tmp_path / "config.json").read_text())["image_size"] == [32, 64]
            assert json.loads((tmp_path / "preprocessor_config.json").read_text())["size"] == {"height": 32, "width": 64}

    def test_weights_that_do_not_fit_are_refused(self, layout: str, tmp_path: Path) -> None:
        self.write(layout, randomised("vit-mini"), tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        if layout == "timm":
            config["model_args"]["depth"] = 3
        else:
            config["num_hidden_layers"] = 3
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(BadInput):
            read_published(tmp_path)


@pytest.mark.parametrize("name", ["eupe_vitt16", "eupe_convnext_tiny"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_real_students_shape_passes_as_well(layout: str, name: str, tmp_path: Path) -> None:
    encoder = randomised(name)
    LAYOUTS[layout][0](encoder.state_dict(), encoder.architecture, Preprocessing(256), tmp_path)
    found = read_published(tmp_path)
    assert found.architecture == encoder.architecture
    assert all(torch.equal(found.tensors[key], tensor) for key, tensor in encoder.state_dict().items())


def test_every_student_has_its_own_builder_in_timm() -> None:
    assert {name: timm_name(canonical(name)) for name in NAMES} == NAMES
    assert timm_name(canonical("vit-mini")) == NAMES["eupe_vitt16"]


def test_timm_reads_our_official_file_into_the_same_tokens() -> None:
    """timm's own conversion of official checkpoints, written by others, agrees with ours."""
    import timm
    from timm.models.eva import checkpoint_filter_fn

    encoder = randomised({"name": "eupe_vitt16", "depth": 2})
    model = timm.create_model("vit_tiny_patch16_dinov3_qkvb", pretrained=False, num_classes=0, depth=2, global_pool="token").eval()
    model.load_state_dict(checkpoint_filter_fn(to_official(encoder.state_dict(), encoder.architecture), model), strict=True)
    pixels = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert worst(encoder(pixels), timm_tokens(model, pixels)) <= 1e-5


def test_timm_cannot_build_another_norm_eps_and_says_so(tmp_path: Path) -> None:
    encoder = randomised({"name": "vit-mini", "norm_eps": 1e-3})
    with pytest.raises(BadInput, match="norm_eps"):
        write_timm(encoder.state_dict(), encoder.architecture, PREP, tmp_path)


def test_an_official_file_is_taken_in_from_pth_and_from_safetensors(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    encoder = randomised("vit-mini")
    official = to_official(encoder.state_dict(), "vit-mini")
    torch.save(official, tmp_path / "one.pth")
    save_file(official, tmp_path / "two.safetensors")
    for path in (tmp_path / "one.pth", tmp_path / "two.safetensors"):
        found = read_published(path)
        assert found.layout == "eupe"
        assert all(torch.equal(found.tensors[name], tensor) for name, tensor in encoder.state_dict().items())


def test_a_folder_without_config_and_tensors_of_another_shape_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"config\.json"):
        read_published(tmp_path)
    encoder = randomised("vit-mini")
    with pytest.raises(BadInput, match="do not fit the architecture"):
        load_encoder(canonical({"name": "vit-mini", "width": 96}), encoder.state_dict())


def test_a_model_that_computes_something_else_from_fitting_weights_is_refused(tmp_path: Path) -> None:
    encoder = randomised("vit-mini")
    write_transformers(encoder.state_dict(), encoder.architecture, PREP, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "hidden_act": "relu"}))
    with pytest.raises(BadInput, match="computes other tokens"):
        read_published(tmp_path)


def test_another_kind_of_timm_model_is_refused(tmp_path: Path) -> None:
    import timm
    from safetensors.torch import save_file

    model = timm.create_model("test_vit", pretrained=False, num_classes=0)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    shown = {"input_size": [3, 160, 160], "interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.5] * 3, "num_classes": 0}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "test_vit", "num_classes": 0, "pretrained_cfg": shown}))
    with pytest.raises(BadInput, match="a student is an Eva"):
        read_published(tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", list(NAMES))
def test_all_six_students_give_our_tokens_in_the_library_at_every_size(layout: str, name: str, tmp_path: Path) -> None:
    encoder = randomised(name)
    LAYOUTS[layout][0](encoder.state_dict(), encoder.architecture, Preprocessing(256), tmp_path)
    _, _, model = LAYOUTS[layout][1](tmp_path)
    for sides in ((256, 256), (224, 224), (384, 384), (192, 320)):
        pixels = torch.randn(1, 3, *sides, generator=torch.Generator().manual_seed(2))
        with torch.no_grad():
            assert worst(encoder(pixels), LAYOUTS[layout][2](model, pixels)) <= 1e-4
