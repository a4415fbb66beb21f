"""EUPE's ViTs begin and draw as the official code's do, and on request as timm's do, which is how runs were trained before."""

import math

import pytest
import torch
from eupe_pipeline.teachers.encoders.build import build_encoder
from eupe_pipeline.teachers.encoders.encoder import Encoder, EupeVit
from eupe_pipeline.teachers.encoders.training_settings import scale_init_with_depth, set_activation_checkpointing, set_rope_rescale_draws
from timm.models.eva import Eva
from torch import Tensor, nn

ENDS = ("attn.proj", "mlp.fc2")


def vit(**changes: object) -> Encoder:
    torch.manual_seed(0)
    return build_encoder({"name": "vit", "width": 192, "depth": 12, "heads": 3, **changes})


def blocks(encoder: Encoder) -> nn.ModuleList:
    assert isinstance(encoder.backbone, EupeVit)
    found: nn.ModuleList = encoder.backbone.blocks
    return found


def draws(encoder: Encoder) -> list[Tensor]:
    """The rotary embeddings that the blocks are given in one forward pass, in order."""
    seen: list[Tensor] = []
    for block in blocks(encoder):
        block.register_forward_pre_hook(lambda module, args, given: seen.append(given["rope"]), with_kwargs=True)
    torch.manual_seed(3)
    encoder(torch.zeros(2, 3, 64, 64))
    return seen


@pytest.mark.parametrize("mlp", ["gelu", "swiglu"])
def test_every_linear_layer_begins_at_two_hundredths_at_every_depth(mlp: str) -> None:
    encoder = vit(mlp=mlp, mlp_hidden=512)
    stds = {
        f"{number}.{name}": float(module.weight.detach().std())
        for number, block in enumerate(blocks(encoder))
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear)
    }
    assert len(stds) == 12 * (4 if mlp == "gelu" else 5)
    assert {name: std for name, std in stds.items() if abs(std - 0.02) > 0.0005} == {}


@pytest.mark.parametrize("end", ENDS)
def test_timms_first_weights_shrink_with_depth_to_four_thousandths(end: str) -> None:
    encoder = vit()
    scale_init_with_depth(encoder)
    weights = [dict(block.named_parameters())[f"{end}.weight"].detach() for block in blocks(encoder)]
    for number, weight in enumerate(weights, start=1):
        assert float(weight.std()) == pytest.approx(0.02 / math.sqrt(2 * number), rel=0.02)
    assert float(weights[11].std()) == pytest.approx(0.0041, abs=0.0002)


def test_timms_first_weights_are_the_same_to_the_bit_as_those_that_timm_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = vit(depth=3)
    scale_init_with_depth(ours)
    monkeypatch.setattr("eupe_pipeline.teachers.encoders.encoder.EupeVit", Eva)
    timms = vit(depth=3)
    assert type(timms.backbone) is Eva
    assert all(torch.equal(ours.state_dict()[name], tensor) for name, tensor in timms.state_dict().items())


def test_each_block_draws_its_own_rescale_in_training() -> None:
    encoder = vit(depth=4).train()
    assert len({tuple(rope.flatten()[:64].tolist()) for rope in draws(encoder)}) == 4


def test_a_rescale_drawn_once_a_forward_is_timms_own_to_the_bit() -> None:
    encoder = vit(depth=4, layer_scale=1.0).train()
    set_rope_rescale_draws(encoder, "forward")
    found = draws(encoder)
    assert all(torch.equal(rope, found[0]) for rope in found)
    pixels = torch.randn(2, 3, 64, 64)
    torch.manual_seed(5)
    ours = encoder(pixels).patch_BHWD
    torch.manual_seed(5)
    timms = Eva.forward_features(encoder.backbone, pixels)
    assert torch.equal(ours.flatten(1, 2), timms[:, 5:])


@pytest.mark.parametrize("often", ["block", "forward"])
def test_in_evaluation_nothing_is_drawn_and_both_are_the_same(often: str) -> None:
    encoder, pixels = vit(depth=3, layer_scale=1.0).eval(), torch.randn(1, 3, 64, 96)
    plain = encoder(pixels).patch_BHWD
    set_rope_rescale_draws(encoder, often)
    assert torch.equal(encoder(pixels).patch_BHWD, plain)
    found = draws(encoder)
    assert all(torch.equal(rope, found[0]) for rope in found)


def test_a_rescale_of_one_leaves_every_block_alike_in_training() -> None:
    found = draws(vit(depth=3, rope_rescale=1.0).train())
    assert all(torch.equal(rope, found[0]) for rope in found)


def test_the_same_seed_draws_the_same_also_where_activations_are_recomputed() -> None:
    gradients = []
    for recompute in (False, True):
        encoder = vit(depth=3, layer_scale=1.0).train()
        set_activation_checkpointing(encoder, recompute)
        torch.manual_seed(7)
        encoder(torch.ones(2, 3, 64, 64)).patch_BHWD.square().sum().backward()
        gradients.append([parameter.grad for parameter in encoder.parameters() if parameter.grad is not None])
    assert all(torch.allclose(one, other, rtol=1e-5, atol=1e-6) for one, other in zip(*gradients, strict=True))


def test_other_students_are_as_they_were() -> None:
    torch.manual_seed(0)
    convnext = build_encoder("convnext-mini")
    before = {name: tensor.clone() for name, tensor in convnext.state_dict().items()}
    scale_init_with_depth(convnext)
    set_rope_rescale_draws(convnext, "forward")
    assert all(torch.equal(before[name], tensor) for name, tensor in convnext.state_dict().items())
