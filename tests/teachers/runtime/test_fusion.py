import pytest
import torch
from eupe_pipeline.teachers.encoders.frozen import build_keras_resnet50, build_timm, timm_architecture
from eupe_pipeline.teachers.runtime.fusion import fuse_batch_norms
from torch import nn

LITE0 = timm_architecture("tf_efficientnet_lite0", cls="none", width=1280, stride_px=32, dynamic_size=False)
KERAS = {"name": "keras-resnet50", "cls": "none"}


def shaken(module: nn.Module) -> nn.Module:
    """Batch norms with statistics and affine values that are not the identity."""
    torch.manual_seed(4)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.running_mean, std=0.1)  # type: ignore[arg-type]
            nn.init.uniform_(norm.running_var, 0.5, 1.5)  # type: ignore[arg-type]
            nn.init.uniform_(norm.weight, 0.5, 1.0)
            nn.init.normal_(norm.bias, std=0.1)
    return module.eval()


@pytest.mark.parametrize(("architecture", "count"), [(LITE0, 49), (KERAS, 53)])
def test_every_batch_norm_is_folded_and_the_function_stays(architecture: dict[str, object], count: int) -> None:
    build = build_timm if architecture["name"] == "timm" else build_keras_resnet50
    encoder = build(architecture)
    shaken(encoder.backbone)
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = encoder(pixels).patch_BHWD
        assert fuse_batch_norms(encoder.backbone) == count
        after = encoder(pixels).patch_BHWD
    assert not any(isinstance(module, nn.BatchNorm2d) for module in encoder.modules())
    torch.testing.assert_close(after, before, rtol=0, atol=2e-5 * float(before.abs().max()))


def test_a_batch_norm_that_does_not_follow_a_convolution_is_left_alone() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 3, 1), nn.ReLU(), nn.BatchNorm2d(3)).eval()
    assert fuse_batch_norms(model) == 0
    assert sum(isinstance(module, nn.BatchNorm2d) for module in model) == 2


def test_an_activation_inside_a_norm_survives() -> None:
    class NormAct(nn.BatchNorm2d):
        act = nn.ReLU6()

    model = nn.Sequential(nn.Conv2d(3, 4, 1), NormAct(4)).eval()
    assert fuse_batch_norms(model) == 1
    assert isinstance(model[1], nn.ReLU6)
