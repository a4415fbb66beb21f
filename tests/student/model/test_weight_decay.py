"""Weight decay covers what layers multiply by, and no token, norm, bias, scale or position embedding, whatever its shape."""

import pytest
import torch
from eupe_pipeline.student.model.optimizers import build_optimizer, is_decayed, parameter_groups
from eupe_pipeline.student.model.recipe import OptimizerConfig
from eupe_pipeline.student.model.student import Student, TargetSpec
from eupe_pipeline.teachers.encoders.build import build_encoder
from torch import Tensor, nn

ARCHITECTURES = ["vit-mini", "convnext-mini", "proxy-small", "timm:vit_tiny_patch16_224", "timm:convnextv2_atto"]
ARCHITECTURES += [
    "timm:vit_tiny_patch16_dinov3_qkvb",
    "timm:vit_small_patch14_reg4_dinov2",
    "timm:resnet10t",
    "timm:mobilenetv4_conv_small",
]
ARCHITECTURES += ["timm:swin_tiny_patch4_window7_224", "timm:tiny_vit_5m_224"]  # with tables of biases
TOKENS = ["cls_token", "reg_token", "mask_token", "pos_embed", "relative_position_bias_table", "freqs", "latent", "gamma"]


def student(architecture: str) -> Student:
    with torch.device("meta"):
        return Student(build_encoder(architecture), 16, {"t": TargetSpec(8, 8, (2, 2))})


def layers(module: nn.Module) -> set[str]:
    """The names of the weights of every linear layer and convolution, by the layers' types."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d)
    return {f"{name}.weight".lstrip(".") for name, one in module.named_modules() if isinstance(one, kinds)}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_weights_of_linear_layers_and_convolutions_decay_and_nothing_else(architecture: str) -> None:
    found = student(architecture)
    decaying = {name for name, parameter in found.named_parameters() if is_decayed(name, parameter)}
    assert decaying == layers(found)
    assert len(decaying) > 4


@pytest.mark.parametrize("name", TOKENS)
def test_a_token_or_an_embedding_has_none_whatever_its_shape(name: str) -> None:
    assert not is_decayed(f"encoder.backbone.{name}", torch.zeros(1, 4, 8))
    assert not is_decayed(name, torch.zeros(4, 8))
    assert is_decayed(f"encoder.backbone.{name}", torch.zeros(1, 4, 8), "matrices")


def test_class_and_register_tokens_of_a_student_have_no_decay() -> None:
    found = student("vit-mini")
    named = dict(found.named_parameters())
    tokens = [named["encoder.backbone.cls_token"], named["encoder.backbone.reg_token"]]
    for decayed, share in (("weights", 0.0), ("matrices", 0.3)):
        groups = parameter_groups(found, 0.3, decayed)
        held = [group["weight_decay"] for token in tokens for group in groups if any(one is token for one in group["params"])]
        assert held == [share, share]


def test_by_their_shape_the_groups_are_those_of_runs_before_in_the_same_order() -> None:
    """A checkpoint stores the optimiser's state by place, so that the order is part of a bit-equal resume."""
    found = student("vit-mini")
    matrices, vectors = parameter_groups(found, 0.1, "matrices")
    all_of = list(found.parameters())
    assert [id(one) for one in matrices["params"]] == [id(one) for one in all_of if one.ndim >= 2]
    assert [id(one) for one in vectors["params"]] == [id(one) for one in all_of if one.ndim < 2]


@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_a_token_without_gradient_stays_and_a_weight_without_gradient_shrinks(name: str) -> None:
    class Tiny(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cls_token, self.layer = nn.Parameter(torch.ones(1, 1, 4)), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.layer(x + self.cls_token)
            return found

    module = Tiny()
    before = module.layer.weight.detach().clone()
    optimizer = build_optimizer(module, OptimizerConfig(name=name, learning_rate=0.1, weight_decay=0.5))
    (module(torch.ones(1, 1, 4)) * 0).sum().backward()
    optimizer.step()
    assert torch.equal(module.cls_token.detach(), torch.ones(1, 1, 4))
    assert float(module.layer.weight.detach().norm()) < float(before.norm())
