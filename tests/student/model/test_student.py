"""The student: adapters of the recipe's shape, one pair a teacher, on any encoder."""

import pytest
import torch
from eupe_pipeline.student.model.student import Adapter, Student, TargetSpec, count_parameters
from eupe_pipeline.teachers.encoders.build import build_encoder
from torch import nn

SPECS = {"one.five": TargetSpec(20, 24, (3, 3)), "no-cls": TargetSpec(None, 16, (2, 2))}


def test_an_adapter_is_linear_norm_gelu_linear_without_biases() -> None:
    adapter = Adapter(8, 32, 12)
    assert [type(layer) for layer in adapter] == [nn.Linear, nn.LayerNorm, nn.GELU, nn.Linear]
    assert count_parameters(adapter) == 8 * 32 + 2 * 32 + 32 * 12


@pytest.mark.parametrize(("architecture", "side_px", "grid"), [("vit-mini", 24, 3), ("convnext-mini", 64, 2)])
def test_predictions_have_each_teachers_widths_and_the_students_grid(architecture: str, side_px: int, grid: int) -> None:
    student = Student(build_encoder(architecture), 32, SPECS)
    predicted = student(torch.randint(0, 256, (2, side_px, side_px, 3), dtype=torch.uint8))
    assert list(predicted) == ["one.five", "no-cls"]
    assert predicted["one.five"].cls_BD.shape == (2, 20)
    assert predicted["one.five"].patch_BHWD.shape == (2, grid, grid, 24)
    assert predicted["no-cls"].cls_BD is None
    assert predicted["no-cls"].patch_BHWD.shape == (2, grid, grid, 16)


def test_class_and_patch_tokens_have_adapters_of_their_own() -> None:
    student = Student(build_encoder("vit-mini"), 32, SPECS)
    names = set(dict(student.adapters.named_parameters()))
    assert {"0.cls.0.weight", "0.patch.0.weight", "1.patch.0.weight"} <= names
    assert not any(name.startswith("1.cls") for name in names)


def test_every_parameter_gets_a_gradient() -> None:
    student = Student(build_encoder({"name": "vit-mini", "rope_rescale": 1.0}), 32, SPECS)
    predicted = student(torch.randint(0, 256, (2, 24, 24, 3), dtype=torch.uint8))
    sum(part.square().sum() for tokens in predicted.values() for part in tokens if part is not None).backward()
    assert [name for name, parameter in student.named_parameters() if parameter.grad is None] == []
