"""The CIFAR networks of the distillation literature, with the state-dict keys of the public checkpoints.

The classifier is called ``fc`` in all of them; :func:`gendd.models.load_weights` also takes checkpoints
with other names for it.
"""

from __future__ import annotations

from collections.abc import Callable

from gendd.models.cifar import resnet, vgg, wide_resnet
from gendd.models.cifar.mobilenet import MobileNetV2
from gendd.models.cifar.network import Network
from gendd.models.cifar.shufflenet import ShuffleV1, ShuffleV2

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
    "ResNet50",
    "wrn_16_1",
    "wrn_16_2",
    "wrn_40_1",
    "wrn_40_2",
    "vgg8",
    "vgg11",
    "vgg13",
    "vgg16",
    "vgg19",
    "MobileNetV2",
    "ShuffleV1",
    "ShuffleV2",
)

# further names that :func:`create` knows and that lists may show
WIDTHS: tuple[str, ...] = (
    *(
        f"resnet{depth}x{width}"
        for depth in (8, 14, 20, 32, 44, 56, 110)
        for width in ("0.25", "0.5", "2", "4")
    ),
    *(f"wrn_{depth}_{width}" for depth in (16, 28, 40) for width in (1, 2, 4, 8, 10)),
)

_SINGLE: dict[str, Callable[[int, int], Network]] = {
    "MobileNetV2": MobileNetV2,
    "ShuffleV1": ShuffleV1,
    "ShuffleV2": ShuffleV2,
}
_FAMILIES: dict[str, Callable[[str, int, int], Network]] = {
    "resnet": resnet.create,
    "ResNet": resnet.create,
    "wrn": wide_resnet.create,
    "vgg": vgg.create,
}


def create(name: str, num_classes: int, in_channels: int = 3) -> Network:
    """Build one of :data:`NAMES`, ``resnet{depth}x{multiplier}`` or ``wrn_{depth}_{width}``, untrained.

    Raises:
        KeyError: there is no network of that name (see :func:`canonical` for other spellings).
    """
    if name in _SINGLE:
        return _SINGLE[name](num_classes, in_channels)
    for prefix, family in _FAMILIES.items():
        if name.startswith(prefix):
            return family(name, num_classes, in_channels)
    raise KeyError(name)


def canonical(name: str) -> str:
    """Return the spelling that :func:`create` takes for a listed name in any case; other names unchanged.

    ``resnet50`` is not a spelling of ``ResNet50``: it is another network, of basic blocks.
    """
    if name in NAMES or name.startswith("resnet"):
        return name
    return next((known for known in NAMES if known.lower() == name.lower()), name)


__all__ = ["NAMES", "WIDTHS", "Network", "canonical", "create"]
