"""Vision towers of transformers from a folder: the teacher's contract, strictness, and the same numbers as timm's models of each family."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.core.identity import digest
from eupe_pipeline.teachers.checkpoints.weights import read_weights, save_weights
from eupe_pipeline.teachers.encoders.transformers_towers import FAMILIES
from eupe_pipeline.teachers.registry.canary import canary_images
from eupe_pipeline.teachers.registry.resolve import load_teacher, resolve_teacher
from torch import Tensor

SMALL = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 32, "patch_size": 8}
CONFIGS: dict[str, dict[str, Any]] = {
    "dinov3_vit": {"num_register_tokens": 4, "intermediate_size": 192},
    "dinov2": {},
    "dinov2_with_registers": {"num_register_tokens": 4},
    "siglip_vision_model": {"intermediate_size": 192},
    "siglip2_vision_model": {"intermediate_size": 192, "num_patches": 16},
    "clip_vision_model": {"intermediate_size": 192},
    "radio": {"max_img_size": 64, "num_cls_tokens": 3, "num_registers": 2, "summary_idxs": [0, 2]},
    "sam3_vit_model": {"intermediate_size": 96, "window_size": 2, "pretrain_image_size": 24, "global_attn_indexes": [1]},
}
RECORD = {
    "size": {"height": 32, "width": 32}, "resample": 3, "rescale_factor": 1 / 255, "image_mean": [0.5] * 3, "image_std": [0.25] * 3,
}  # fmt: skip


def save(folder: Path, model: Any) -> Path:
    model.save_pretrained(folder)
    itself = {"do_normalize": False} if model.config.model_type == "radio" else {}
    (folder / "preprocessor_config.json").write_text(json.dumps({**RECORD, **itself}))
    return folder


def small_model(kind: str) -> Any:
    import transformers

    torch.manual_seed(3)
    model = getattr(transformers, FAMILIES[kind].model)
    built = model(model.config_class(**SMALL, **CONFIGS[kind])).eval()
    if kind in ("radio", "sam3_vit_model"):  # theirs are zero, or all alike, at first
        with torch.no_grad():
            for tensor in built.parameters():
                tensor.add_(torch.randn_like(tensor) * 0.1)
    return built


def pixels(n: int = 2, size_px: int = 32) -> Tensor:
    return torch.from_numpy(canary_images(n, size_px))


def inputs(kind: str, pixels_BCHW: Tensor) -> dict[str, Tensor]:
    """What transformers' own processor would hand over."""
    if kind != "siglip2_vision_model":
        return {"pixel_values": pixels_BCHW}
    from transformers.models.siglip2.image_processing_siglip2 import convert_image_to_patches

    patches = torch.stack([convert_image_to_patches(image, 8) for image in pixels_BCHW])
    count = patches.shape[1]
    return {
        "pixel_values": patches,
        "pixel_attention_mask": torch.ones(len(patches), count, dtype=torch.int64),
        "spatial_shapes": torch.tensor([[int(count**0.5)] * 2] * len(patches)),
    }


@pytest.fixture(params=sorted(FAMILIES))
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return save(tmp_path / "model", small_model(str(request.param)))


class TestEveryFamily:
    def test_its_tokens_are_those_of_transformers(self, folder: Path) -> None:
        teacher = load_teacher(resolve_teacher(f"hf:{folder}"))
        kind = json.loads((folder / "config.json").read_text())["model_type"]
        model = small_model(kind)
        x = teacher.spec.preprocessing.apply(pixels())
        if kind == "radio":  # which normalises pixels in 0..1 itself
            x = pixels().permute(0, 3, 1, 2) / 255
        with torch.no_grad():
            expected = model(**inputs(kind, x))
        cls_BD, patch_BHWD = teacher(pixels())
        assert patch_BHWD.shape == (2, 4, 4, 48)
        if kind == "sam3_vit_model":
            assert cls_BD is None
        else:
            pooled = expected.summary if kind == "radio" else expected.pooler_output
            torch.testing.assert_close(cls_BD, pooled, rtol=0, atol=2e-6)
        if kind != "clip_vision_model":  # there we add the final norm
            torch.testing.assert_close(patch_BHWD.flatten(1, 2), expected.last_hidden_state[:, -16:], rtol=0, atol=2e-6)
        assert not teacher.training

    def test_the_identity_holds_the_whole_config_and_no_path(self, folder: Path, tmp_path: Path) -> None:
        spec = resolve_teacher(f"hf:{folder}")
        moved = resolve_teacher(f"hf:{shutil.copytree(folder, tmp_path / 'moved')}")
        assert spec.identity() == moved.identity()
        assert spec.architecture["config"]["num_hidden_layers"] == 2
        assert str(tmp_path) not in json.dumps(spec.identity())
        assert digest(spec.identity()) != digest(resolve_teacher(f"hf:{folder}", size_px=40).identity())

    def test_another_size_gives_another_grid(self, folder: Path) -> None:
        teacher = load_teacher(resolve_teacher(f"hf:{folder}", size_px=40))
        assert teacher(pixels(1, 40)).patch_BHWD.shape == (1, 5, 5, 48)

    @pytest.mark.parametrize("change", ["missing", "unexpected", "mismatched"])
    def test_a_file_that_does_not_fit_exactly_is_refused(self, folder: Path, change: str) -> None:
        path = folder / "model.safetensors"
        tensors = read_weights(path)
        name = next(name for name in sorted(tensors) if name.endswith("fc1.weight") or name.endswith("up_proj.weight"))
        if change == "missing":
            del tensors[name]
        elif change == "unexpected":
            tensors["encoder.extra.weight"] = torch.zeros(1)
        else:
            tensors[name] = tensors[name][:, :7].clone()
        save_weights(tensors, path)
        path.write_bytes(with_format(path.read_bytes()))
        with pytest.raises(BadInput, match=r"does not fit this architecture|cannot load"):
            load_teacher(resolve_teacher(f"hf:{folder}"))


