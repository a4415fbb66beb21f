"""ViTs and ConvNeXts of timm as students: any size, every parameter trained, a record that builds the same again."""

import pytest
import torch
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.teachers.encoders.build import build_encoder, canonical, facts
from eupe_pipeline.teachers.encoders.encoder import Encoder
from eupe_pipeline.teachers.encoders.training_settings import residual_blocks, set_activation_checkpointing, set_drop_path

SMALL = ("timm:test_vit", "timm:test_convnext", "timm:test_vit3", "timm:eva02_tiny_patch14_224")


def pixels(side: int) -> torch.Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", SMALL)
def test_any_size_gives_a_grid_by_the_stride_and_every_parameter_a_gradient(name: str) -> None:
    encoder = build_encoder(name)
    width, stride, _ = facts(name)
    for sides in (2, 3):
        tokens = encoder(pixels(sides * stride))
        assert tokens.patch_BHWD.shape == (2, sides, sides, width)
        assert tokens.cls_BD is not None
        assert tokens.cls_BD.shape == (2, width)
    (tokens.cls_BD.sum() + tokens.patch_BHWD.square().sum()).backward()
    assert [key for key, value in encoder.named_parameters() if value.grad is None] == []
    with pytest.raises(BadInput, match="not a multiple"):
        encoder(pixels(stride + 1))


@pytest.mark.parametrize("name", SMALL)
def test_the_record_builds_the_same_encoder_again(name: str) -> None:
    first = build_encoder(name).eval()
    again = build_encoder(first.architecture).eval()
    again.load_state_dict(first.state_dict(), strict=True)
    side = 2 * first.stride_px
    assert torch.equal(first(pixels(side)).patch_BHWD, again(pixels(side)).patch_BHWD)
    assert canonical(first.architecture) == first.architecture


def test_tokens_are_timm_s_own_behind_the_norm() -> None:
    vit, convnext = (build_encoder(f"timm:test_{kind}").eval() for kind in ("vit", "convnext"))
    features = vit.backbone.forward_features(pixels(64))  # type: ignore[operator]
    assert torch.equal(vit(pixels(64)).cls_BD, features[:, 0])
    pooled = convnext.backbone.forward_head(convnext.backbone.forward_features(pixels(64)), pre_logits=True)  # type: ignore[operator]
    torch.testing.assert_close(convnext(pixels(64)).cls_BD, pooled)


def test_drop_path_and_recomputing_reach_the_blocks() -> None:
    encoder: Encoder = build_encoder("timm:test_vit")
    assert len(residual_blocks(encoder)) >= 2
    set_drop_path(encoder, 0.3)
    set_activation_checkpointing(encoder, True)
    assert "DropPath(drop_prob=0.300)" in str(encoder)
    encoder(pixels(64)).patch_BHWD.sum().backward()


@pytest.mark.parametrize(("name", "says"), [
    ("timm:inception_v4", r"has a grid of 8×8 at 320×320 px, where a stride of 32 px makes 10×10"),
    ("timm:crossvit_9_240", "gives no feature map at"),
    ("timm:no_such_model", "timm has no model 'no_such_model'"),
    ("tim:vit", "unknown architecture 'tim:vit'.*timm:NAME"),
])  # fmt: skip
def test_models_without_a_grid_by_their_stride_and_unknown_names_are_refused(name: str, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        build_encoder(name)


def test_options_and_records_of_another_timm_are_refused() -> None:
    with pytest.raises(BadInput, match=r"takes no options.*--set student\.options=\{\}"):
        canonical({"name": "timm:test_vit", "depth": 3})
    with pytest.raises(BadInput, match="install the timm it was trained with"):
        canonical({**canonical("timm:test_vit"), "width": 77})
