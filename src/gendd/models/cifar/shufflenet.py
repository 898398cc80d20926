"""``ShuffleV1`` (Zhang et al. 2018, three groups) and ``ShuffleV2`` (Ma et al. 2018, width 1) for CIFAR.

Their stem is a 1x1 convolution to 24 channels that keeps the size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gendd.models.cifar.network import Network, convolution, stage

_STEM = 24
_GROUPS = 3


def shuffle(x: Tensor, groups: int) -> Tensor:
    """Interleave the channels of the groups; (B, C, H, W) -> (B, C, H, W)."""
    batch, channels, height, width = x.shape
    return x.reshape(batch, groups, channels // groups, height, width).transpose(1, 2).flatten(1, 2)


class GroupBlock(nn.Module):
    """ShuffleV1's bottleneck of grouped convolutions; with a stride, the pooled input is appended.

    (B, I, H, W) -> (B, O, H / stride, W / stride).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        made = out_channels - in_channels if stride == 2 else out_channels
        width = made // 4
        # the stem is too narrow for groups
        self.groups = 1 if in_channels == _STEM else _GROUPS
        self.stride = stride
        self.conv1 = convolution(in_channels, width, groups=self.groups)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = convolution(width, width, 3, stride, groups=width)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = convolution(width, made, groups=_GROUPS)
        self.bn3 = nn.BatchNorm2d(made)

    def forward(self, x: Tensor) -> Tensor:
        out = shuffle(F.relu(self.bn1(self.conv1(x)), inplace=True), self.groups)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(out))
        if self.stride == 2:
            return F.relu(torch.cat([out, F.avg_pool2d(x, 3, 2, padding=1)], 1), inplace=True)
        return F.relu(out + x, inplace=True)


class ShuffleV1(Network):
    """Three stages of group blocks, down to an eighth of the size; see :class:`Network`."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = convolution(in_channels, _STEM)
        self.bn1 = nn.BatchNorm2d(_STEM)
        self.layer1 = stage(GroupBlock, _STEM, 240, 4, stride=2)
        self.layer2 = stage(GroupBlock, 240, 480, 8, stride=2)
        self.layer3 = stage(GroupBlock, 480, 960, 4, stride=2)
        self.fc = nn.Linear(960, num_classes)
        self.reset_convolutions()

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> the last feature map (B, 960, ceil(H / 8), ceil(W / 8))."""
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        features: Tensor = self.layer3(self.layer2(self.layer1(x)))
        return features


class SplitBlock(nn.Module):
    """ShuffleV2's block: half of the channels pass unchanged, half are convolved; (B, O, H, W) is kept."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = convolution(half, half)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = convolution(half, half, 3, groups=half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = convolution(half, half)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        passed, out = x.chunk(2, dim=1)
        out = F.relu(self.bn1(self.conv1(out)), inplace=True)
        out = self.bn2(self.conv2(out))
        out = F.relu(self.bn3(self.conv3(out)), inplace=True)
        return shuffle(torch.cat([passed, out], 1), 2)


class DownBlock(nn.Module):
    """First block of a ShuffleV2 stage, two strided branches; (B, I, H, W) -> (B, O, H / 2, W / 2)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.conv1 = convolution(in_channels, in_channels, 3, 2, groups=in_channels)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv2 = convolution(in_channels, half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = convolution(in_channels, half)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = convolution(half, half, 3, 2, groups=half)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = convolution(half, half)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        short = self.bn1(self.conv1(x))
        short = F.relu(self.bn2(self.conv2(short)), inplace=True)
        long = F.relu(self.bn3(self.conv3(x)), inplace=True)
        long = self.bn4(self.conv4(long))
        long = F.relu(self.bn5(self.conv5(long)), inplace=True)
        return shuffle(torch.cat([short, long], 1), 2)


class ShuffleV2(Network):
    """Three stages down to an eighth of the size, then a 1x1 convolution; see :class:`Network`."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = convolution(in_channels, _STEM)
        self.bn1 = nn.BatchNorm2d(_STEM)
        self.layer1 = _stage(_STEM, 116, 3)
        self.layer2 = _stage(116, 232, 7)
        self.layer3 = _stage(232, 464, 3)
        self.conv2 = convolution(464, 1024)
        self.bn2 = nn.BatchNorm2d(1024)
        self.fc = nn.Linear(1024, num_classes)
        self.reset_convolutions()

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> the last feature map (B, 1024, ceil(H / 8), ceil(W / 8))."""
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = self.layer3(self.layer2(self.layer1(x)))
        return F.relu(self.bn2(self.conv2(x)), inplace=True)


def _stage(in_channels: int, out_channels: int, blocks: int) -> nn.Sequential:
    layers: list[nn.Module] = [DownBlock(in_channels, out_channels)]
    layers += [SplitBlock(out_channels) for _ in range(blocks)]
    return nn.Sequential(*layers)
