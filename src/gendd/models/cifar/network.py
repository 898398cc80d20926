"""Base of the CIFAR networks: a feature map, its mean, and one Linear layer called ``fc``.

Shapes: B images · C channels · D feature width · K classes.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Network(nn.Module):
    """Images (B, C, H, W) -> logits (B, K); the pooled feature (B, D) is the input of ``fc``.

    Pooling is global, so that images of other sizes than 32x32 work too.
    """

    fc: nn.Linear

    @abstractmethod
    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> the last feature map (B, D, h, w)."""

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The last feature map -> logits (B, K), or the pooled feature (B, D) if ``pre_logits``."""
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        return x if pre_logits else self.fc(x)

    def get_classifier(self) -> nn.Linear:
        """The layer from feature (B, D) to logits (B, K)."""
        return self.fc

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def reset_convolutions(self) -> None:
        """He initialisation of all convolutions by fan-out per group; zero biases."""
        for module in self.modules():
            if not isinstance(module, nn.Conv2d):
                continue
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            with torch.no_grad():
                # torch's fan-out counts the outputs of all groups
                module.weight.mul_(math.sqrt(module.groups))
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def convolution(
    in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1, groups: int = 1
) -> nn.Conv2d:
    """Return a convolution without bias, padded so that stride 1 keeps the size."""
    return nn.Conv2d(
        in_channels, out_channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False
    )


def stage(
    block: Callable[[int, int, int], nn.Module], in_channels: int, out_channels: int, blocks: int, stride: int
) -> nn.Sequential:
    """Stack ``blocks`` blocks, built from (in_channels, out_channels, stride); only the first one strides."""
    layers = [block(in_channels, out_channels, stride)]
    layers += [block(out_channels, out_channels, 1) for _ in range(blocks - 1)]
    return nn.Sequential(*layers)
