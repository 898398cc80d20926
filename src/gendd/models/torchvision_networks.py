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

# Without the second heads that only training from scratch uses; alike with weights and without.
_INCEPTION = {"aux_logits": False, "transform_input": True}


def names() -> list[str]:
    """Every architecture, as ``torchvision/NAME``."""
    from torchvision import models

    return [f"torchvision/{name}" for name in models.list_models(module=models)]


def tagged() -> list[str]:
    """Every set of pretrained weights, as ``torchvision/NAME.WEIGHTS``."""
    from torchvision import models

    found = {name: models.get_model_weights(name.removeprefix("torchvision/")) for name in names()}
    return [f"{name}.{tag}" for name, tags in found.items() for tag in tags.__members__]


def create(name: str, wanted: Wanted, unknown: Callable[[str, list[str]], UserError]) -> Network:
    """Build ``NAME`` or ``NAME.WEIGHTS``; the normalisation is that of the weights' transforms.

    Args:
        name: Without ``torchvision/``. Pretrained without a tag it takes torchvision's default weights.
        wanted: What is asked of it. Its own channels are three.
        unknown: Words the error for a name that isn't there, given it and those that are.

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
    except Exception as error:  # no network, no disk, a damaged download
        if wanted.pretrained:
            raise without_weights(f"torchvision/{name}", error, _host(weights.url)) from error
        raise unbuilt("torchvision", name, error) from error
    known_input: dict[str, Any] = {}
    classes = None
    if weights is not None:
        transforms = weights.transforms()
        # some weights are of another size than the network is built for without them
        side = getattr(net, "image_size", transforms.crop_size[0])
        known_input = {"mean": transforms.mean, "std": transforms.std, "side": side}
        classes = len(weights.meta["categories"])
    return assemble(
        net, f"torchvision/{name}", wanted, channels=(3,), pretrained_classes=classes, **known_input
    )


def _host(url: str) -> str:
    return urlsplit(url).hostname or url


def _check_there(name: str, url: str) -> None:
    """Refuse weights neither cached nor to be had, before torch announces a download."""
    host = _host(url)
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(url).path).name
    if not cached.exists() and not downloads.reachable(host):
        raise without_weights(name, ConnectionError(f"{host} can't be reached"), host)
