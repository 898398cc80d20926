"""Classification networks of torchvision, ``torchvision/NAME`` or ``torchvision/NAME.WEIGHTS``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch

from gendd.errors import UserError
from gendd.models import downloads
from gendd.models.network import Network, Wanted, assemble, unbuilt, without_weights

# no auxiliary heads, which only training from scratch uses; the same with and without pretrained weights
_INCEPTION = {"aux_logits": False, "transform_input": True}


def names() -> list[str]:
    """All architectures, as ``torchvision/NAME``."""
    from torchvision import models

    return [f"torchvision/{name}" for name in models.list_models(module=models)]


def tagged() -> list[str]:
    """All sets of pretrained weights, as ``torchvision/NAME.WEIGHTS``."""
    from torchvision import models

    found = {name: models.get_model_weights(name.removeprefix("torchvision/")) for name in names()}
    return [f"{name}.{tag}" for name, tags in found.items() for tag in tags.__members__]


def create(name: str, wanted: Wanted, unknown: Callable[[str, list[str]], UserError]) -> Network:
    """Build ``NAME`` or ``NAME.WEIGHTS``, with the normalisation of the weights' transforms.

    Args:
        name: Without ``torchvision/``. Pretrained networks without a tag use torchvision's default weights.
        wanted: Requirements. The network has three input channels.
        unknown: Builds the error for an unknown name from it and the known names.

    Raises:
        UserError: no such name or weights, or the feature isn't found.
    """
    from torchvision import models

    architecture, _, tag = name.partition(".")
    known = names()
    if f"torchvision/{architecture}" not in known:
        raise unknown(f"torchvision/{name}", known)
    tags = models.get_model_weights(architecture).__members__
    if tag and tag not in tags:
        raise unknown(f"torchvision/{name}", [f"torchvision/{architecture}.{each}" for each in tags])
    if wanted.pretrained and not tags:
        raise UserError(
            f"pretrained: expected false for {name}, of which torchvision has no weights, got true; "
            "give a weights file or another name."
        )
    weights: Any = tags.get(tag or "DEFAULT")
    settings: dict[str, Any] = {}
    if architecture in ("googlenet", "inception_v3"):
        settings = {**_INCEPTION, **({} if wanted.pretrained else {"init_weights": True})}
    if wanted.pretrained:
        _check_there(f"torchvision/{name}", weights.url)
        settings["weights"] = weights
    elif wanted.classifier:
        settings["num_classes"] = wanted.num_classes
    try:
        net = models.get_model(architecture, **settings)
    except Exception as error:  # no connection, no disk space, a damaged download
        if wanted.pretrained:
            raise without_weights(f"torchvision/{name}", error, _host(weights.url)) from error
        raise unbuilt("torchvision", name, error) from error
    known_input: dict[str, Any] = {}
    classes = None
    if weights is not None:
        transforms = weights.transforms()
        # some weights use another image size than the network has by default
        side = getattr(net, "image_size", transforms.crop_size[0])
        known_input = {"mean": transforms.mean, "std": transforms.std, "side": side}
        classes = len(weights.meta["categories"])
    return assemble(
        net, f"torchvision/{name}", wanted, channels=(3,), pretrained_classes=classes, **known_input
    )


def _host(url: str) -> str:
    return urlsplit(url).hostname or url


def _check_there(name: str, url: str) -> None:
    """Raise for weights that are neither cached nor reachable, before torch announces a download."""
    host = _host(url)
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(url).path).name
    if not cached.exists() and not downloads.reachable(host):
        raise without_weights(name, ConnectionError(f"{host} can't be reached"), host)
