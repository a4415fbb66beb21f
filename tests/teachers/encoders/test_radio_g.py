"""RADIOv2.5-g in its published layout: small, random weights give timm's DINOv2 giant's tokens; the full size has the published names."""

from pathlib import Path
from typing import Any

import pytest
import torch
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.teachers.checkpoints.convert import convert_weights
from eupe_pipeline.teachers.checkpoints.weights import save_weights
from eupe_pipeline.teachers.encoders.preprocessing import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from eupe_pipeline.teachers.encoders.published_vit import PublishedVitEncoder, build_published_vit, published_vit
from eupe_pipeline.teachers.registry.canary import canary_images
from eupe_pipeline.teachers.registry.resolve import load_teacher, resolve_teacher
from eupe_pipeline.teachers.registry.table import ROWS, TeacherDefinition, Terms
from eupe_pipeline.teachers.registry.teacher import Teacher
from torch import Tensor
from torch.nn import functional

from ..published_layouts import training_checkpoint

WIDTH, DEPTH, HEADS, HIDDEN, SIDE = 48, 2, 3, 32, 8
SMALL = published_vit("radio-dinov2", WIDTH, DEPTH, HEADS, patch_px=8, side=SIDE, gated=HIDDEN)


@pytest.fixture(autouse=True)
def _small_row(monkeypatch: pytest.MonkeyPatch) -> None:
    prep = Preprocessing(SIDE * 8, mean=CLIP_MEAN, std=CLIP_STD)
    row = TeacherDefinition(SMALL, build_published_vit, prep, WIDTH, WIDTH, 8, "radio-g-small", "here", Terms("none", None, "here"))
    monkeypatch.setitem(ROWS, "radio-g-small", row)


def names(depth: int, width: int, hidden: int, cells: int, patch_px: int, prefix: str = "radio_model.model.inner.") -> dict[str, Any]:
    """Every name and shape of NVlabs/RADIO: `dinov2_arch`'s giant with `vit_patch_generator` in the place of its embedding."""
    shapes: dict[str, Any] = {
        "patch_generator.embedder.weight": (width, 3 * patch_px**2), "patch_generator.embedder.bias": (width,),
        "patch_generator.pos_embed": (1, cells, width), "patch_generator.cls_token.token": (5, width), "mask_token": (1, width),
        "norm.weight": (width,), "norm.bias": (width,),
    }  # fmt: skip
    for block in range(depth):
        for norm in ("norm1", "norm2"):
            shapes |= {f"blocks.{block}.{norm}.weight": (width,), f"blocks.{block}.{norm}.bias": (width,)}
        layers = {"attn.qkv": (3 * width, width), "attn.proj": (width, width), "mlp.w12": (2 * hidden, width), "mlp.w3": (width, hidden)}
        for name, shape in layers.items():
            shapes |= {f"blocks.{block}.{name}.weight": shape, f"blocks.{block}.{name}.bias": shape[:1]}
        shapes |= {f"blocks.{block}.{scale}.grandma": (width,) for scale in ("ls1", "ls2")}
    return {f"{prefix}{name}": shape for name, shape in shapes.items()}


def small_tensors(prefix: str = "radio_model.model.inner.") -> dict[str, Tensor]:
    torch.manual_seed(13)
    found = {name: 0.2 * torch.randn(*shape) for name, shape in names(DEPTH, WIDTH, HIDDEN, SIDE**2, 8, prefix).items()}
    found = {name: tensor + ("norm" in name and name.endswith("weight")) + name.endswith("grandma") for name, tensor in found.items()}
    conditioner = {"norm_mean": torch.tensor(CLIP_MEAN).view(3, 1, 1), "norm_std": torch.tensor(CLIP_STD).view(3, 1, 1)}
    outer = prefix.removesuffix("model.inner.") if "radio_model" in prefix else ""
    return {**found, **{f"{outer}input_conditioner.{name}": tensor for name, tensor in conditioner.items()}}


def loaded(tensors: dict[str, Tensor], folder: Path) -> Teacher:
    save_weights(tensors, folder / "model.safetensors")
    return load_teacher(resolve_teacher("radio-g-small", weights=folder / "model.safetensors"))


def pixels(size_px: int) -> Tensor:
    return torch.from_numpy(canary_images(2, size_px))