def with_format(data: bytes) -> bytes:
    """The safetensors file with the metadata that transformers asks for."""
    size = int.from_bytes(data[:8], "little")
    header = json.dumps({**json.loads(data[8 : 8 + size]), "__metadata__": {"format": "pt"}}).encode()
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


@pytest.mark.parametrize("whole", ["ClipModel", "SiglipModel", "Siglip2Model"])
def test_of_a_checkpoint_with_two_towers_the_vision_tower_is_taken(whole: str, tmp_path: Path) -> None:
    import transformers

    torch.manual_seed(4)
    name = {"ClipModel": "CLIP", "SiglipModel": "Siglip", "Siglip2Model": "Siglip2"}[whole]
    text = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 96, "vocab_size": 99}
    config = getattr(transformers, f"{name}Config")(vision_config={**SMALL, "intermediate_size": 96, "num_patches": 16}, text_config=text)
    model = getattr(transformers, f"{name}Model")(config).eval()
    teacher = load_teacher(resolve_teacher(f"hf:{save(tmp_path / 'both', model)}"))
    with torch.no_grad():
        kind = teacher.spec.architecture["model_type"]
        expected = model.vision_model(**inputs(kind, teacher.spec.preprocessing.apply(pixels())))
    torch.testing.assert_close(teacher(pixels()).cls_BD, expected.pooler_output, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ({"config.json": None}, r"lacks config\.json"),
        ({"config.json": {"model_type": "bert"}}, r"unknown transformers vision model 'bert'.*dinov3_vit"),
        ({"config.json": {}}, "make no sense"),
        ({"preprocessor_config.json": {**RECORD, "size": {"height": 32, "width": 64}}}, "not square"),
        ({"model.safetensors.index.json": {}}, "which may differ"),
    ],
)
def test_a_folder_that_is_no_model_is_refused(damage: dict[str, Any], says: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "model", small_model("dinov2"))
    for name, record in damage.items():
        if record is None:
            (folder / name).unlink()
        else:
            (folder / name).write_text(json.dumps(record))
    with pytest.raises(BadInput, match=says):
        resolve_teacher(f"hf:{folder}")


def test_a_processor_that_counts_patches_means_the_square_of_so_many(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", small_model("siglip2_vision_model"))
    counted = {key: value for key, value in RECORD.items() if key != "size"} | {"patch_size": 8, "max_num_patches": 27, "resample": 2}
    (folder / "preprocessor_config.json").write_text(json.dumps(counted))
    spec = resolve_teacher(f"hf:{folder}")
    assert (spec.preprocessing.size_px, spec.preprocessing.interpolation, spec.grid) == (40, "bilinear", (5, 5))
    assert load_teacher(spec)(pixels(1, 40)).patch_BHWD.shape == (1, 5, 5, 48)


def test_weights_beside_the_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="lie in its folder"):
        resolve_teacher(f"hf:{tmp_path}", weights=tmp_path / "other" / "model.safetensors")


class TestImageNetsConstants:
    def test_they_replace_the_teacher_s_own_and_change_its_identity(self, tmp_path: Path) -> None:
        folder = save(tmp_path / "model", small_model("dinov2"))
        own, paper = (resolve_teacher(f"hf:{folder}", constants=constants) for constants in ("own", "imagenet"))
        assert own.preprocessing.mean == (0.5, 0.5, 0.5)
        assert paper.preprocessing == replace(own.preprocessing, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
        assert digest(own.identity()) != digest(paper.identity())
        with pytest.raises(BadInput, match="own"):
            resolve_teacher(f"hf:{folder}", constants="paper")
