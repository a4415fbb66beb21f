"""Folders of C-RADIO and SAM 3: pixels are normalised once, the tower is found in whole models, and everything else is named."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.teachers.checkpoints.weights import read_weights, save_weights
from eupe_pipeline.teachers.registry.canary import canary_images
from eupe_pipeline.teachers.registry.resolve import load_teacher, resolve_teacher
from torch import Tensor

from ..encoders.test_transformers_towers import RECORD, save, small_model, with_format


def tokens(folder: Path, size_px: int | None = None) -> tuple[Tensor | None, Tensor]:
    spec = resolve_teacher(f"hf:{folder}", size_px=size_px)
    cls_BD, patch_BHWD = load_teacher(spec)(torch.from_numpy(canary_images(2, spec.preprocessing.size_px)))
    return cls_BD, patch_BHWD


def change_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


class TestRadio:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return save(tmp_path / "radio", small_model("radio"))

    def test_its_summary_is_of_several_class_tokens_and_its_constants_are_the_preprocessing(self, folder: Path) -> None:
        spec = resolve_teacher(f"hf:{folder}")
        assert (spec.cls, spec.cls_dim, spec.patch_dim) == ("concatenated class tokens", 96, 48)
        assert spec.preprocessing.mean == (0.48145466, 0.4578275, 0.40821073)
        cls_BD, _ = tokens(folder)
        assert cls_BD is not None
        assert cls_BD.shape == (2, 96)

    def test_a_processor_that_normalises_too_is_refused(self, folder: Path) -> None:
        change_json(folder / "preprocessor_config.json", do_normalize=True)
        with pytest.raises(BadInput, match=r"C-RADIO does so itself.*twice would be wrong"):
            resolve_teacher(f"hf:{folder}")

    @pytest.mark.parametrize(("name", "value", "says"), [
        ("input_conditioner.norm_mean", torch.full((3, 1, 1), 0.5), r"normalises pixels by norm_mean \[0\.5"),
        ("summary_idxs", torch.tensor([0, 1]), r"of the class tokens \[0, 1\], its config\.json says \[0, 2\]"),
    ])  # fmt: skip
    def test_a_file_that_contradicts_its_config_is_refused(self, folder: Path, name: str, value: Tensor, says: str) -> None:
        path = folder / "model.safetensors"
        tensors = read_weights(path)
        stored = next(key for key in tensors if key.endswith(name))
        save_weights({**tensors, stored: value}, path)
        path.write_bytes(with_format(path.read_bytes()))
        with pytest.raises(BadInput, match=says):
            load_teacher(resolve_teacher(f"hf:{folder}"))


class TestSam3:
    @pytest.fixture
    def vit(self, tmp_path: Path) -> Path:
        return save(tmp_path / "vit", small_model("sam3_vit_model"))

    @pytest.mark.parametrize(("kind", "prefix", "rest"), [
        ("sam3_vision_model", "backbone.", ["neck.fpn_layers.0.proj1.weight"]),
        ("sam3", "vision_encoder.backbone.", ["vision_encoder.neck.fpn_layers.0.proj1.weight", "text_encoder.x", "detr_decoder.x"]),
        ("sam3_video", "detector_model.vision_encoder.backbone.", ["detector_model.text_encoder.x", "tracker_model.x", "tracker_neck.x"]),
    ])  # fmt: skip
    def test_of_a_whole_model_the_vit_is_taken(self, vit: Path, tmp_path: Path, kind: str, prefix: str, rest: list[str]) -> None:
        whole = tmp_path / kind
        config = json.loads((vit / "config.json").read_text())
        for key in {"sam3_vision_model": ["backbone_config"], "sam3": ["backbone_config", "vision_config"]}.get(
            kind, ["backbone_config", "vision_config", "detector_config"]
        ):
            config = {key: config}
        whole.mkdir()
        (whole / "config.json").write_text(json.dumps({**config, "model_type": kind}))
        (whole / "preprocessor_config.json").write_text(json.dumps(RECORD))
        tensors = {prefix + name: tensor for name, tensor in read_weights(vit / "model.safetensors").items()}
        save_weights({**tensors, **{name: torch.zeros(1) for name in rest}}, whole / "model.safetensors")
        assert torch.equal(tokens(whole)[1], tokens(vit)[1])
        assert resolve_teacher(f"hf:{whole}").architecture == resolve_teacher(f"hf:{vit}").architecture
        save_weights({**tensors, "prompt_encoder.x": torch.zeros(1)}, whole / "model.safetensors")
        with pytest.raises(BadInput, match=r"1 unexpected \(prompt_encoder\.x\)"):
            tokens(whole)

    def test_another_size_has_the_positions_that_a_model_of_that_size_is_built_with(self, vit: Path, tmp_path: Path) -> None:
        spec = resolve_teacher(f"hf:{vit}")
        teacher = load_teacher(spec)
        of_32 = torch.from_numpy(canary_images(2, 32))
        first = teacher(of_32).patch_BHWD
        larger = teacher.at_size(48)(torch.from_numpy(canary_images(2, 48))).patch_BHWD
        assert torch.equal(teacher(of_32).patch_BHWD, first)  # and back
        other = save(tmp_path / "other", small_model("sam3_vit_model"))
        change_json(other / "config.json", image_size=48)
        torch.testing.assert_close(larger, tokens(other, 48)[1], rtol=0, atol=2e-6)


def test_a_processor_that_does_not_normalise_leaves_pixels_in_0_to_1(tmp_path: Path) -> None:
    folder = save(tmp_path / "dino", small_model("dinov2"))
    change_json(folder / "preprocessor_config.json", do_normalize=False)
    prep = resolve_teacher(f"hf:{folder}").preprocessing
    assert (prep.mean, prep.std, prep.pixel_scale) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 255.0)
