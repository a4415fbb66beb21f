"""Families of timm that are built in their own way: each trains with the right tokens at every size, or is refused by its reason."""

from typing import Any

import pytest
import torch
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.teachers.encoders.build import build_encoder, canonical, facts, try_sizes
from eupe_pipeline.teachers.encoders.encoder import Encoder
from torch import Tensor

FEW = (
    "deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "deit3_small_patch16_224", "vit_tiny_r_s16_p8_224", "convnext_atto_rms",
    "convnext_zepto_rms", "convnext_zepto_rms_ols",
)  # fmt: skip
LARGER = ("vit_small_r26_s32_224", "convnext_tiny_hnf")
LARGEST_TO_TRAIN = 60_000_000  # parameters; of larger ones shapes are walked, on no memory


def pixels(side: int) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


def train_a_step(encoder: Encoder) -> None:
    """A forward at two sizes and a step; every trainable parameter has a finite gradient and moves."""
    width, stride, _ = facts(encoder.architecture)
    for sides in (2, 3):
        cls_BD, patch_BHWD = encoder(pixels(sides * stride))
        assert patch_BHWD.shape == (2, sides, sides, width)
        assert cls_BD.shape == (2, width)
        assert patch_BHWD.isfinite().all()
        assert cls_BD.isfinite().all()
    trainable = {name: value for name, value in encoder.named_parameters() if value.requires_grad}
    before = {name: value.detach().clone() for name, value in trainable.items()}
    (cls_BD.sum() + (patch_BHWD - 1).square().mean()).backward()
    gradients = {name: value.grad for name, value in trainable.items() if value.grad is not None}
    assert gradients.keys() == trainable.keys()
    assert [name for name, gradient in gradients.items() if not gradient.isfinite().all()] == []
    torch.optim.AdamW(trainable.values(), lr=1e-2).step()
    still = [name for name, value in trainable.items() if torch.equal(value, before[name])]
    assert [name for name in still if gradients[name].count_nonzero()] == []  # timm begins a branch of ResNets with zeros
    assert len(still) < len(trainable) / 4


@pytest.mark.parametrize("name", [*FEW, *(pytest.param(name, marks=pytest.mark.long) for name in LARGER)])
def test_a_family_of_its_own_way_trains_at_any_size_that_its_stride_divides(name: str) -> None:
    try_sizes(f"timm:{name}", (256, 384, 512))
    encoder = build_encoder(f"timm:{name}")
    assert canonical(encoder.architecture) == encoder.architecture
    train_a_step(encoder)


def timm_model(name: str, encoder: Encoder) -> Any:
    """timm's own, as timm builds it, with the student's weights."""
    import timm

    model = timm.create_model(name, pretrained=False, num_classes=0).eval()
    model.load_state_dict({key.removeprefix("backbone."): value for key, value in encoder.state_dict().items()}, strict=True)
    return model


@pytest.mark.parametrize(("name", "prefix"), [
    ("deit_tiny_patch16_224", 1), ("deit_tiny_distilled_patch16_224", 2), ("vit_tiny_r_s16_p8_224", 1),
])  # fmt: skip
def test_at_its_native_size_a_vit_gives_timms_own_tokens(name: str, prefix: int) -> None:
    encoder = build_encoder(f"timm:{name}").eval()
    with torch.no_grad():
        cls_BD, patch_BHWD = encoder(pixels(224))
        features = timm_model(name, encoder).forward_features(pixels(224))
    torch.testing.assert_close(cls_BD, features[:, 0])
    torch.testing.assert_close(patch_BHWD.flatten(1, 2), features[:, prefix:])


@pytest.mark.parametrize("name", ["convnext_atto_rms", "convnext_zepto_rms", "convnext_tiny_hnf"])
def test_a_convnexts_cls_is_what_timm_would_classify(name: str) -> None:
    encoder = build_encoder(f"timm:{name}").eval()
    with torch.no_grad():
        cls_BD, patch_BHWD = encoder(pixels(96))
        model = timm_model(name, encoder)
        torch.testing.assert_close(cls_BD, model(pixels(96)))
        if name == "convnext_tiny_hnf":  # the norm comes before the pool
            torch.testing.assert_close(cls_BD, patch_BHWD.mean(dim=(1, 2)))


def test_a_layer_before_the_absent_classifier_is_not_trained() -> None:
    with torch.device("meta"):
        encoder = build_encoder("timm:convnext_large_mlp")
        cls_BD, patch_BHWD = encoder(torch.zeros(1, 3, 64, 64))
        (cls_BD.sum() + patch_BHWD.sum()).backward()
    assert [name for name, value in encoder.named_parameters() if value.requires_grad and value.grad is None] == []


@pytest.mark.parametrize(("name", "sizes", "why"), [
    ("vit_small_r26_s32_224", (256, 512, 240), "240×240 px is not a multiple of this encoder's 32 px stride"),
    ("deit_tiny_patch16_224", (250,), "not a multiple"),
    ("vit_relpos_small_patch16_224", (224, 256), r"cannot be trained at 256 px: .*--set student\.options\.img_size=256"),
])  # fmt: skip
def test_what_cannot_be_trained_is_refused_by_its_reason(name: str, sizes: tuple[int, ...], why: str) -> None:
    with pytest.raises(BadInput, match=why):
        try_sizes(f"timm:{name}", sizes)


def test_a_model_whose_forward_fails_at_a_size_is_refused_with_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    from timm.models.vision_transformer import VisionTransformer

    whole = VisionTransformer.forward_features

    def only_small(self: Any, x: Tensor) -> Tensor:
        assert x.shape[-1] <= 256, "Input height does not match model"
        found: Tensor = whole(self, x)
        return found

    monkeypatch.setattr(VisionTransformer, "forward_features", only_small)
    try_sizes("timm:test_vit", (128, 256))
    with pytest.raises(BadInput, match=r"timm:test_vit cannot be trained at 384 px: timm .* says Input height does not match model"):
        try_sizes("timm:test_vit", (256, 384))


def vits_and_convnexts() -> list[str]:
    import timm

    modules = ("vision_transformer", "vision_transformer_hybrid", "deit", "eva", "vitamin", "convnext")
    return [name for module in modules for name in timm.list_models(module=module)]


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_every_vit_and_convnext_of_timm_trains_or_is_refused() -> None:
    trained, refused = [], {}
    for name in vits_and_convnexts():
        try:
            stride = facts(f"timm:{name}").stride_px
            try_sizes(f"timm:{name}", {side // stride * stride for side in (256, 384, 512)})
        except BadInput as error:
            refused[name] = str(error)
            continue
        with torch.device("meta"):
            size = sum(parameter.numel() for parameter in build_encoder(f"timm:{name}").parameters())
        if size <= LARGEST_TO_TRAIN:
            train_a_step(build_encoder(f"timm:{name}"))
        trained.append(name)
    assert len(trained) > 250
    assert refused == {}
