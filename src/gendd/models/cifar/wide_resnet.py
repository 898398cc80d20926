"""Wide ResNets (Zagoruyko & Komodakis 2016): ``wrn_{depth}_{width}``, depth 6n + 4, pre-activation blocks."""

from __future__ import annotations

import re
from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional as F

from gendd.models.cifar.network import Network, convolution, stage
from gendd.models.cifar.resnet import MOST_LAYERS, MOST_WIDER

_PATTERN = re.compile(r"wrn_(\d+)_(\d+)")


class PreActivationBlock(nn.Module):
    """BatchNorm and ReLU before each of two 3x3 convolutions; (B, I, H, W) -> (B, O, H / stride, W / stride).

    Where channels or size change, the shortcut takes the output of the first ReLU.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = convolution(in_channels, out_channels, 3, stride)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = convolution(out_channels, out_channels, 3)
        # its name in the public checkpoints
        self.convShortcut: nn.Conv2d | None = None
        if in_channels != out_channels or stride != 1:
            self.convShortcut = convolution(in_channels, out_channels, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x), inplace=True)
        shortcut = x if self.convShortcut is None else self.convShortcut(active)
        out: Tensor = self.conv2(F.relu(self.bn2(self.conv1(active)), inplace=True))
        return out + shortcut


class WideResNet(Network):
    """Three stages of pre-activation blocks at full, half and quarter size; see :class:`Network`."""

    def __init__(self, blocks: int, width: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = convolution(in_channels, 16, 3)
        self.block1 = _stage(16, 16 * width, blocks, stride=1)
        self.block2 = _stage(16 * width, 32 * width, blocks, stride=2)
        self.block3 = _stage(32 * width, 64 * width, blocks, stride=2)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.fc = nn.Linear(64 * width, num_classes)
        self.reset_convolutions()

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> the last stage's map (B, D, ceil(H / 4), ceil(W / 4))."""
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return F.relu(self.bn1(x), inplace=True)


def _stage(in_channels: int, out_channels: int, blocks: int, stride: int) -> nn.Sequential:
    # one level deeper, as in the public checkpoints
    blocks_of_stage = stage(PreActivationBlock, in_channels, out_channels, blocks, stride)
    return nn.Sequential(OrderedDict(layer=blocks_of_stage))


def create(name: str, num_classes: int, in_channels: int) -> WideResNet:
    """Build ``wrn_{depth}_{width}`` with random weights.

    Raises:
        KeyError: the name does not have that form, the depth is not 6n + 4, or a number is zero or too large.
    """
    match = _PATTERN.fullmatch(name)
    if match is None or (int(match[1]) - 4) % 6 or not 10 <= int(match[1]) <= MOST_LAYERS:
        raise KeyError(name)
    if not 0 < int(match[2]) <= MOST_WIDER:
        raise KeyError(name)
    return WideResNet((int(match[1]) - 4) // 6, int(match[2]), num_classes, in_channels)
