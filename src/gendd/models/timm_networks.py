"""Networks of timm, ``timm/NAME`` or ``timm/NAME.TAG``. timm is slow to import, so it is imported on use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn

from gendd.errors import UserError, first_line
from gendd.models.downloads import hub_or_cache
from gendd.models.feature import FeatureNetwork, find, fits
from gendd.models.network import Network, Wanted, assemble, square, unbuilt, without_weights
from gendd.models.trial import sample_images, still
from gendd.models.view import Reading


def names() -> list[str]:
    """All architectures, as ``timm/NAME``."""
    import timm

    return [f"timm/{name}" for name in timm.list_models()]


def tagged() -> list[str]:
    """All sets of pretrained weights, as ``timm/NAME.TAG``."""
    import timm

    return [f"timm/{name}" for name in timm.list_models(pretrained=True, include_tags=True) if "." in name]


def exists(name: str) -> bool:
    """Whether timm has an architecture ``NAME`` (without a tag)."""
    import timm

    return bool(timm.is_model(name))


def create(name: str, wanted: Wanted, unknown: Callable[[str, list[str]], UserError]) -> Network:
    """Build ``NAME`` or ``NAME.TAG``.

    Args:
        name: Without ``timm/``.
        wanted: Requirements.
        unknown: Builds the error for an unknown name from it and the known names.

    Raises:
        UserError: no such name or weights, or a network without a usable classifier.
    """
    net = _built(name, wanted, unknown)
    settings = cast("dict[str, Any]", net.pretrained_cfg)
    channels = wanted.channels or wanted.in_channels
    _, height, width = settings["input_size"]
    if settings.get("fixed_input_size") and wanted.input_size is not None:
        height = width = wanted.input_size
    if wanted.feature is not None:
        made = assemble(
            net,
            f"timm/{name}",
            wanted,
            channels=(channels,),
            side=height,
            mean=settings["mean"],
            std=settings["std"],
            pretrained_classes=settings["num_classes"],
        )
    else:
        images = sample_images(net, channels, (height, width))
        made = Network(net, channels, settings["mean"], settings["std"])
        made.pretrained_classes = settings["num_classes"]
        made.image_size = square(wanted.input_size)
        if not wanted.classifier:
            made.classifier, made.feature_dim = False, _width(net, images, name)
        else:
            made.reading = _reading(net, images, name)
    if settings.get("fixed_input_size"):
        made.image_size = (height, width)
    if not wanted.classifier:
        classifiers = settings["classifier"]
        made.stripped = (classifiers,) if isinstance(classifiers, str) else classifiers
    return made


def _built(name: str, wanted: Wanted, unknown: Callable[[str, list[str]], UserError]) -> nn.Module:
    import timm

    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise unknown(f"timm/{name}", names())
    if tag:
        tagged = timm.list_models(architecture + ".*", pretrained=True, include_tags=True)
        if name not in tagged:
            raise unknown(f"timm/{name}", [f"timm/{choice}" for choice in tagged])
    if wanted.pretrained and not timm.is_model_pretrained(name):
        raise UserError(
            f"pretrained: expected false for {name}, of which timm has no weights, got true; "
            "give a weights file or another name."
        )
    channels = wanted.channels or wanted.in_channels
    sized: dict[str, Any] = {}
    settings = timm.get_pretrained_cfg(name)
    if wanted.input_size is not None and settings is not None and settings.fixed_input_size:
        sized["img_size"] = wanted.input_size
    with hub_or_cache() as host:
        try:
            net: nn.Module = timm.create_model(
                name,
                pretrained=wanted.pretrained,
                num_classes=wanted.num_classes if wanted.classifier else 0,
                in_chans=channels,
                **sized,
            )
        except Exception as error:  # timm and the Hub raise many types for no connection, disk or such option
            if wanted.pretrained:
                raise without_weights(f"timm/{name}", error, host) from error
            end = f" with {channels} channels" + (f" and input_size {wanted.input_size}" if sized else "")
            raise unbuilt("timm", name, error, end) from error
    return net


def _reading(net: nn.Module, images: torch.Tensor, name: str) -> Reading | None:
    """Reading of the feature if the classifier is not a Linear layer on timm's own feature; else None."""
    try:
        return None if fits(net, images) else find(net, images, f"timm/{name}", own=True)
    except UserError:
        raise
    except Exception as error:  # from the network's own code
        raise UserError(
            f"timm/{name}: expected an input_size that it takes, got {images.shape[-1]} "
            f"({first_line(error)}); leave it out, or give another."
        ) from error


def _width(net: nn.Module, images: torch.Tensor, name: str) -> int:
    network = cast(FeatureNetwork, net)
    with still(net):
        feature = network.forward_head(network.forward_features(images), pre_logits=True)
    if feature.dim() != 2:
        raise UserError(
            f"timm/{name}: expected a pooled feature (B, D), got {tuple(feature.shape)}; "
            "give a module as feature."
        )
    return feature.shape[1]
