"""Any other backbone of timm as a student: its map lies on the picture as it should, its head's features are its class token."""

from typing import Any

import pytest
import torch
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.views.input_size import square_side
from eupe_pipeline.teachers.encoders.build import build_encoder, canonical, cls_width, facts, try_sizes
from eupe_pipeline.teachers.encoders.encoder import Encoder
from eupe_pipeline.teachers.encoders.training_settings import set_activation_checkpointing, set_drop_path
from torch import Tensor

SWIN = "timm:swin_tiny_patch4_window7_224"
SMALL = {  # where the map comes from: a small model
    "NCHW": "timm:resnet10t",
    "NHWC": "timm:mambaout_femto",
    "normed tokens": "timm:mixer_s32_224",
    "tokens": "timm:hiera_tiny_224",
}
MORE = (
    "timm:repvit_m0_9", "timm:fastvit_t8", "timm:efficientvit_b0", "timm:tiny_vit_5m_224", "timm:edgenext_xx_small", "timm:levit_128s",
    SWIN, "timm:efficientvit_m0", "timm:xcit_nano_12_p8_224", "timm:beit_base_patch16_224",
    "timm:maxvit_nano_rw_256", "timm:efficientformer_l1", "timm:volo_d1_224", "timm:vit_small_resnet26d_224", "timm:mvitv2_tiny",
)  # fmt: skip

EVEN = ("timm:levit_128s", "timm:tiny_vit_5m_224")  # before training their attention mixes all places evenly


def pixels(side: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(0))


def own_size(encoder: Encoder) -> int:
    return square_side(encoder.preprocessing.size_px, "this encoder")


def where_it_is_felt(encoder: Encoder, row: int, column: int) -> tuple[int, int]:
    """The patch of the picture that a token depends on most: by the energy of its gradient, over four pictures."""
    side, stride = own_size(encoder), encoder.stride_px
    picture = pixels(side, 4).requires_grad_(True)
    token_BD = encoder(picture).patch_BHWD[:, row, column]
    weights_D = torch.randn(token_BD.shape[1], generator=torch.Generator().manual_seed(1))
    (token_BD * weights_D).sum().backward()  # the plain sum of a normed token is constant, and its gradient rounding
    assert picture.grad is not None
    felt = picture.grad.square().sum(dim=(0, 1)).reshape(side // stride, stride, side // stride, stride).sum(dim=(1, 3))
    place = int(felt.argmax())
    return place // felt.shape[1], place % felt.shape[1]


@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "normed tokens", pytest.param("tokens", marks=pytest.mark.long)])
def test_a_token_is_of_the_place_of_the_picture_that_its_row_and_column_say(layout: str) -> None:
    """Far off the diagonal: a transposed map would feel the opposite corner. Convolutions may be centred one patch beside."""
    encoder = build_encoder(SMALL[layout]).eval()
    assert encoder.architecture["map"] == layout
    side = own_size(encoder) // encoder.stride_px
    for row, column in ((1, side - 2), (side - 2, 1)):
        found = where_it_is_felt(encoder, row, column)
        assert max(abs(found[0] - row), abs(found[1] - column)) <= (layout in ("NCHW", "NHWC")), (found, (row, column))


@pytest.mark.parametrize("layout", ["NCHW", *(pytest.param(name, marks=pytest.mark.long) for name in sorted({*SMALL} - {"NCHW"}))])
def test_the_class_token_is_what_timms_own_model_gives_to_its_classifier(layout: str) -> None:
    import timm

    encoder = build_encoder(SMALL[layout]).eval()
    assert encoder.cls == "features of its own head"
    whole: Any = timm.create_model(SMALL[layout].removeprefix("timm:"), pretrained=False, num_classes=0).eval()
    whole.load_state_dict({key.removeprefix("backbone."): value for key, value in encoder.state_dict().items()}, strict=True)
    with torch.no_grad():
        cls_BD, patch_BHWD = encoder(pixels(own_size(encoder)))
        torch.testing.assert_close(cls_BD, whole(pixels(own_size(encoder))))
        _, (map_BCHW,) = whole.forward_intermediates(pixels(own_size(encoder)), indices=1, norm=layout == "normed tokens")
    if layout in ("normed tokens", "tokens"):
        torch.testing.assert_close(patch_BHWD, map_BCHW.permute(0, 2, 3, 1))


