"""Tokens of intermediate blocks: timm's own to the bit, with the final norm, of every family that can give them; the others are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.teachers.checkpoints.weights import save_weights
from eupe_pipeline.teachers.encoders.build import build_encoder
from eupe_pipeline.teachers.encoders.transformers_towers import FAMILIES
from eupe_pipeline.teachers.registry.canary import canary_images
from eupe_pipeline.teachers.registry.layers import stored_layers
from eupe_pipeline.teachers.registry.resolve import load_teacher, resolve_teacher
from eupe_pipeline.teachers.registry.spec import TeacherSpec
from torch import Tensor

from ..conftest import SMALL_VIT, make_run
from .test_transformers_towers import save, small_model


def pixels(spec: TeacherSpec, count: int = 2) -> Tensor:
    return torch.from_numpy(canary_images(count, spec.preprocessing.size_px))


def student_run(folder: Path, architecture: Any) -> TeacherSpec:
    """A finished run of a student with random weights, as a teacher."""
    torch.manual_seed(2)
    encoder = build_encoder(architecture)
    record = {"architecture": encoder.architecture, "size_px": 32, "preprocessing": encoder.preprocessing.identity()}
    save_weights(encoder.state_dict(), folder / "model" / "backbone.safetensors")
    (folder / "model" / "model.json").write_text(json.dumps(record))
    return resolve_teacher(str(folder))


@pytest.fixture(params=["timm", "timm without class token", "eupe vit", "timm student"])
def vit(request: pytest.FixtureRequest, small_vit_weights: Path, tmp_path: Path) -> TeacherSpec:
    if request.param == "timm":
        return resolve_teacher(f"timm:{SMALL_VIT}", weights=small_vit_weights)
    if request.param == "timm without class token":
        return resolve_teacher("timm:test_vit4.r160_in1k", allow_random_weights=True)
    architecture = {"name": "vit-mini", "depth": 4} if request.param == "eupe vit" else "timm:test_vit2.r160_in1k"
    return student_run(tmp_path / "run", architecture)


def test_layers_are_timm_s_intermediates_with_its_norm_to_the_bit(vit: TeacherSpec) -> None:
    teacher = load_teacher(vit)
    backbone: Any = teacher.encoder.backbone
    depth = len(backbone.blocks)
    assert depth > 2
    wanted = tuple(range(1, depth + 1))
    final, layers = teacher.with_layers(pixels(vit), wanted)
    with torch.no_grad():
        of_timm = backbone.forward_intermediates(
            vit.preprocessing.apply(pixels(vit)), indices=[number - 1 for number in wanted], norm=True, intermediates_only=True
        )
    assert tuple(layers) == wanted
    for found_BHWD, timm_BCHW in zip(layers.values(), of_timm, strict=True):
        assert torch.equal(found_BHWD, timm_BCHW.permute(0, 2, 3, 1))
    assert not torch.equal(layers[1], layers[2])
    assert torch.equal(layers[depth], final.patch_BHWD)  # why the last block is not stored twice
    plain = teacher(pixels(vit))
    assert torch.equal(plain.patch_BHWD, final.patch_BHWD)
    assert plain.cls_BD is not None
    assert final.cls_BD is not None
    assert torch.equal(plain.cls_BD, final.cls_BD)


def test_layers_are_named_in_any_order_and_come_back_by_their_number(small_vit_weights: Path) -> None:
    spec = resolve_teacher(f"timm:{SMALL_VIT}", weights=small_vit_weights)
    teacher = load_teacher(spec)
    rising, falling = (teacher.with_layers(pixels(spec), layers).layers for layers in ((1, 3), (3, 1)))
    assert all(torch.equal(rising[layer], falling[layer]) for layer in (1, 3))


@pytest.mark.parametrize("kind", sorted(kind for kind, family in FAMILIES.items() if family.norm))
def test_layers_of_a_transformers_tower_are_its_blocks_outputs_through_its_final_norm(kind: str, tmp_path: Path) -> None:
    spec = resolve_teacher(f"hf:{save(tmp_path / 'model', small_model(kind))}")
    teacher = load_teacher(spec)
    final, layers = teacher.with_layers(pixels(spec), (1, 2))
    plain = teacher(pixels(spec))
    assert torch.equal(final.patch_BHWD, plain.patch_BHWD)
    assert torch.equal(layers[2], plain.patch_BHWD)
    outputs: list[Tensor] = []
    backbone: Any = teacher.encoder.backbone
    blocks = next(module for module in backbone.modules() if isinstance(module, torch.nn.ModuleList) and len(module) == 2)
    hook = blocks[0].register_forward_hook(lambda module, given, output: outputs.append(output[0] if isinstance(output, tuple) else output))
    teacher(pixels(spec))
    hook.remove()
    norm = getattr(getattr(backbone, "vision_model", backbone), FAMILIES[kind].norm)
    assert torch.equal(layers[1].flatten(1, 2), norm(outputs[0])[:, -16:])
    assert stored_layers(spec, (1, 2)) == (1,)


def test_the_last_block_is_no_other_layer_and_beyond_it_there_is_none(small_vit_weights: Path) -> None:
    spec = resolve_teacher(f"timm:{SMALL_VIT}", weights=small_vit_weights)
    depth = len(load_teacher(spec).encoder.backbone.blocks)  # type: ignore[arg-type]
    assert stored_layers(spec, (1, depth)) == (1,)
    assert stored_layers(spec, (depth,)) == stored_layers(spec, ()) == ()
    with pytest.raises(BadInput, match=rf"has {depth} blocks, and layer {depth + 1} was asked for.*give numbers of 1 to {depth - 1}"):
        stored_layers(spec, (1, depth + 1))


def test_a_network_without_such_blocks_is_refused(convnext_run_folder: Path, tmp_path: Path) -> None:
    own = tmp_path / "mine.py"
    own.write_text(
        "import torch\nfrom eupe_pipeline.teachers.encoders.own_encoder import OwnTeacher\n"
        "class Net(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        y = torch.nn.functional.avg_pool2d(x, 8).permute(0, 2, 3, 1)\n"
        "        return y.mean((1, 2)), y\n"
        "def build(weights):\n"
        "    return OwnTeacher(Net(), name='mine', size_px=16, stride_px=8, cls='mean of patch tokens')\n"
    )
    refused = (
        resolve_teacher(str(convnext_run_folder)), resolve_teacher(f"{own}:build"),
        resolve_teacher("timm:test_resnet.r160_in1k", allow_random_weights=True), resolve_teacher("sam-h", allow_random_weights=True),
    )  # fmt: skip
    for spec in refused:
        with pytest.raises(BadInput, match=rf"teacher {spec.name} gives its final tokens alone, and layers 1, 2 were asked for"):
            stored_layers(spec, (1, 2))


def test_a_run_s_vit_of_one_block_has_no_other_layer(tmp_path: Path) -> None:
    spec = resolve_teacher(str(make_run(tmp_path / "two", "vit-mini", 32)))
    assert stored_layers(spec, (1, 2)) == (1,)
    one = student_run(tmp_path / "one", {"name": "vit-mini", "depth": 1})
    with pytest.raises(BadInput, match="so there is no other layer to store"):
        stored_layers(one, (2,))
