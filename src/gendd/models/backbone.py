"""A network that gives its feature beside its logits, and its frozen form.

Shapes: B images, C channels, D feature width, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from gendd.errors import UserError

_MEASURED_SIDE = 32


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

    The feature is the input of the classifier. A network without one, an embedding network, gives its
    feature and empty logits: K = 0. The input's normalisation is part of the module, so every backbone
    takes the same images; it is not part of the state dict.

    Args:
        net: The network, an ``nn.Module`` with the methods of :class:`FeatureNetwork`; its plain
            ``state_dict()`` is what is saved.
        name: The name :func:`gendd.models.create_backbone` builds it by.
        in_channels: C.
        mean: C numbers subtracted from the images.
        std: C positive numbers they are divided by.
        image_size: (H, W) where the network takes images of that size only.
        classifier: Whether the network's classifier is used; False makes it an embedding network.
        feature_dim: D of an embedding network; None: measured on one image.

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
        classifier: bool = True,
        feature_dim: int | None = None,
    ) -> None:
        super().__init__()
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
        self.classifier_name = self._find_classifier() if classifier else None
        shape = (1, in_channels, 1, 1)
        self.register_buffer("mean", torch.tensor(self.input_mean).reshape(shape), persistent=False)
        self.register_buffer("std", torch.tensor(self.input_std).reshape(shape), persistent=False)
        if self.classifier_name is not None:
            feature_dim = self.classifier.in_features
        self._feature_dim = self._measure() if feature_dim is None else feature_dim

    def _find_classifier(self) -> str:
        classifier = cast(FeatureNetwork, self.net).get_classifier()
        if not isinstance(classifier, nn.Linear):
            raise UserError(
                f"{self.name}: expected a network whose classifier is a single Linear layer, got "
                f"{type(classifier).__name__}; choose another network."
            )
        return next(key for key, module in self.net.named_modules() if module is classifier)

    @torch.no_grad()
    def _measure(self) -> int:
        modes = [(part, part.training) for part in self.modules()]
        self.eval()
        height, width = self.image_size or (_MEASURED_SIDE, _MEASURED_SIDE)
        try:
            return self.features(torch.zeros(1, self.in_channels, height, width)).shape[-1]
        finally:
            for part, training in modes:
                part.training = training

    @property
    def has_classifier(self) -> bool:
        """Whether there are logits; False for an embedding network."""
        return self.classifier_name is not None

    @property
    def classifier(self) -> nn.Linear:
        """The layer from feature (B, D) to logits (B, K); may be set to another Linear of D inputs.

        Raises:
            UserError: the network has none.
        """
        if self.classifier_name is None:
            raise UserError(
                f"{self.name}: expected a network with a classifier, got an embedding network; "
                "use what needs its feature alone, or choose another network."
            )
        return cast(nn.Linear, self.net.get_submodule(self.classifier_name))

    @classifier.setter
    def classifier(self, layer: nn.Linear) -> None:
        replaced = self.classifier_name
        if replaced is None:
            raise UserError(f"{self.name}: got a classifier for an embedding network, which has none; build it with one.")
        if layer.in_features != self.feature_dim:
            raise UserError(
                f"{self.name}: expected a classifier of {self.feature_dim} inputs, got {layer.in_features}; "
                f"build it as nn.Linear({self.feature_dim}, classes)."
            )
        parent, _, attribute = replaced.rpartition(".")
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
        return self._feature_dim

    @property
    def num_classes(self) -> int:
        """K, the number of logits; 0 without a classifier."""
        return self.classifier.out_features if self.has_classifier else 0

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
        return feature, self.classifier(feature) if self.has_classifier else feature[:, :0]

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
    def has_classifier(self) -> bool:
        """Whether there are logits; False for an embedding network."""
        return self.backbone.has_classifier

    @property
    def classifier(self) -> nn.Linear:
        """The frozen layer from feature (B, D) to logits (B, K); raises as :attr:`Backbone.classifier`."""
        return self.backbone.classifier

    @property
    def feature_dim(self) -> int:
        """D, the width of the feature."""
        return self.backbone.feature_dim

    @property
    def num_classes(self) -> int:
        """K, the number of logits; 0 without a classifier."""
        return self.backbone.num_classes

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) in [0, 1] -> constants (feature (B, D), logits (B, K))."""
        # Not inference_mode: its tensors can't be saved for a backward pass.
        with torch.no_grad():
            feature, logits = self.backbone(images)
        return feature, logits
