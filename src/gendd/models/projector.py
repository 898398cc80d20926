"""A student network with a convolutional projector from its last feature map to the teacher's width.

Shapes: B images · E channels of the network's map · D of the projected map · K classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gendd.errors import UserError
from gendd.models.backbone import Backbone


class Projector(nn.Module):
    """1x1, 3x3 and 1x1 convolutions (Chen et al. 2022, SimKD); (B, E, h, w) -> (B, D, h, w).

    Args:
        channels: E.
        width: D.
        hidden: Channels between the convolutions.
        rectified: End in BatchNorm and ReLU, for non-negative targets; else the last convolution has a bias
            and nothing follows it, so that it can be applied after pooling.
    """

    def __init__(self, channels: int, width: int, hidden: int, rectified: bool = True) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, hidden, 1, bias=False)
        self.reduce_norm = nn.BatchNorm2d(hidden)
        self.spread = nn.Conv2d(hidden, hidden, 3, padding=1, bias=False)
        self.spread_norm = nn.BatchNorm2d(hidden)
        self.expand = nn.Conv2d(hidden, width, 1, bias=not rectified)
        self.expand_norm = nn.BatchNorm2d(width) if rectified else None

    def hidden(self, x: Tensor) -> Tensor:
        """Input of the last convolution, (B, hidden, h, w)."""
        x = F.relu(self.reduce_norm(self.reduce(x)))
        return F.relu(self.spread_norm(self.spread(x)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.expand(self.hidden(x))
        return x if self.expand_norm is None else F.relu(self.expand_norm(x))


class Projected(nn.Module):
    """A network followed by a projector of its map; its feature (B, D) is the mean of the projected map.

    Args:
        body: The network, without a classifier.
        projector: E -> D.
        width: D.
        classes: K.
    """

    def __init__(self, body: Backbone, projector: Projector, width: int, classes: int) -> None:
        super().__init__()
        self.body = body
        self.projector = projector
        self.fc = nn.Linear(width, classes)

    def body_map(self, x: Tensor) -> Tensor:
        """Normalised images (B, C, H, W) -> the network's own map (B, E, h, w)."""
        found = self.body.read_with_map(x)[1]
        assert found is not None
        return found

    def forward_features(self, x: Tensor) -> Tensor:
        """Normalised images (B, C, H, W) -> the projected map (B, D, h, w).

        For a projector that is not rectified, it is the map before the last convolution, (B, hidden, h, w):
        that convolution is cheaper after pooling (see :meth:`expanded`).
        """
        found = self.body_map(x)
        rectified = self.projector.expand_norm is not None
        projected: Tensor = self.projector(found) if rectified else self.projector.hidden(found)
        return projected

    def expanded(self, x: Tensor) -> Tensor:
        """Output of :meth:`forward_features`, or its mean (B, …, 1, 1) -> projected map (B, D, h, w)."""
        projected: Tensor = x if self.projector.expand_norm is not None else self.projector.expand(x)
        return projected

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Output of :meth:`forward_features` -> logits (B, K), or the feature (B, D) if ``pre_logits``."""
        x = self.expanded(F.adaptive_avg_pool2d(x, 1)).flatten(1)
        return x if pre_logits else self.fc(x)

    def get_classifier(self) -> nn.Linear:
        """The layer from feature (B, D) to logits (B, K)."""
        return self.fc

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def project(backbone: Backbone, width: int, hidden: int, classes: int, rectified: bool = True) -> Backbone:
    """Add a projector to a network, whose feature (B, D) becomes the mean of the projected map.

    The network is shared. An existing projector is replaced.

    Args:
        backbone: The network; its own classifier is not used.
        width: D.
        hidden: Channels between the projector's convolutions.
        classes: K of the new classifier, which is random.
        rectified: As for :class:`Projector`.

    Raises:
        UserError: the network has no map.
    """
    backbone = unprojected(backbone)
    if not backbone.has_map:
        raise UserError(
            f"{backbone.name}: expected a network with a map before its feature, which a projector takes, "
            "got one without; choose another network."
        )
    projector = Projector(backbone.map_dim, width, hidden, rectified)
    described: dict[str, Any] = {"width": width, "hidden": hidden, "rectified": rectified}
    arguments = {"projector": described}
    if "config" in backbone.arguments:
        arguments["config"] = backbone.arguments["config"]
    spelled = backbone.reading
    if spelled is not None and spelled.spelled is not None:
        arguments["feature"] = spelled.spelled  # type: ignore[assignment]
    projected = Backbone(
        Projected(backbone.body(), projector, width, classes),
        name=backbone.name,
        in_channels=backbone.in_channels,
        mean=backbone.input_mean,
        std=backbone.input_std,
        image_size=backbone.image_size,
        channels=backbone.channels,
        arguments=arguments,
    )
    return projected if backbone.noise_size is None else projected.expect(backbone.noise_size)


def unprojected(backbone: Backbone) -> Backbone:
    """Return a network without its projector; a network without one unchanged."""
    return backbone.net.body if isinstance(backbone.net, Projected) else backbone


def projector_width(backbone: Backbone, width: int) -> int:
    """Default for a projector's hidden channels: half the width D, or less if that is too expensive.

    Too expensive is more than a quarter of the network's multiply-adds.
    """
    shape = backbone.map_shape
    assert shape is not None
    channels, height, length = shape
    allowed = backbone.noise_cost() / 4
    hidden = max(1, width // 2)
    while hidden > 8 and height * length * (channels * hidden + 9 * hidden**2) + hidden * width > allowed:
        hidden //= 2
    return hidden


def one_grid(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Pool two maps (B, E, h, w) and (B, D, H, W) to the smaller of their heights and widths."""
    height, width = min(one.shape[2], other.shape[2]), min(one.shape[3], other.shape[3])

    def pooled(found: Tensor) -> Tensor:
        return found if found.shape[2:] == (height, width) else F.adaptive_avg_pool2d(found, (height, width))

    return pooled(one), pooled(other)


@torch.no_grad()
def pools_its_map(backbone: Backbone) -> bool:
    """Whether a network's feature is the mean of its map, tested on noise."""
    shape = backbone.map_shape
    if shape is None or shape[0] != backbone.feature_dim:
        return False
    feature, found = backbone.on_noise()
    if found is None:
        return False
    return bool(
        torch.allclose(found.mean((2, 3)), feature, rtol=1e-3, atol=1e-4 * float(feature.abs().max()))
    )
