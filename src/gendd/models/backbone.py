"""A network that gives its feature beside its logits, and its frozen form.

Shapes: B images, C channels, D feature width, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from gendd.errors import UserError


class FeatureNetwork(Protocol):
    """What :class:`Backbone` needs of a network; every timm model has these methods."""

    def forward_features(self, x: Tensor, /) -> Tensor:
        """Normalised images (B, C, H, W) -> whatever ``forward_head`` takes."""

    def forward_head(self, x: Tensor, /, pre_logits: bool = False) -> Tensor:
        """-> logits (B, K), or the feature (B, D) that enters the classifier if ``pre_logits``."""

    def get_classifier(self) -> nn.Module:
        """The layer from feature to logits."""


class Backbone(nn.Module):
    """Images (B, C, H, W) in [0, 1] -> (feature (B, D), logits (B, K)).

    The feature is the input of the classifier. The input's normalisation is part of the module, so
    every backbone takes the same images; it is not part of the state dict.

    Args:
        net: The network, an ``nn.Module`` with the methods of :class:`FeatureNetwork`; its plain
            ``state_dict()`` is what is saved.
        name: The name :func:`gendd.models.create_backbone` builds it by.
        in_channels: C.
        mean: C numbers subtracted from the images.
        std: C positive numbers they are divided by.
        image_size: (H, W) where the network takes images of that size only.

    Raises:
        UserError: the classifier is not a single ``nn.Linear``, or ``mean`` or ``std`` don't hold C
            numbers.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        net: nn.Module,
        *,
        name: str,
        in_channels: int,
        mean: Sequence[float],
        std: Sequence[float],
        image_size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        classifier = cast(FeatureNetwork, net).get_classifier()
        if not isinstance(classifier, nn.Linear):
            raise UserError(
                f"{name}: expected a network whose classifier is a single Linear layer, got "
                f"{type(classifier).__name__}; choose another network."
            )
        for key, values in (("mean", mean), ("std", std)):
            if len(values) != in_channels:
                raise UserError(
                    f"{key}: expected {in_channels} numbers, one a channel, got {list(values)}; "
                    "give as many as the images have channels."
                )
        if min(std) <= 0:
            raise UserError(
                f"std: expected positive numbers, got {list(std)}; 1.0 leaves the scale as it is."
            )
        self.net = net
        self.name = name
        self.in_channels = in_channels
        self.image_size = image_size
        self.input_mean = [float(value) for value in mean]
        self.input_std = [float(value) for value in std]
        self.classifier_name = next(key for key, module in net.named_modules() if module is classifier)
        shape = (1, in_channels, 1, 1)
        self.register_buffer("mean", torch.tensor(self.input_mean).reshape(shape), persistent=False)
        self.register_buffer("std", torch.tensor(self.input_std).reshape(shape), persistent=False)

    @property
    def classifier(self) -> nn.Linear:
        """The layer from feature (B, D) to logits (B, K); may be set to another Linear of D inputs."""
        return cast(nn.Linear, self.net.get_submodule(self.classifier_name))

    @classifier.setter
    def classifier(self, layer: nn.Linear) -> None:
        if layer.in_features != self.feature_dim:
            raise UserError(
                f"{self.name}: expected a classifier of {self.feature_dim} inputs, got {layer.in_features}; "
                f"build it as nn.Linear({self.feature_dim}, classes)."
            )
        parent, _, attribute = self.classifier_name.rpartition(".")
        setattr(self.net.get_submodule(parent), attribute, layer)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "classifier":
            # nn.Module would register the layer a second time instead of calling the property.
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    @property
    def feature_dim(self) -> int:
        """D, the width of the feature."""
        return self.classifier.in_features

    @property
    def num_classes(self) -> int:
        """K, the number of logits."""
        return self.classifier.out_features

    def features(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W), floating point in [0, 1] -> feature (B, D), without the classifier.

        Raises:
            UserError: images of another type, number of channels or (fixed-size networks) size.
        """
        if images.dim() != 4 or images.shape[1] != self.in_channels or not images.is_floating_point():
            raise UserError(
                f"{self.name}: expected floating-point images of shape (B, {self.in_channels}, H, W), got "
                f"{str(images.dtype).removeprefix('torch.')} of shape {tuple(images.shape)}; scale them to "
                "[0, 1] or build the network with their number of channels."
            )
        if self.image_size is not None and images.shape[-2:] != self.image_size:
            expected, came = self.image_size, tuple(images.shape[-2:])
            raise UserError(
                f"{self.name}: expected images of (H, W) = {expected}, got {came}; "
                "set data.image_size to what the network takes or choose a network of any size."
            )
        net = cast(FeatureNetwork, self.net)
        return net.forward_head(net.forward_features((images - self.mean) / self.std), pre_logits=True)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) in [0, 1] -> (feature (B, D), logits (B, K)); raises as :meth:`features`."""
        feature = self.features(images)
        return feature, self.classifier(feature)

    def config(self) -> dict[str, Any]:
        """Arguments of :func:`gendd.models.create_backbone` that build the same network; JSON-ready."""
        return {
            "name": self.name,
            "num_classes": self.num_classes,
            "in_channels": self.in_channels,
            "mean": list(self.input_mean),
            "std": list(self.input_std),
        }


class Frozen(nn.Module):
    """A backbone that never changes: eval mode whatever ``train()`` is called, and no gradient.

    The backbone is frozen in place. Outputs are constants that may enter a graph.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Frozen:
        """Keeps eval mode, so that no BatchNorm statistic moves."""
        del mode
        super().train(False)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Frozen:
        # it never changes: copies of what it teaches share it
        return self

    @property
    def classifier(self) -> nn.Linear:
        """The frozen layer from feature (B, D) to logits (B, K)."""
        return self.backbone.classifier

    @property
    def feature_dim(self) -> int:
        """D, the width of the feature."""
        return self.backbone.feature_dim

    @property
    def num_classes(self) -> int:
        """K, the number of logits."""
        return self.backbone.num_classes

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) in [0, 1] -> constants (feature (B, D), logits (B, K))."""
        # Not inference_mode: its tensors can't be saved for a backward pass.
        with torch.no_grad():
            feature, logits = self.backbone(images)
        return feature, logits
