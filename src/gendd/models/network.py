"""Requirements on a network and its properties once built, independent of its library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from torch import Tensor, nn

from gendd.errors import UserError, first_line
from gendd.models.affine import with_classes
from gendd.models.backbone import Backbone
from gendd.models.downloads import unfetched
from gendd.models.feature import find
from gendd.models.trial import find_size, sample_images
from gendd.models.view import Reading

DEFAULT_MEAN = 0.5
DEFAULT_STD = 0.25


@dataclass(frozen=True)
class Wanted:
    """Requirements on a network; see :func:`gendd.models.create_backbone`."""

    num_classes: int
    in_channels: int
    pretrained: bool = False
    feature: str | None = None
    classifier: bool = True
    input_size: int | None = None
    channels: int | None = None
    config: Mapping[str, Any] | None = None


@dataclass
class Network:
    """A network and its properties, as :class:`gendd.models.Backbone` takes them."""

    net: nn.Module
    channels: int
    mean: Sequence[float]
    std: Sequence[float]
    image_size: tuple[int, int] | None = None
    classifier: bool = True
    feature_dim: int | None = None
    reading: Reading | None = None
    stripped: Sequence[str] = ()
    pretrained_classes: int | None = None
    arguments: dict[str, Any] = field(default_factory=dict)

    def backbone(
        self, name: str, in_channels: int, mean: Sequence[float] | None, std: Sequence[float] | None
    ) -> Backbone:
        """Wrap the network with the given normalisation, else its own."""
        return Backbone(
            self.net,
            name=name,
            in_channels=in_channels,
            mean=per_channel(self.mean, self.channels) if mean is None else mean,
            std=per_channel(self.std, self.channels) if std is None else std,
            image_size=self.image_size,
            classifier=self.classifier,
            feature_dim=self.feature_dim,
            channels=self.channels,
            reading=self.reading,
            stripped=self.stripped,
            pretrained_classes=self.pretrained_classes,
            arguments=self.arguments,
        )


def per_channel(values: Sequence[float], channels: int) -> list[float]:
    """Normalisation values for ``channels`` channels; if their number differs, their average for each."""
    if len(values) == channels:
        return list(values)
    return [sum(values) / len(values)] * channels


def square(side: int | None) -> tuple[int, int] | None:
    """(H, W) of a square with the given side; None without one."""
    return None if side is None else (side, side)


def assemble(
    net: nn.Module,
    name: str,
    wanted: Wanted,
    *,
    channels: Sequence[int],
    side: int | None = None,
    mean: Sequence[float] = (DEFAULT_MEAN,),
    std: Sequence[float] = (DEFAULT_STD,),
    pretrained_classes: int | None = None,
    own: bool = True,
) -> Network:
    """Inspect a network by running it: its channels, its image size if it takes only one, and its feature.

    Args:
        net: Any network; its number of classes may differ from the one wanted.
        name: Its name.
        wanted: Requirements.
        channels: Candidate numbers of input channels, the likeliest first.
        side: An image side in pixels that it takes, if one is known.
        mean: Mean of its normalisation.
        std: Standard deviation of its normalisation.
        pretrained_classes: See :class:`gendd.models.Backbone`.
        own: Whether the network was built here and its classifier may be replaced by a random one if the
            classes differ, or removed if none is wanted.

    Raises:
        UserError: it takes none of the image shapes that were tried, or its feature isn't found.
    """
    if wanted.channels is not None:
        channels = (wanted.channels,)
    count, size, only = find_size(net, channels, wanted.input_size or side, name)
    images = sample_images(net, count, size)
    reading = find(net, images, name, wanted.feature, wanted.classifier, own)
    made = Network(net, count, mean, std, pretrained_classes=pretrained_classes)
    made.reading, made.classifier = reading, bool(reading.classifier)
    made.image_size = size if only else square(wanted.input_size)
    if own and made.classifier:
        for path in reading.classifier:
            layer = net.get_submodule(path)
            outputs = len(cast(Tensor, layer.weight))
            if outputs == wanted.num_classes:
                continue
            if not reading.final:
                raise UserError(
                    f"{name}: expected a classifier of {wanted.num_classes} classes, got {path!r} of "
                    f"{outputs} outputs; give the module before it as feature, or classifier false for its "
                    "input alone."
                )
            net.set_submodule(path, with_classes(layer, wanted.num_classes))
    elif own and reading.of_input and not wanted.classifier:
        for path in reading.modules:
            net.set_submodule(path, nn.Identity())
        made.stripped = reading.modules
    return made


_AS_FILE = "as a file (--teacher.weights or --student.weights FILE, in Python weights=FILE)"


def unbuilt(library: str, name: str, error: Exception, end: str = "", pretrained: bool = False) -> UserError:
    """Error for a library that failed to build a network from local files."""
    remedy = "choose another network"
    if pretrained:
        remedy = f"leave pretrained out, give weights {_AS_FILE}, or {remedy}"
    return UserError(f"{library} could not build {name}{end}: {first_line(error).rstrip('.')} ({remedy}).")


def without_weights(name: str, error: Exception, host: str) -> UserError:
    """Error for a library that failed to load a network's pretrained weights."""
    return unfetched(f"Pretrained weights of {name}", error, host, f"give them {_AS_FILE}")