@pytest.mark.parametrize("size_px", [64, 40])
def test_its_tokens_are_those_of_timms_dinov2_giant_of_that_shape(tmp_path: Path, size_px: int) -> None:
    import timm

    at, grid, tensors = "radio_model.model.inner.", size_px // 8, small_tensors()
    giant: Any = timm.create_model(
        "vit_giant_patch14_reg4_dinov2", img_size=size_px, patch_size=8, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS,
        mlp_ratio=2 * HIDDEN / WIDTH + 1e-6,
    ).eval()  # fmt: skip
    stored = tensors[f"{at}patch_generator.pos_embed"].reshape(1, SIDE, SIDE, WIDTH).permute(0, 3, 1, 2)
    positions = functional.interpolate(stored, (grid, grid), mode="bilinear", align_corners=True) if grid != SIDE else stored
    prefix = tensors[f"{at}patch_generator.cls_token.token"][None]
    state = {
        "cls_token": prefix[:, :1], "reg_token": prefix[:, 1:], "pos_embed": positions.flatten(2).transpose(1, 2),
        "patch_embed.proj.weight": tensors[f"{at}patch_generator.embedder.weight"].reshape(WIDTH, 3, 8, 8),
        "patch_embed.proj.bias": tensors[f"{at}patch_generator.embedder.bias"],
        "norm.weight": tensors[f"{at}norm.weight"], "norm.bias": tensors[f"{at}norm.bias"],
    }  # fmt: skip
    theirs = {"w12": "fc1", "w3": "fc2", "grandma": "gamma"}
    for name, tensor in tensors.items():
        if ".blocks." in name:
            state[".".join(theirs.get(part, part) for part in name.removeprefix(at).split("."))] = tensor
    giant.load_state_dict(state, strict=True)
    teacher = loaded(tensors, tmp_path)
    with torch.no_grad():
        features = giant.forward_features(teacher.spec.preprocessing.apply(pixels(size_px)))
    found = teacher.at_size(size_px)(pixels(size_px))
    assert found.cls_BD is not None
    torch.testing.assert_close(found.cls_BD, features[:, 0], atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(found.patch_BHWD.flatten(1, 2), features[:, 5:], atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("prefix", ["base_model.inner.", "model.inner.", "inner."])
def test_each_way_in_that_it_is_published_is_the_same_teacher(tmp_path: Path, prefix: str) -> None:
    wanted = loaded(small_tensors(), tmp_path)(pixels(64))
    unused = {"base_model.input_conditioner.norm_mean": torch.tensor(IMAGENET_MEAN), "_heads.0.mlp.weight": torch.zeros(1)}
    source = training_checkpoint(tmp_path / "g.pth.tar", state_dict_ema={**small_tensors(prefix), **unused})
    convert_weights(source, tmp_path / "g.safetensors")
    found = load_teacher(resolve_teacher("radio-g-small", weights=tmp_path / "g.safetensors"))(pixels(64))
    assert torch.equal(found.patch_BHWD, wanted.patch_BHWD)


@pytest.mark.parametrize(("change", "says"), [
    ({"blocks.0.mlp.w12.bias": None}, r"1 missing \(blocks\.0\.mlp\.fc1\.bias\)"),
    ({"patch_generator.cls_token.token": torch.ones(8, WIDTH)}, r"1 of another shape \(prefix\)"),
    ({"register_tokens": torch.ones(1, 4, WIDTH)}, r"1 unexpected \(register_tokens\)"),
    ({"blocks.0.mlp.fc1.weight": torch.ones(1)}, r"two tensors for one place: .* is the second that is our blocks\.0\.mlp\.fc1\.weight"),
    ({"blocks.1.ls1.gamma": torch.ones(WIDTH)}, r"two tensors for one place: .* is the second that is our blocks\.1\.ls1\.gamma"),
])  # fmt: skip
def test_what_does_not_fit_is_named(tmp_path: Path, change: dict[str, Tensor | None], says: str) -> None:
    at = "radio_model.model.inner."
    tensors = {**small_tensors(), **{f"{at}{name}": tensor for name, tensor in change.items()}}
    with pytest.raises(BadInput, match=says):
        loaded({name: tensor for name, tensor in tensors.items() if tensor is not None}, tmp_path)


def test_constants_that_the_pixels_are_not_normalised_by_are_refused(tmp_path: Path) -> None:
    imagenet = {"radio_model.input_conditioner.norm_std": torch.tensor(IMAGENET_STD)}
    with pytest.raises(BadInput, match=r"norm_std of this file .*expected CLIP's constants"):
        loaded({**small_tensors(), **imagenet}, tmp_path)


def test_the_full_size_has_every_name_and_shape_of_the_published_code() -> None:
    row = ROWS["radiov2.5-g"]
    with torch.device("meta"):
        encoder = row.build(row.architecture)
        published = {name: torch.empty(shape) for name, shape in names(40, 1536, 4096, 128**2, 14).items()}
    assert isinstance(encoder, PublishedVitEncoder)
    read, wanted = encoder.from_published(published), encoder.backbone.state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in read.items()} == {name: tuple(tensor.shape) for name, tensor in wanted.items()}
    assert (row.cls_dim, row.width, row.stride_px, row.preprocessing.size_px) == (1536, 1536, 14, 896)
