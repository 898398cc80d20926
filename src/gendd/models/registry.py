"""Networks by name: ``cifar/NAME`` (see :mod:`gendd.models.cifar`) and ``timm/NAME``.

timm is imported at the first use of one of its names: it takes seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any, cast

import torch
from torch import nn

from gendd.config import ModelConfig
from gendd.errors import UserError, did_you_mean
from gendd.models import cifar
from gendd.models.backbone import Backbone, FeatureNetwork
from gendd.models.weights import load_weights, saved_backbone, saved_classes

DEFAULT_MEAN = 0.5
DEFAULT_STD = 0.25


def list_models(pattern: str | None = None) -> list[str]:
    """The names :func:`create_backbone` knows, CIFAR networks first.

    Any ``cifar/resnetDxM`` of depth D = 6n + 2 and width multiplier M and any ``cifar/wrn_D_M`` of depth
    D = 6n + 4 work besides those listed.

    Args:
        pattern: A glob (``timm/resnet*``) if it holds ``*``, ``?`` or ``[``, else a substring; None
            lists all.
    """
    names = [f"cifar/{name}" for name in cifar.NAMES]
    if pattern is None or not pattern.startswith("cifar/"):
        import timm

        names += [f"timm/{name}" for name in timm.list_models()]
    if pattern is None:
        return names
    if any(sign in pattern for sign in "*?["):
        return [name for name in names if fnmatchcase(name, pattern)]
    return [name for name in names if pattern in name]


def create_backbone(
    name: str,
    num_classes: int,
    in_channels: int = 3,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    pretrained: bool = False,
) -> Backbone:
    """Build a network by name.

    Args:
        name: ``cifar/NAME`` (in any case) or ``timm/NAME`` (timm's ``NAME.TAG`` too).
        num_classes: K. A pretrained network with another number of classes gets a random classifier.
        in_channels: C.
        mean: C numbers for images in [0, 1]; None: timm's own (averaged over its channels if C
            differs), else 0.5.
        std: Likewise the standard deviation, else 0.25.
        pretrained: Load timm's pretrained weights, downloading them if they aren't cached.

    Raises:
        UserError: an unknown name, a size below 1, ``mean`` or ``std`` not of C numbers, a network
            whose classifier isn't a Linear layer on its feature, or no pretrained weights to be had.
    """
    for key, value in (("num_classes", num_classes), ("in_channels", in_channels)):
        if value < 1:
            raise UserError(f"{key}: expected a positive integer, got {value}; give the data's.")
    family, _, rest = name.partition("/")
    own_mean, own_std = [DEFAULT_MEAN] * in_channels, [DEFAULT_STD] * in_channels
    image_size = None
    net: nn.Module
    if family == "timm":
        net = _create_timm(rest, num_classes, in_channels, pretrained)
        own_mean, own_std, image_size = _timm_input(net, in_channels)
    elif family == "cifar":
        if pretrained:
            raise UserError(
                f"pretrained: expected false for {name}, which has no published weights here, got true; "
                "give a weights file or a timm/ name."
            )
        name = _architecture(name)
        try:
            net = cifar.create(name.removeprefix("cifar/"), num_classes, in_channels)
        except KeyError:
            raise _unknown(name, list_models("cifar/")) from None
    else:
        raise _unknown(name, list_models())
    return Backbone(
        net,
        name=name,
        in_channels=in_channels,
        mean=own_mean if mean is None else mean,
        std=own_std if std is None else std,
        image_size=image_size,
    )


def build_model(config: ModelConfig, num_classes: int, in_channels: int) -> Backbone:
    """Build the network of a config section and load its weights file, if it names one.

    A weights file takes the place of ``pretrained``. With the weights of a run, the input is normalised as
    it was there, where the section gives no ``mean`` or ``std``.

    Raises:
        UserError: as :func:`create_backbone` and :func:`gendd.models.load_weights`, or the weights are
            of a run with another network.
    """
    mean, std = config.mean, config.std
    described = None if config.weights is None else saved_backbone(config.weights)
    if described is not None:
        if _architecture(described["name"]) != _architecture(config.name):
            raise UserError(
                f"{config.weights}: expected the weights of {config.name}, got those of {described['name']}; "
                "give a run of this network or the name of the run's."
            )
        # of another number of channels the weights don't fit either, which their loading tells
        if described["in_channels"] == in_channels:
            mean, std = mean or described["mean"], std or described["std"]
    backbone = create_backbone(
        config.name,
        num_classes,
        in_channels,
        mean,
        std,
        pretrained=config.pretrained and config.weights is None,
    )
    if config.weights is not None:
        load_weights(backbone, config.weights)
    return backbone


def pretrained_classes(backbone: Backbone) -> int:
    """The number of classes of the classifier that timm's weights of a ``timm/`` network have."""
    return int(_settings(backbone.net)["num_classes"])


def teacher_classes(config: ModelConfig, in_channels: int) -> list[str]:
    """The classes that the weights of a config section tell apart: names, else numbers.

    Raises:
        UserError: as :func:`build_model`, or the section has neither weights nor pretrained ones.
    """
    backbone = create_backbone(config.name, 1, in_channels)
    if config.weights is not None:
        return saved_classes(backbone, config.weights)
    if not config.pretrained or not config.name.startswith("timm/"):
        raise UserError(
            f"teacher.weights: expected weights for {config.name}, whose classes the images don't tell, got "
            "none; give a file, or name the classes with data.classes."
        )
    return [str(number) for number in range(pretrained_classes(backbone))]


def _architecture(name: str) -> str:
    """One name a network."""
    if name.startswith("cifar/"):
        return f"cifar/{cifar.canonical(name.removeprefix('cifar/'))}"
    # timm's tag names weights, not another network
    return name.partition(".")[0] if name.startswith("timm/") else name


def _unknown(name: str, choices: Sequence[str]) -> UserError:
    return UserError(
        f"Unknown model {name!r}: expected cifar/NAME or timm/NAME.{did_you_mean(name, choices)}"
    )


def _create_timm(name: str, num_classes: int, in_channels: int, pretrained: bool) -> nn.Module:
    import timm

    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise _unknown(f"timm/{name}", list_models("timm/"))
    if tag:
        tagged = timm.list_models(architecture + ".*", pretrained=True, include_tags=True)
        if name not in tagged:
            raise _unknown(f"timm/{name}", [f"timm/{choice}" for choice in tagged])
    if pretrained and not timm.is_model_pretrained(name):
        raise UserError(
            f"pretrained: expected false for {name}, of which timm has no weights, got true; "
            "give a weights file or another name."
        )
    try:
        net = timm.create_model(name, pretrained=pretrained, num_classes=num_classes, in_chans=in_channels)
    except Exception as error:  # timm and the hub raise many kinds for no network, no disk or no such option
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        remedy = "check the network or give a weights file" if pretrained else "choose another network"
        raise UserError(
            f"timm could not build {name} with {in_channels} channels: {reason} ({remedy})."
        ) from error
    _check_feature(net, name, in_channels)
    return net


def _timm_input(net: nn.Module, in_channels: int) -> tuple[list[float], list[float], tuple[int, int] | None]:
    """timm's mean and std for C channels, and the only image size the network takes, if there is one."""
    settings = _settings(net)

    def per_channel(values: Sequence[float]) -> list[float]:
        if len(values) == in_channels:
            return list(values)
        return [sum(values) / len(values)] * in_channels

    size = _image_size(net) if settings.get("fixed_input_size") else None
    return per_channel(settings["mean"]), per_channel(settings["std"]), size


def _settings(net: nn.Module) -> dict[str, Any]:
    return cast("dict[str, Any]", net.pretrained_cfg)


def _image_size(net: nn.Module) -> tuple[int, int]:
    _, height, width = _settings(net)["input_size"]
    return height, width


def _check_feature(net: nn.Module, name: str, in_channels: int) -> None:
    """Raise unless the classifier is one Linear layer and takes the feature itself.

    A few timm networks put a norm between the two, or mix in a second head, which no shape shows.
    """
    network = cast(FeatureNetwork, net)
    classifier = network.get_classifier()
    fits = isinstance(classifier, nn.Linear)
    if fits:
        was_training = net.training
        net.eval()
        height, width = _image_size(net)
        images = torch.linspace(-2, 2, in_channels * height * width).reshape(1, in_channels, height, width)
        with torch.no_grad():
            maps = network.forward_features(images)
            feature = network.forward_head(maps, pre_logits=True)
            # Bit for bit: an untrained BatchNorm between the two changes the logits by 5e-6 only.
            fits = feature.shape == (1, classifier.in_features) and torch.equal(
                classifier(feature), network.forward_head(maps)
            )
        net.train(was_training)
    if not fits:
        raise UserError(
            f"timm/{name}: expected a classifier of one Linear layer on the pooled feature, got "
            f"{type(classifier).__name__} behind other layers or heads; choose another network."
        )
