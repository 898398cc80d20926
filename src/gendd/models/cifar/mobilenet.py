"""``MobileNetV2`` with half width for CIFAR (Sandler et al. 2018)."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from gendd.models.cifar.network import Network, convolution, stage

# expansion, width, blocks, stride of each stage
_STAGES = (
    (1, 8, 1, 1),
    (6, 12, 2, 1),
    (6, 16, 3, 2),
    (6, 32, 4, 2),
    (6, 48, 3, 1),
    (6, 80, 3, 2),
    (6, 160, 1, 1),
)
_STEM = 16
_FEATURES = 1280


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise 3x3, 1x1 projection; (B, I, H, W) -> (B, O, H / stride, W / stride)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = in_channels * expansion
        self.conv = nn.Sequential(
            *_activated(in_channels, width),
            *_activated(width, width, kernel=3, stride=stride, groups=width),
            convolution(width, out_channels),
            nn.BatchNorm2d(out_channels),
        )
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return x + out if self.residual else out


class MobileNetV2(Network):
    """A strided stem, inverted residuals and a 1x1 convolution to the feature; see :class:`Network`."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(*_activated(in_channels, _STEM, kernel=3, stride=2))
        stages, channels = [], _STEM
        for expansion, width, blocks, stride in _STAGES:
            block = partial(InvertedResidual, expansion=expansion)
            stages.append(stage(block, channels, width, blocks, stride))
            channels = width
        self.blocks = nn.Sequential(*stages)
        self.conv2 = nn.Sequential(*_activated(channels, _FEATURES))
        self.fc = nn.Linear(_FEATURES, num_classes)
        self.reset_convolutions()

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> the last feature map (B, 1280, ceil(H / 16), ceil(W / 16))."""
        features: Tensor = self.conv2(self.blocks(self.conv1(x)))
        return features


def _activated(
    in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1, groups: int = 1
) -> tuple[nn.Module, ...]:
    return (
        convolution(in_channels, out_channels, kernel, stride, groups),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )
