"""ResNet-50 as Keras trained it: the weights' own quirks, so that they load strictly and mean what they meant.

Against torchvision's ResNet-50: the stride sits on the *first* 1×1 convolution of a stage's first block, every convolution
has a bias, batch norm's epsilon is 1e-3, and the max-pool runs over a map padded with zeros (after a ReLU that equals the
usual padding). Input is BGR, 0..255, minus the channel means, without a division. Channels 2048 at stride 32. Names follow
Keras' (`res2a`: stage 2, block a; `branch1` is the shortcut). The classifier is kept: it proves a conversion on labelled
photos, and costs 8 MB; features never run it.
"""

import torch
from torch import Tensor, nn

STAGES = ((3, 64, 1), (4, 128, 2), (6, 256, 2), (3, 512, 2))  # blocks, bottleneck channels, stride of the first block
STRIDE_PX = 32
_EPSILON = 1e-3


class Bottleneck(nn.Module):
    """1×1 (strided) → 3×3 → 1×1, plus the input; (B, in, H, W) → (B, 4 * channels, H / stride, W / stride)."""

    def __init__(self, in_channels: int, channels: int, stride: int, *, shortcut: bool) -> None:
        super().__init__()
        out_channels = 4 * channels
        self.branch2a = nn.Conv2d(in_channels, channels, 1, stride=stride)
        self.bn2a = nn.BatchNorm2d(channels, eps=_EPSILON)
        self.branch2b = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn2b = nn.BatchNorm2d(channels, eps=_EPSILON)
        self.branch2c = nn.Conv2d(channels, out_channels, 1)
        self.bn2c = nn.BatchNorm2d(out_channels, eps=_EPSILON)
        if shortcut:
            self.branch1: nn.Module = nn.Conv2d(in_channels, out_channels, 1, stride=stride)
            self.bn1: nn.Module = nn.BatchNorm2d(out_channels, eps=_EPSILON)
        else:
            self.branch1 = nn.Identity()
            self.bn1 = nn.Identity()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the block's output after its last ReLU."""
        y_BCHW = torch.relu_(self.bn2a(self.branch2a(x_BCHW)))
        y_BCHW = torch.relu_(self.bn2b(self.branch2b(y_BCHW)))
        y_BCHW = self.bn2c(self.branch2c(y_BCHW))
        return torch.relu_(y_BCHW + self.bn1(self.branch1(x_BCHW)))


def _stage(in_channels: int, blocks: int, channels: int, stride: int) -> nn.Sequential:
    first = Bottleneck(in_channels, channels, stride, shortcut=True)
    rest = [Bottleneck(4 * channels, channels, 1, shortcut=False) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)


class KerasResNet50(nn.Module):
    """Preprocessed BGR images (B, 3, H, W) → class logits (B, 1000); the features are `forward_features`."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3)
        self.bn_conv1 = nn.BatchNorm2d(64, eps=_EPSILON)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        in_channels = [64, *(4 * channels for _, channels, _ in STAGES)]
        self.stages = nn.Sequential(
            *(_stage(width, *stage) for width, stage in zip(in_channels, STAGES, strict=False)),
        )
        self.fc1000 = nn.Linear(in_channels[-1], classes)

    def forward_features(self, x_BCHW: Tensor) -> Tensor:
        """Return the last stage's map after its ReLU, (B, 2048, H / 32, W / 32) rounded up."""
        x_BCHW = torch.relu_(self.bn_conv1(self.conv1(x_BCHW)))
        features_BCHW: Tensor = self.stages(self.pool(x_BCHW))
        return features_BCHW

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return ImageNet-1k logits (before the softmax), in the class order of ILSVRC2012."""
        logits: Tensor = self.fc1000(self.forward_features(x_BCHW).mean(dim=(2, 3)))
        return logits