def need_a_student(name: str) -> None:
    """Its record builds it again, its facts hold, every trainable parameter has a gradient."""
    encoder = build_encoder(name)
    width, stride, _ = facts(name)
    assert canonical(encoder.architecture) == encoder.architecture
    assert (encoder.width, encoder.stride_px, encoder.cls_width) == (width, stride, cls_width(name))
    side = own_size(encoder)
    cls_BD, patch_BHWD = encoder(pixels(side))
    assert patch_BHWD.shape == (2, side // stride, side // stride, width)
    assert cls_BD.shape == (2, cls_width(name))
    (cls_BD.sum() + (patch_BHWD - 1).square().mean()).backward()
    assert [key for key, value in encoder.named_parameters() if value.requires_grad and value.grad is None] == []
    again = build_encoder(encoder.architecture)
    again.load_state_dict(encoder.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(encoder.eval()(pixels(side)).patch_BHWD, again.eval()(pixels(side)).patch_BHWD)


@pytest.mark.parametrize(
    "name", ["timm:mobilenetv4_conv_small_050", *(pytest.param(name, marks=pytest.mark.long) for name in MORE if "050" not in name)]
)
def test_a_backbone_is_built_again_from_its_record_and_all_of_it_is_trained(name: str) -> None:
    need_a_student(name)


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", [name for name in MORE if name not in EVEN])
def test_each_familys_tokens_are_of_their_own_places(name: str) -> None:
    """Random weights mix far: the patch that is felt most may be a neighbour of the token's own."""
    encoder = build_encoder(name).eval().requires_grad_(False)  # some keep tables of their parameters from pass to pass
    side = own_size(encoder) // encoder.stride_px
    for row, column in ((0, side - 1), (side - 1, 0)):
        found = where_it_is_felt(encoder, row, column)
        assert max(abs(found[0] - row), abs(found[1] - column)) <= side // 3, (found, (row, column), side)


def test_a_swin_takes_sizes_that_timms_own_would_refuse() -> None:
    assert canonical(SWIN)["options"] == {"dynamic_img_size": True}
    try_sizes(SWIN, (64, 96, 256))
    with torch.device("meta"):
        assert build_encoder(SWIN)(torch.zeros(1, 3, 64, 160)).patch_BHWD.shape == (1, 2, 5, 768)


def test_a_model_of_one_size_is_built_for_that_of_the_recipe() -> None:
    try_sizes(SMALL["normed tokens"], (224,))
    with pytest.raises(BadInput, match=r"built for one size: --set student\.options\.img_size=128, or --set student\.sizes_px=\[224\]"):
        try_sizes(SMALL["normed tokens"], (128,))
    built = {"name": SMALL["normed tokens"], "img_size": 128}
    assert canonical(built)["options"] == {"img_size": 128}
    assert canonical(canonical(built)) == canonical(built)
    try_sizes(built, (128,))


@pytest.mark.parametrize(("given", "why"), [
    ({"name": "timm:resnet10t", "layer_scale": 0.1}, r"takes no options but img_size.*layer scale included.*--set student\.options=\{\}"),
    ({"name": "timm:resnet10t", "img_size": 128}, "built alike for every size and takes no img_size"),
    ({"name": "timm:test_vit", "img_size": 128}, "built alike for every size and takes no img_size"),
    ({"name": SMALL["normed tokens"], "img_size": 100}, "has a stride of 32 px, which does not divide img_size = 100"),
    ({"name": SMALL["normed tokens"], "img_size": "128"}, "expected an input size of 16 to 4096 px"),
])  # fmt: skip
def test_settings_that_a_family_has_not_are_refused(given: dict[str, Any], why: str) -> None:
    with pytest.raises(BadInput, match=why):
        canonical(given)


def test_a_recipes_drop_path_replaces_timms_own_rate_and_batch_norms_are_not_recomputed() -> None:
    with torch.device("meta"):
        swin = build_encoder(SWIN)
    assert "DropPath" in str(swin)
    set_drop_path(swin, 0.0)
    assert "DropPath" not in str(swin)
    resnet = build_encoder("timm:resnet10t")
    set_drop_path(resnet, 0.2)
    assert "DropPath(drop_prob=0.200)" in str(resnet)
    with pytest.raises(BadInput, match="each batch would count twice"):
        set_activation_checkpointing(resnet, True)


def test_the_class_token_of_a_model_may_be_wider_than_its_patch_tokens() -> None:
    record = canonical("timm:mobilenetv4_conv_small_050")
    assert (record["width"], record["cls_width"]) == (480, 1280)
    assert "cls_width" not in canonical("timm:resnet10t")


def test_records_of_vits_and_convnexts_are_as_they_were() -> None:
    assert canonical("timm:test_vit") == {
        "name": "timm-student", "model": "test_vit", "family": "vit", "cls": "class token", "width": 64, "stride_px": 16,
    }  # fmt: skip
    assert canonical("timm:test_convnext") == {
        "name": "timm-student", "model": "test_convnext", "family": "convnext", "cls": "normed mean of patch tokens", "width": 64,
        "stride_px": 32,
    }  # fmt: skip


HEADLESS = "timm:qwen3_vit_88m_enc"


def test_an_encoder_without_a_head_has_the_mean_of_its_patch_tokens_as_class_token() -> None:
    record = canonical(HEADLESS)
    assert (record["map"], record["cls"], record["width"], record["stride_px"]) == ("NHWC", "mean of patch tokens", 768, 16)
    assert "cls_width" not in record
    with torch.device("meta"):
        found = build_encoder(record)(torch.zeros(2, 3, 64, 96))
    assert found.cls_BD is not None
    assert (found.cls_BD.shape, found.patch_BHWD.shape) == ((2, 768), (2, 4, 6, 768))


@pytest.mark.long
def test_that_mean_is_the_one_of_its_own_features_and_its_usage_example_gives_it() -> None:
    from eupe_pipeline.teachers.checkpoints.timm_student_folder import timm_usage

    encoder = build_encoder(HEADLESS).eval()
    with torch.no_grad():
        found, picture = encoder(pixels(64)), pixels(64)
        features: Any = encoder.backbone.forward_features(picture)  # type: ignore[operator]
        said: dict[str, Any] = {"model": encoder.backbone, "pixels": picture}
        exec(timm_usage(encoder.architecture).replace("\n    ", "\n"), said)
    assert torch.equal(found.patch_BHWD, features)
    assert found.cls_BD is not None
    assert torch.equal(found.cls_BD, features.mean(dim=(1, 2)))
    assert torch.equal(said["cls"], found.cls_BD)
    assert torch.equal(said["patch"], found.patch_BHWD)
