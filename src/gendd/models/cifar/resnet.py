"""ResNets for CIFAR: three stages of basic blocks (He et al. 2016, section 4.2), and one with bottlenecks.

``resnetN`` has a 16-channel stem and three stages of (N - 2) / 6 basic blocks of widths 16, 32 and 64;
``resnetNx4`` has a 32-channel stem and widths 64, 128 and 256. Other multipliers (``resnet8x0.5``) scale the
stem and every stage of ``resnetN``. ``ResNet50`` is the ImageNet network with a 3x3 stem that keeps the size.
"""

from __future__ import annotations

import re

from torch import Tensor, nn
from torch.nn import functional as F

from gendd.models.cifar.network import Network, convolution, stage

# limits for names, which may come from a file: more is a mistake or an attempt to exhaust memory
MOST_LAYERS, MOST_WIDER = 1_208, 64
_PATTERN = re.compile(r"resnet(\d+)(?:x(\d+(?:\.\d+)?))?")


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; (B, I, H, W) -> (B, O, H / stride, W / stride)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = convolution(in_channels, out_channels, 3, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = convolution(out_channels, out_channels, 3)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = _projection(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(x)) + shortcut, inplace=True)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut; (B, I, H, W) -> (B, O, H / stride, W / stride)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        width = out_channels // 4
        self.conv1 = convolution(in_channels, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = convolution(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = convolution(width, out_channels)
        self.bn3 = nn.BatchNorm2d(out_channels)
        projects = stride != 1 or in_channels != out_channels
        self.shortcut = _projection(in_channels, out_channels, stride) if projects else nn.Sequential()

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.shortcut(x)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        return F.relu(self.bn3(self.conv3(x)) + shortcut, inplace=True)


class ResNet(Network):
    """Three stages of basic blocks at full, half and quarter size; see :class:`Network`."""

    def __init__(
        self, blocks: int, stem: int, widths: tuple[int, int, int], num_classes: int, in_channels: int
    ) -> None:
        super().__init__()
        self.conv1 = convolution(in_channels, stem, 3)
        self.bn1 = nn.BatchNorm2d(stem)
        self.layer1 = stage(BasicBlock, stem, widths[0], blocks, stride=1)
        self.layer2 = stage(BasicBlock, widths[0], widths[1], blocks, stride=2)
        self.layer3 = stage(BasicBlock, widths[1], widths[2], blocks, stride=2)
        self.fc = nn.Linear(widths[2], num_classes)
        self.reset_convolutions()

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> the last stage's map (B, D, ceil(H / 4), ceil(W / 4))."""
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        features: Tensor = self.layer3(self.layer2(self.layer1(x)))
        return features


class BottleneckResNet(Network):
    """Four stages of bottlenecks, down to an eighth of the size; see :class:`Network`."""

    def __init__(self, blocks: tuple[int, int, int, int], num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = convolution(in_channels, 64, 3)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = stage(Bottleneck, 64, 256, blocks[0], stride=1)
        self.layer2 = stage(Bottleneck, 256, 512, blocks[1], stride=2)
        self.layer3 = stage(Bottleneck, 512, 1024, blocks[2], stride=2)
        self.layer4 = stage(Bottleneck, 1024, 2048, blocks[3], stride=2)
        self.fc = nn.Linear(2048, num_classes)
        self.reset_convolutions()

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> the last stage's map (B, 2048, ceil(H / 8), ceil(W / 8))."""
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        features: Tensor = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return features


def _projection(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(convolution(in_channels, out_channels, stride=stride), nn.BatchNorm2d(out_channels))


def create(name: str, num_classes: int, in_channels: int) -> Network:
    """Build ``resnet{depth}``, ``resnet{depth}x{multiplier}`` or ``ResNet50`` with random weights.

    Raises:
        KeyError: the name does not have that form, the depth is not 6n + 2 or exceeds 1,208, or the
            multiplier is not above 0 and at most 64.
    """
    if name == "ResNet50":
        return BottleneckResNet((3, 4, 6, 3), num_classes, in_channels)
    match = _PATTERN.fullmatch(name)
    if match is None or (int(match[1]) - 2) % 6 or not 8 <= int(match[1]) <= MOST_LAYERS:
        raise KeyError(name)
    blocks = (int(match[1]) - 2) // 6
    scale = float(match[2] or 1)
    if not 0 < scale <= MOST_WIDER:
        raise KeyError(name)
    if scale == 4:
        return ResNet(blocks, 32, (64, 128, 256), num_classes, in_channels)
    stem, mid, last = (max(1, round(width * scale)) for width in (16, 32, 64))
    return ResNet(blocks, stem, (stem, mid, last), num_classes, in_channels)
