"""Drop-path and recomputing are set on a built encoder and change neither its parameters nor its evaluation."""

import pytest
import torch
from eupe_pipeline.teachers.encoders.build import build_encoder
from eupe_pipeline.teachers.encoders.training_settings import residual_blocks, set_activation_checkpointing, set_drop_path
from torch.nn.attention import SDPBackend, sdpa_kernel


@pytest.mark.parametrize(("name", "blocks"), [("vit-mini", 2), ("convnext-mini", 5), ("eupe_vitt16", 12)])
def test_the_residual_blocks_are_found(name: str, blocks: int) -> None:
    assert len(residual_blocks(build_encoder(name))) == blocks


@pytest.mark.parametrize("name", ["vit-mini", "convnext-mini"])
def test_drop_path_acts_in_training_alone(name: str) -> None:
    torch.manual_seed(0)
    encoder = build_encoder({"name": name, "layer_scale": 1.0})
    pixels = torch.randn(4, 3, 32, 32)
    plain, keys = encoder.eval()(pixels).patch_BHWD, list(encoder.state_dict())
    set_drop_path(encoder, 0.9)
    assert list(encoder.state_dict()) == keys
    assert torch.equal(encoder.eval()(pixels).patch_BHWD, plain)
    assert not torch.equal(encoder.train()(pixels).patch_BHWD, encoder(pixels).patch_BHWD)
    set_drop_path(encoder, 0.0)
    encoder.train()
    torch.manual_seed(1)
    first = encoder(pixels).patch_BHWD
    torch.manual_seed(1)
    assert torch.equal(encoder(pixels).patch_BHWD, first)


def test_the_first_block_is_never_left_out_and_the_last_most_often() -> None:
    encoder = build_encoder({"name": "vit-mini", "depth": 3})
    set_drop_path(encoder, 0.4)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in residual_blocks(encoder)]
    assert rates == pytest.approx([0.0, 0.2, 0.4])


@pytest.mark.parametrize("name", ["vit-mini", "convnext-mini"])
def test_recomputed_gradients_are_the_same(name: str) -> None:
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(0)
        encoder = build_encoder({"name": name, "layer_scale": 1.0})
        set_activation_checkpointing(encoder, recompute)
        torch.manual_seed(2)
        with sdpa_kernel([SDPBackend.MATH]):
            encoder(torch.ones(2, 3, 32, 32)).patch_BHWD.square().sum().backward()
        gradients.append([parameter.grad for parameter in encoder.parameters() if parameter.grad is not None])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
