"""VGG with BatchNorm for CIFAR (Simonyan & Zisserman 2015): its convolutions, then one Linear layer."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from gendd.models.cifar.network import Network

_WIDTHS = (64, 128, 256, 512, 512)
_CONVOLUTIONS = {
    "vgg8": (1, 1, 1, 1, 1),
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}


class VGG(Network):
    """Five blocks of 3x3 convolutions, the first three followed by pooling; see :class:`Network`.

    Args:
        convolutions: Number of convolutions in each block.
        num_classes: K.
        in_channels: C.
    """

    def __init__(self, convolutions: tuple[int, ...], num_classes: int, in_channels: int) -> None:
        super().__init__()
        inputs = (in_channels, *_WIDTHS)
        parts = zip(inputs, _WIDTHS, convolutions, strict=False)
        self.block0, self.block1, self.block2, self.block3, self.block4 = (_block(*part) for part in parts)
        self.fc = nn.Linear(_WIDTHS[-1], num_classes)
        self.reset_convolutions()

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) of at least 8 pixels -> the last feature map (B, 512, H // 8, W // 8)."""
        for block in (self.block0, self.block1, self.block2):
            x = F.max_pool2d(F.relu(block(x), inplace=True), 2)
        x = F.relu(self.block3(x), inplace=True)
        return F.relu(self.block4(x), inplace=True)


def _block(in_channels: int, out_channels: int, convolutions: int) -> nn.Sequential:
    """Convolutions with BatchNorm, and ReLU after all but the last."""
    layers: list[nn.Module] = []
    for index in range(convolutions):
        if index > 0:
            layers.append(nn.ReLU(inplace=True))
        layers.append(nn.Conv2d(in_channels if index == 0 else out_channels, out_channels, 3, padding=1))
        layers.append(nn.BatchNorm2d(out_channels))
    return nn.Sequential(*layers)


def create(name: str, num_classes: int, in_channels: int) -> VGG:
    """Build a VGG with random weights; raises :class:`KeyError` if there is none of that name."""
    return VGG(_CONVOLUTIONS[name], num_classes, in_channels)
