"""Frozen timm models: the table's facts without memory, every kind of class token, other sizes."""

import pytest
import timm
import torch
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.views.input_size import size_hw
from eupe_pipeline.teachers.encoders.architectures import Options
from eupe_pipeline.teachers.encoders.frozen import FrozenEncoder, build_timm, inspect_timm, timm_architecture
from eupe_pipeline.teachers.registry.table import ROWS, TEACHERS

RECIPE = {  # parameters and grid at the native size
    "pecore-g": (1_882_033_920, 32),
    "pecore-g-projected": (1_882_033_920, 32),
    "pelang-g": (1_740_922_624, 32),
    "pelang-g-no-cls": (1_740_922_624, 32),
    "pespatial-g": (1_851_887_104, 32),
    "pespatial-b": (86_433_792, 32),
    "pecore-b": (93_673_984, 14),
    "pecore-b-projected": (93_673_984, 14),
    "dinov3-b": (85_641_216, 16),
    "dinov3-h+": (840_509_440, 16),
    "dinov3-7b": (6_716_030_976, 16),
    "siglip2-g": (1_163_168_256, 16),
    "siglip2-b": (92_884_224, 14),
    "dinov2-g": (1_136_483_840, 37),
    "c-radiov4-h": (631_985_920, 32),
    "clip-l": (304_294_656, 24),
    "sam-h": (637_026_048, 64),
    "radiov2.5-b": (98_251_776, 48),
    "radiov2.5-l": (319_930_368, 48),
    "radiov2.5-h": (651_724_800, 48),
    "radiov2.5-g": (1_159_546_880, 64),
    "dune-b-448": (86_317_056, 32),
    "dune-b-336": (85_972_992, 24),
    "dune-s-448": (21_924_864, 32),
    "dune-s-336": (21_752_832, 24),
}
TABLE = sorted(RECIPE)


@pytest.mark.parametrize("name", TABLE)
def test_a_teacher_of_the_table_has_the_parameters_and_shapes_that_its_row_says(name: str) -> None:
    row, (count, rows) = TEACHERS[name], RECIPE[name]
    with torch.device("meta"):
        encoder = row.build(row.architecture).eval()
        side = row.preprocessing.size_px
        cls_BD, patch_BHWD = encoder(torch.empty(1, 3, *size_hw(side)))
    assert sum(parameter.numel() for parameter in encoder.parameters()) == count
    assert patch_BHWD.shape == (1, rows, rows, row.architecture["width"])
    assert (None if cls_BD is None else cls_BD.shape[1]) == row.cls_dim


@pytest.mark.parametrize("name", sorted(name for name, row in ROWS.items() if row.weights_name == row.architecture.get("model")))
def test_a_row_of_the_table_agrees_with_what_timm_publishes(name: str) -> None:
    row = TEACHERS[name]
    found = inspect_timm(row.architecture["model"], row.architecture["cls"])
    assert (found.architecture, found.preprocessing, found.cls_dim) == (row.architecture, row.preprocessing, row.cls_dim)


@pytest.mark.parametrize(
    ("model", "cls", "cls_dim", "width", "stride_px"),
    [
        ("test_vit.r160_in1k", "class token", 64, 64, 16),
        ("test_convnext.r160_in1k", "mean of patch tokens", 64, 64, 32),
        ("vit_pe_core_tiny_patch16_384.fb", "class token", 192, 192, 16),
        ("swin_tiny_patch4_window7_224.ms_in1k", "mean of patch tokens", 768, 768, 32),
    ],
)
def test_any_timm_model_is_inspected_without_its_weights(model: str, cls: str, cls_dim: int, width: int, stride_px: int) -> None:
    found = inspect_timm(model)
    assert (found.architecture["cls"], found.cls_dim, found.patch_dim, found.stride_px) == (cls, cls_dim, width, stride_px)
    assert found.architecture["model"] == model


def test_an_unknown_timm_model_is_refused_with_near_ones() -> None:
    with pytest.raises(BadInput, match=r"no model 'vit_tiny_patch15'"):
        inspect_timm("vit_tiny_patch15")
    with pytest.raises(BadInput, match=r"near: .*test_vit"):
        inspect_timm("test_vit.no_such_tag")


def attention_pooled(cls: str) -> FrozenEncoder:
    torch.manual_seed(5)
    architecture = timm_architecture("vit_pe_core_tiny_patch16_384.fb", cls=cls, width=192, stride_px=16)
    return build_timm(architecture).eval()


def test_each_kind_of_class_token_is_what_its_name_says() -> None:
    encoder = attention_pooled("class token")
    pixels = torch.randn(1, 3, 384, 384, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = encoder.features(pixels)
        backbone = encoder.backbone
        expected = {
            "class token": features[:, 0],
            "attention pool": backbone.attn_pool(features),  # type: ignore[operator]
            "projected attention pool": backbone(pixels),
            "mean of patch tokens": features[:, 1:].mean(dim=1),
        }
        for cls, token in expected.items():
            encoder.cls = cls
            got = encoder(pixels).cls_BD
            assert got is not None
            torch.testing.assert_close(got, token)
        encoder.cls = "none"
        assert encoder(pixels).cls_BD is None
    assert expected["projected attention pool"].shape != expected["attention pool"].shape


def test_taking_other_sizes_changes_nothing_at_the_native_size() -> None:
    encoder = attention_pooled("class token")
    fixed = timm.create_model("vit_pe_core_tiny_patch16_384.fb").eval()
    fixed.load_state_dict(encoder.backbone.state_dict())
    pixels = torch.randn(1, 3, 384, 384, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(encoder.features(pixels), fixed.forward_features(pixels))
        assert encoder(pixels[..., :192, :96]).patch_BHWD.shape == (1, 12, 6, 192)


def test_a_map_and_a_sequence_both_become_rows_and_columns() -> None:
    found: Options = inspect_timm("test_convnext.r160_in1k").architecture
    encoder = build_timm(found).eval()
    with torch.no_grad():
        map_BCHW = encoder.features(torch.ones(1, 3, 64, 96))
        patch_BHWD = encoder(torch.ones(1, 3, 64, 96)).patch_BHWD
    assert torch.equal(patch_BHWD[0, 1, 2], map_BCHW[0, :, 1, 2])
