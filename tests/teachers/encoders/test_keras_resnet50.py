import torch
from eupe_pipeline.teachers.encoders.keras_resnet50 import KerasResNet50
from torch import nn


def on_meta() -> KerasResNet50:
    with torch.device("meta"):
        return KerasResNet50()


def test_it_has_keras_parameter_count() -> None:
    model = on_meta()
    trainable = sum(parameter.numel() for parameter in model.parameters())
    statistics = sum(buffer.numel() for name, buffer in model.named_buffers() if "running" in name)
    assert trainable + statistics == 25_636_712  # keras.applications.ResNet50, its 320 tensors
    assert len([name for name in model.state_dict() if "num_batches" not in name]) == 320


def test_the_stride_sits_on_the_first_1x1_of_a_stage_and_nowhere_else() -> None:
    strided = {name for name, module in on_meta().stages.named_modules() if isinstance(module, nn.Conv2d) and module.stride == (2, 2)}
    assert strided == {f"{stage}.0.{branch}" for stage in (1, 2, 3) for branch in ("branch2a", "branch1")}


def test_every_convolution_has_a_bias_and_every_norm_keras_epsilon() -> None:
    for module in on_meta().modules():
        if isinstance(module, nn.Conv2d):
            assert module.bias is not None
        if isinstance(module, nn.BatchNorm2d):
            assert module.eps == 1e-3


def test_features_are_the_last_map_and_logits_come_from_its_mean() -> None:
    torch.manual_seed(6)
    model = KerasResNet50(classes=10).eval()
    pixels = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        map_BCHW = model.forward_features(pixels)
        torch.testing.assert_close(model(pixels), model.fc1000(map_BCHW.mean(dim=(2, 3))))
    assert map_BCHW.shape == (1, 2048, 3, 3)
    assert (map_BCHW >= 0).all()


def test_channels_and_strides_of_the_four_stages_are_the_published_ones() -> None:
    with torch.device("meta"):
        model = KerasResNet50().eval()
        x_BCHW = model.pool(model.bn_conv1(model.conv1(torch.empty(1, 3, 224, 224))))
        shapes = []
        for stage in model.stages:
            x_BCHW = stage(x_BCHW)
            shapes.append((x_BCHW.shape[1], 224 // x_BCHW.shape[2]))
    assert shapes == [(256, 4), (512, 8), (1024, 16), (2048, 32)]
