"""The CIFAR ResNet family (He et al. 2016, section 4.2), with the state-dict keys of the public checkpoints.

``resnetN`` has three stages of (N - 2) / 6 basic blocks and widths 16, 32, 64 behind a 16-channel stem;
``resnetNx4`` widens the stages to 64, 128, 256 behind a 32-channel stem. Other multipliers
(``resnet8x0.5``) scale the stem and every stage of ``resnetN``.
"""

from __future__ import annotations

import re

from torch import Tensor, nn
from torch.nn import functional as F

NAMES: tuple[str, ...] = (
    "resnet8",
    "resnet14",
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
    "resnet110",
    "resnet8x4",
    "resnet32x4",
)

_PATTERN = re.compile(r"resnet(\d+)(?:x(\d+(?:\.\d+)?))?")


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; (B, I, H, W) -> (B, O, H / stride, W / stride)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(x)) + shortcut, inplace=True)


class ResNet(nn.Module):
    """Images (B, C, H, W) -> logits (B, K); the pooled feature (B, D) is the input of ``fc``."""

    def __init__(
        self, blocks: int, stem: int, widths: tuple[int, int, int], num_classes: int, in_channels: int
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, stem, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.layer1 = _stage(stem, widths[0], blocks, stride=1)
        self.layer2 = _stage(widths[0], widths[1], blocks, stride=2)
        self.layer3 = _stage(widths[1], widths[2], blocks, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[2], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> the last stage's map (B, D, ceil(H / 4), ceil(W / 4))."""
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        features: Tensor = self.layer3(self.layer2(self.layer1(x)))
        return features

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The last stage's map -> logits (B, K), or the pooled feature (B, D) if ``pre_logits``."""
        x = self.avgpool(x).flatten(1)
        return x if pre_logits else self.fc(x)

    def get_classifier(self) -> nn.Linear:
        """The layer from feature (B, D) to logits (B, K)."""
        return self.fc

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def _stage(in_channels: int, out_channels: int, blocks: int, stride: int) -> nn.Sequential:
    layers = [BasicBlock(in_channels, out_channels, stride)]
    layers += [BasicBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)]
    return nn.Sequential(*layers)


def create(name: str, num_classes: int, in_channels: int = 3) -> ResNet:
    """Build ``resnet{depth}`` or ``resnet{depth}x{multiplier}`` with random weights.

    Raises:
        KeyError: the name is not of that form, the depth is not 6n + 2, or the multiplier is zero.
    """
    match = _PATTERN.fullmatch(name)
    if match is None or (int(match[1]) - 2) % 6 or int(match[1]) < 8:
        raise KeyError(name)
    blocks = (int(match[1]) - 2) // 6
    scale = float(match[2] or 1)
    if scale == 0:
        raise KeyError(name)
    if scale == 4:
        return ResNet(blocks, 32, (64, 128, 256), num_classes, in_channels)
    stem, mid, last = (max(1, round(width * scale)) for width in (16, 32, 64))
    return ResNet(blocks, stem, (stem, mid, last), num_classes, in_channels)
