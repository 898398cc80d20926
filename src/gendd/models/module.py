"""The user's own networks: from a function in a Python file, or a module made in Python."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from gendd.errors import UserError, typed_line
from gendd.files import import_name, is_python_name, user_path
from gendd.models.backbone import Backbone
from gendd.models.feature import fits
from gendd.models.frozen import Frozen
from gendd.models.network import Network, Wanted, assemble, square
from gendd.models.trial import find_size, sample_images

FAMILY = "module"
_METHODS = ("forward_features", "forward_head", "get_classifier")


def create(name: str, wanted: Wanted) -> Network:
    """Build the network returned by a function in a Python file.

    Args:
        name: ``path/to/file.py:factory``; the function may take any of ``num_classes``, ``in_channels``
            and ``pretrained``. It may be a class.
        wanted: Requirements. A function without ``in_channels`` chooses the channels itself.

    Raises:
        UserError: no such file or function, it fails or returns no module, or the feature isn't found.
    """
    factory: Callable[..., Any] = import_name(name, "a function", callable)
    given = {
        "num_classes": wanted.num_classes if wanted.classifier else 1,
        "in_channels": wanted.channels or wanted.in_channels,
        "pretrained": wanted.pretrained,
    }
    taken = _taken(factory, given, name)
    try:
        net = factory(**taken)
    except (Exception, SystemExit) as error:  # of the user's own code
        raise UserError(f"{name}: expected a function that returns a network; {typed_line(error)}") from error
    if not isinstance(net, nn.Module):
        raise UserError(
            f"{name}: expected a function that returns a torch.nn.Module, got one of {type(net).__name__}; "
            "return a module."
        )
    channels = (given["in_channels"],) if "in_channels" in taken else (wanted.in_channels, 3, 1)
    return _look_at(net, name, wanted, channels, own=not wanted.classifier)


def digest(name: str) -> str | None:
    """Digest of the Python file in a network's name; None for a name without a file."""
    if not is_python_name(name):
        return None
    return hashlib.sha256(_path(name).read_bytes()).hexdigest()


def wrap(
    module: nn.Module,
    *,
    feature: str | None = None,
    classifier: bool = True,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    in_channels: int = 3,
    input_size: int | None = None,
    channels: int | None = None,
) -> Backbone:
    """Wrap any network as a :class:`Backbone`, which shares the module.

    The network is run on noise to find out which images it takes and where its feature is.

    Args:
        module: Takes normalised images (B, C, H, W) and returns logits (B, K), as a tensor, as ``.logits``,
            or first in a tuple; or returns an embedding.
        feature: Dotted name of a Linear layer, which is the classifier and whose input is the feature; or
            of any other module, whose output is the feature: maps (B, C, H, W) averaged over H and W, tokens
            (B, N, D) averaged over N, or only token ``n`` for ``NAME[n]``; ``output`` is the network's own
            output. None: the input of the Linear layer, or of the 1x1 convolution on one pixel, that gives
            the network's output, or of the two layers whose outputs are averaged to it.
        classifier: Use the classifier; False makes it an embedding network.
        mean: Mean subtracted from images in [0, 1], one number per channel of the network; None: that of a
            timm network's ``pretrained_cfg``, else 0.
        std: Standard deviation they are divided by; None: likewise, else 1.
        in_channels: Channels of the images.
        input_size: Side in pixels that images are resized to; None: no resizing, or the only size that the
            network takes.
        channels: Input channels of the network; None: found by trying, those of the images first.

    Raises:
        UserError: it takes none of the image shapes that were tried, or its feature isn't found.
    """
    if isinstance(module, Frozen):
        return module.backbone
    if isinstance(module, Backbone):
        return module
    name = f"{FAMILY}/{type(module).__name__}"
    wanted = Wanted(
        0,
        in_channels,
        feature=feature,
        classifier=classifier,
        input_size=input_size,
        channels=channels,
    )
    made = _look_at(module, name, wanted, (in_channels, 3, 1), own=False)
    return made.backbone(name, in_channels, mean, std)


def _look_at(net: nn.Module, name: str, wanted: Wanted, channels: Sequence[int], own: bool) -> Network:
    """Inspect a network; one with timm's methods is asked for its feature directly."""
    channels = [
        each
        for each in dict.fromkeys(channels)
        if {each, wanted.in_channels} <= {1, 3} or each == wanted.in_channels
    ]
    settings: Any = getattr(net, "pretrained_cfg", None)
    settings = settings if isinstance(settings, dict) else {}
    own_input: dict[str, Any] = {"mean": settings.get("mean") or (0.0,), "std": settings.get("std") or (1.0,)}
    if wanted.feature is None and wanted.classifier and all(hasattr(net, each) for each in _METHODS):
        options = channels if wanted.channels is None else [wanted.channels]
        count, size, only = find_size(net, options, wanted.input_size, name)
        if fits(net, sample_images(net, count, size)):
            return Network(net, count, **own_input, image_size=size if only else square(wanted.input_size))
    return assemble(net, name, wanted, channels=channels, own=own, **own_input)


def _path(name: str) -> Path:
    return user_path(name.rpartition(":")[0])


def _taken(factory: Callable[..., Any], given: dict[str, Any], name: str) -> dict[str, Any]:
    """Select the given arguments that a function takes."""
    parameters = inspect.signature(factory).parameters.values()
    if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters):
        return given
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    for each in parameters:
        required = (
            each.default is inspect.Parameter.empty and each.kind is not inspect.Parameter.VAR_POSITIONAL
        )
        if required and (each.kind not in named or each.name not in given):
            raise UserError(
                f"{name}: expected a function of {', '.join(given)} or fewer of them, got one that needs "
                f"{each.name!r}; give that a default."
            )
    return {each.name: given[each.name] for each in parameters if each.kind in named and each.name in given}
