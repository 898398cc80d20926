"""The layers from a feature to the logits, as one Linear layer.

Shapes: B images, D feature width, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn


def is_affine(layer: nn.Module) -> bool:
    """Whether a layer is ``nn.Linear`` or a 1x1 convolution."""
    if isinstance(layer, nn.Conv2d):
        return layer.kernel_size == (1, 1) and layer.groups == 1 and layer.padding in (0, (0, 0))
    return isinstance(layer, nn.Linear)


def width_of(layer: nn.Module) -> int:
    """Number of inputs of an affine layer."""
    return cast(Tensor, layer.weight)[0].numel()


def with_classes(layer: nn.Module, classes: int, bias: bool | None = None) -> nn.Module:
    """Return a randomly initialised affine layer of the same kind and inputs with ``classes`` outputs."""
    bias = layer.bias is not None if bias is None else bias
    if isinstance(layer, nn.Conv2d):
        return nn.Conv2d(layer.in_channels, classes, 1, bias=bias)
    return nn.Linear(width_of(layer), classes, bias=bias)


class Averaged(nn.Linear):
    """Mean of the outputs of several affine layers on a feature (B, D), as one Linear layer.

    Its weight and bias are computed from those of the layers; gradients reach the layers, and
    :func:`assign` writes to them.

    Args:
        layers: At least one, with K outputs each.
        apart: Whether each layer takes its own consecutive part of the feature; else each takes all of it.
    """

    def __init__(self, layers: Sequence[nn.Module], apart: bool) -> None:
        nn.Module.__init__(self)
        self.layers, self.apart = nn.ModuleList(layers), apart
        self.out_features, self.in_features = self.weight.shape

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        each = [cast(Tensor, layer.weight).flatten(1) for layer in self.layers]
        return torch.cat(each, 1) / len(each) if self.apart else torch.stack(each).mean(0)

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]
        each = [cast(Tensor, layer.bias) for layer in self.layers if layer.bias is not None]
        return torch.stack(each).sum(0) / len(self.layers) if each else None

    def reset_parameters(self) -> None:
        for layer in self.layers:
            cast(nn.Linear, layer).reset_parameters()


def as_linear(layers: Sequence[nn.Module], apart: bool) -> nn.Linear:
    """Combine affine layers whose outputs are averaged into one Linear layer; a single Linear is returned."""
    only = layers[0] if len(layers) == 1 else None
    return only if isinstance(only, nn.Linear) else Averaged(layers, apart)


@torch.no_grad()
def assign(classifier: nn.Linear, weight: Tensor, bias: Tensor | None) -> None:
    """Copy a weight (K, D) and a bias (K,), None for zeros, into a classifier.

    A classifier without a bias stays without one.
    """
    layers = list(classifier.layers) if isinstance(classifier, Averaged) else [classifier]
    parts: Sequence[Tensor] = [weight] * len(layers)
    if isinstance(classifier, Averaged) and classifier.apart:
        parts = torch.split(weight * len(layers), [width_of(layer) for layer in layers], 1)
    for layer, part in zip(layers, parts, strict=True):
        own = cast(Tensor, layer.weight)
        own.copy_(part.reshape(own.shape))
    biases = [cast(Tensor, layer.bias) for layer in layers if layer.bias is not None]
    for each in biases:
        each.zero_() if bias is None else each.copy_(bias * len(layers) / len(biases))
