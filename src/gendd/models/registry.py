"""Networks by name.

``cifar/NAME`` (see :mod:`gendd.models.cifar`), ``timm/NAME``, ``torchvision/NAME``, ``hf/ID`` of
transformers, and ``path/to/file.py:factory`` for the user's own. Libraries are slow to import, so they are
imported at the first use of one of their names.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from gendd.config import ModelConfig
from gendd.errors import UserError, did_you_mean, first_line
from gendd.files import is_python_name, user_path
from gendd.messages import say
from gendd.models import cifar, huggingface, module, timm_networks, torchvision_networks
from gendd.models.backbone import Backbone
from gendd.models.feature import FeatureNetwork
from gendd.models.frozen import Frozen
from gendd.models.network import DEFAULT_MEAN, DEFAULT_STD, Network, Wanted, assemble, square
from gendd.models.projector import project
from gendd.models.weights import load_weights, saved_backbone

_WIDTH = re.compile(r"resnet\d+x|wrn_\d+_")
_SPELLINGS = "cifar/NAME, timm/NAME, torchvision/NAME, hf/ID or FILE.py:FACTORY"


def list_models(pattern: str | None = None) -> list[str]:
    """List the names that :func:`create_backbone` knows, CIFAR networks first.

    Not listed but also valid: any ``cifar/resnetDxM`` of depth D = 6n + 2 and width multiplier M, any
    ``cifar/wrn_D_M`` of depth D = 6n + 4, ``hf/ID`` and ``path/to/file.py:factory``.

    Args:
        pattern: A glob (``timm/resnet*``) if it contains ``*``, ``?`` or ``[``, else a substring; None
            lists all. A pattern with a width, ``resnet8x0.5`` or ``resnet8x*``, or a tag of weights,
            ``resnet50.*``, also lists those.
    """
    names = [f"cifar/{name}" for name in (*cifar.NAMES, *_widths(pattern or ""))]
    for family, library in (("timm", timm_networks), ("torchvision", torchvision_networks)):
        # nothing matches a pattern that begins with another family's name
        asked = "" if pattern is None else pattern.partition("/")[0]
        if asked == family or asked not in ("cifar", "timm", "torchvision"):
            names += library.names() + (library.tagged() if "." in (pattern or "") else [])
    if pattern is None:
        return names
    if any(sign in pattern for sign in "*?["):
        return [name for name in names if fnmatchcase(name, pattern)]
    return [name for name in names if pattern in name]


def _widths(pattern: str) -> list[str]:
    """Further names of CIFAR networks, if a pattern contains a width."""
    if _WIDTH.search(pattern) is None:
        return []
    exact = pattern.removeprefix("cifar/")
    more = [exact] if exact not in cifar.WIDTHS and _is_cifar(exact) else []
    return [name for name in (*cifar.WIDTHS, *more) if name not in cifar.NAMES]


def create_backbone(
    name: str,
    num_classes: int,
    in_channels: int = 3,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    pretrained: bool = False,
    *,
    feature: str | None = None,
    classifier: bool = True,
    input_size: int | None = None,
    channels: int | None = None,
    weights: str | Path | None = None,
    config: Mapping[str, Any] | None = None,
    projector: Mapping[str, Any] | None = None,
) -> Backbone:
    """Build a network by name.

    Args:
        name: ``cifar/NAME`` (in any case); ``timm/NAME`` or ``timm/NAME.TAG``; ``torchvision/NAME`` or
            ``torchvision/NAME.WEIGHTS``; ``hf/ID`` of an image classifier of transformers, where the id
            may be a local folder (``hf//home/me/folder``, ``hf/./folder``); ``path/to/file.py:factory``
            for a function of the user's that returns a network and takes any of ``num_classes``,
            ``in_channels`` and ``pretrained``.
        num_classes: K. A pretrained network with another number of classes gets a random classifier.
            Ignored without a classifier.
        in_channels: C of the images.
        mean: Mean for images in [0, 1], one number per channel of the network; None: the library's own
            (averaged if its number of channels differs), 0 for a network from a Python file, else 0.5.
        std: Standard deviation, likewise; 1 for a network from a Python file, else 0.25.
        pretrained: Load the library's pretrained weights, downloading them if they aren't cached; for a
            network from a Python file: it comes trained.
        feature: Where the feature is, see :func:`gendd.wrap`; None: found automatically.
        classifier: Use the network's classifier; False makes it an embedding network.
        input_size: Side in pixels that images are resized to; None: no resizing, or the only size that the
            network takes.
        channels: Input channels of the network, see :class:`Backbone`; None: those of the images if it can
            be built with them, else its own.
        weights: A file for :func:`gendd.models.load_weights`, instead of pretrained weights; if it has
            another number of classes, or no classifier, everything else is loaded and a message is printed.
        config: For ``hf/`` names, the transformers configuration to build from, instead of the model's own.
        projector: Arguments of :func:`gendd.models.projector.project` except the classes, for a network
            that a method added a projector to.

    Raises:
        UserError: an unknown name, a size below 1, a wrong number of values in ``mean`` or ``std``, a
            network whose feature isn't found, or unavailable pretrained weights.
    """
    for key, value in (("num_classes", num_classes), ("in_channels", in_channels)):
        if value < 1 and (classifier or key == "in_channels"):
            raise UserError(f"{key}: expected a positive integer, got {value}; give the data's.")
    if name.startswith("cifar/"):
        name = _architecture(name)
    pretrained = pretrained and weights is None
    wanted = Wanted(num_classes, in_channels, pretrained, feature, classifier, input_size, channels, config)
    try:
        made = _create(name, wanted)
    except RuntimeError as error:  # from running the network
        size = "its own" if input_size is None else input_size
        raise UserError(
            f"{name}: expected a network that takes images of {size} pixels, got one that does not "
            f"({first_line(error).rstrip('.')}); give another input_size."
        ) from error
    backbone = made.backbone(name, in_channels, mean, std)
    if projector is not None:
        backbone = project(backbone, classes=num_classes, **projector)
    if weights is not None:
        load_weights(backbone, weights, other_classes=True)
        if (line := new_classifier(backbone, weights)) is not None:
            say(line)
    return backbone


def new_classifier(backbone: Backbone, source: str | Path) -> str | None:
    """Message if a network loaded from ``source`` got a new classifier for other classes; else None."""
    own, theirs = backbone.num_classes, backbone.pretrained_classes
    if theirs in (None, own):
        return None
    kind = f"of {theirs:,} classes, not {own:,}" if theirs else "without a classifier"
    return f"{backbone.name}: {source} {kind}: its classifier is newly initialised"


def check_name(name: str) -> None:
    """Check a name without building the network.

    Raises:
        UserError: :func:`create_backbone` knows no network of that name; suggests the nearest name.
    """
    family, _, rest = name.partition("/")
    if is_python_name(name) or family == module.FAMILY or (family == "hf" and rest):
        return
    architecture = _architecture(name)
    if family == "cifar":
        known = _is_cifar(architecture.removeprefix("cifar/"))
    elif family == "timm":
        known = timm_networks.exists(architecture.removeprefix("timm/"))
    else:
        known = family == "torchvision" and architecture in torchvision_networks.names()
    if not known:
        raise _unknown(name, list_models(f"{family}/") or list_models())


@cache
def _is_cifar(name: str) -> bool:
    try:
        # no random numbers are drawn for a network that is thrown away
        with torch.device("meta"):
            cifar.create(name, 1)
    except KeyError:
        return False
    return True


def _create(name: str, wanted: Wanted) -> Network:
    if is_python_name(name):
        return module.create(name, wanted)
    family, _, rest = name.partition("/")
    if family == "cifar":
        return _create_cifar(name, wanted)
    if family == "timm":
        return timm_networks.create(rest, wanted, _unknown)
    if family == "torchvision":
        return torchvision_networks.create(rest, wanted, _unknown)
    if family == "hf" and rest:
        return huggingface.create(rest, wanted)
    if family == module.FAMILY:
        raise UserError(
            f"{name}: expected an architecture known by name, got one that was built in Python; pass the "
            "module itself: gendd.load(path, backbone=module), or gendd.distill(teacher=module)."
        )
    raise _unknown(name, list_models())


def _create_cifar(name: str, wanted: Wanted) -> Network:
    if wanted.pretrained:
        raise UserError(
            f"pretrained: expected false for {name}, which has no published weights here, got true; "
            "give a weights file or a timm/ name."
        )
    channels = wanted.channels or wanted.in_channels
    try:
        net: nn.Module = cifar.create(
            name.removeprefix("cifar/"), wanted.num_classes if wanted.classifier else 1, channels
        )
    except KeyError:
        raise _unknown(name, list_models("cifar/")) from None
    if wanted.feature is not None:
        return assemble(net, name, wanted, channels=(channels,))
    made = Network(net, channels, (DEFAULT_MEAN,), (DEFAULT_STD,), square(wanted.input_size))
    if not wanted.classifier:
        layer = cast(FeatureNetwork, net).get_classifier()
        made.stripped = tuple(key for key, each in net.named_modules() if each is layer)
        net.set_submodule(made.stripped[0], nn.Identity())
        made.classifier = False
    return made


def build_model(
    config: ModelConfig,
    num_classes: int,
    in_channels: int,
    given: nn.Module | None = None,
    *,
    other_classes: bool = False,
) -> Backbone:
    """Build the network of a config section and load its weights file, if it names one.

    A weights file overrides ``pretrained``. With the weights of a run, images are preprocessed as in that
    run unless the section sets otherwise.

    Args:
        config: The section.
        num_classes: K.
        in_channels: C.
        given: A network made in Python, used instead of the name and its weights.
        other_classes: Also accept weights with another number of classes, or without a classifier, and load
            everything but the classifier.

    Raises:
        UserError: as :func:`create_backbone` and :func:`gendd.models.load_weights`, or the weights are
            those of a run with another network.
    """
    if given is not None:
        return _given(config, in_channels, given)
    described = None if config.weights is None else saved_backbone(config.weights)
    if described is not None:
        if _architecture(described["name"]) != _architecture(config.name):
            raise UserError(
                f"{config.weights}: expected the weights of {config.name}, got those of {described['name']}; "
                "give a run of this network or the name of the run's."
            )
        config = _as_described(config, described, in_channels)
    backbone = create_backbone(
        config.name,
        num_classes,
        in_channels,
        config.mean,
        config.std,
        pretrained=config.pretrained and config.weights is None,
        feature=config.feature,
        classifier=config.classifier,
        input_size=config.input_size,
        channels=config.channels,
        config=None if described is None else described.get("config"),
        projector=None if described is None else described.get("projector"),
    )
    if config.weights is not None:
        load_weights(backbone, config.weights, other_classes=other_classes)
    return backbone


def _as_described(config: ModelConfig, described: dict[str, Any], in_channels: int) -> ModelConfig:
    """Fill unset values of the section from a run's description of its network."""
    # with another number of channels the weights don't fit either, which loading them reports
    keys = ["feature", "input_size"]
    if described["in_channels"] == in_channels:
        keys += ["mean", "std", "channels"]
    filled: dict[str, Any] = {key: described.get(key) for key in keys if getattr(config, key) is None}
    return dataclasses.replace(config, **filled)


def _given(config: ModelConfig, in_channels: int, given: nn.Module) -> Backbone:
    backbone = module.wrap(
        given,
        feature=config.feature,
        classifier=config.classifier,
        mean=config.mean,
        std=config.std,
        in_channels=in_channels,
        input_size=config.input_size,
        channels=config.channels,
    )
    if backbone.in_channels != in_channels:
        raise UserError(
            f"{backbone.name}: expected a network of images of {in_channels} channels, as the data has, got "
            f"one of {backbone.in_channels}; wrap it with in_channels={in_channels}."
        )
    return backbone


def describe_module(config: ModelConfig, given: nn.Module) -> ModelConfig:
    """Config section that describes a network made in Python, with everything needed to wrap it again.

    Args:
        config: Section with the settings that apply to it.
        given: A module, a :class:`Backbone` or a :class:`Frozen`.
    """
    if not isinstance(given, (Backbone, Frozen)):
        name = f"{module.FAMILY}/{type(given).__name__}"
        return dataclasses.replace(config, name=name, weights=None, pretrained=True)
    backbone = given.backbone if isinstance(given, Frozen) else given
    values = backbone.config()
    return dataclasses.replace(
        config,
        name=backbone.name,
        weights=None,
        pretrained=True,
        mean=values["mean"],
        std=values["std"],
        feature=values.get("feature"),
        classifier=backbone.has_classifier,
        input_size=values.get("input_size"),
        channels=values.get("channels"),
    )


def pretrained_classes(backbone: Backbone) -> int | None:
    """Number of classes of the classifier in the network's pretrained weights; None if unknown."""
    return backbone.pretrained_classes


def _architecture(name: str) -> str:
    """Normalise a name, so that every network has exactly one."""
    if name.startswith("cifar/"):
        return f"cifar/{cifar.canonical(name.removeprefix('cifar/'))}"
    if is_python_name(name):
        path, _, factory = name.rpartition(":")
        return f"{os.path.realpath(user_path(path))}:{factory}"
    # a tag names weights, not another network
    return name.partition(".")[0] if name.startswith(("timm/", "torchvision/")) else name


def _unknown(name: str, choices: Sequence[str]) -> UserError:
    if os.path.exists(name):
        return UserError(
            f"{name!r}: expected a network's name, or the folder of a run or a student, got a path without "
            "config.json and model.safetensors; a file of weights goes beside a name, as student.weights or "
            "teacher.weights."
        )
    # prefer the same name in another family to another size
    own = name.rpartition("/")[2]
    choices = [choice for choice in choices if choice.partition("/")[2] == own] or choices
    return UserError(f"Unknown model {name!r}: expected {_SPELLINGS}.{did_you_mean(name, choices)}")
