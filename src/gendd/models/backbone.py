"""A network that returns its feature as well as its logits.

Shapes: B images, C channels, D feature width, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gendd.errors import UserError
from gendd.models.affine import as_linear, assign, with_classes
from gendd.models.feature import FeatureNetwork
from gendd.models.inputs import as_channels, check_images, check_normalisation
from gendd.models.mapped import Mapped
from gendd.models.trial import sample_images, still
from gendd.models.view import Reading, View, without

_MEASURED_SIDE = 32


class Backbone(Mapped):
    """Images (B, C, H, W) in [0, 1] -> (feature (B, D), logits (B, K)).

    The feature is the input of the classifier. A network without a classifier, an embedding network, returns
    its feature and empty logits: K = 0. The conversion of images to the network's input (channels, size,
    normalisation, in this order) is part of the module, so all backbones take the same images; it is not
    part of the state dict.

    Args:
        net: The network, an ``nn.Module`` with the methods of :class:`FeatureNetwork`, or any module with a
            ``reading``; its plain ``state_dict()`` is what is saved.
        name: Name that :func:`gendd.models.create_backbone` builds it by.
        in_channels: C.
        mean: Mean subtracted from the images, one number per channel of the network.
        std: Standard deviation they are divided by, positive, likewise.
        image_size: (H, W) that images are resized to (bilinear, antialiased); None: no resizing.
        classifier: Whether to use the network's classifier; False makes it an embedding network.
        feature_dim: D of an embedding network; None: measured on one image.
        channels: Input channels of the network; None: C. Grey images are repeated for a network of three
            channels; RGB images are converted to the luma of ITU-R BT.601 for a network of one.
        reading: How the feature is read; None: by the methods of :class:`FeatureNetwork`.
        stripped: Names of classifiers that the network was built without; their entries in a weights file
            are ignored.
        pretrained_classes: Number of classes of the classifier in the network's pretrained weights.
        arguments: Further arguments of :func:`gendd.models.create_backbone` that build it; JSON-ready.

    Raises:
        UserError: the classifier is not a single ``nn.Linear``, ``mean`` or ``std`` don't have one number
            per channel of the network, or images of C channels can't be converted to these channels.
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
        channels: int | None = None,
        reading: Reading | None = None,
        stripped: Sequence[str] = (),
        pretrained_classes: int | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        channels = in_channels if channels is None else channels
        check_normalisation(name, in_channels, channels, mean, std)
        self.net = net
        self.name = name
        self.in_channels = in_channels
        self.channels = channels
        self.image_size = image_size
        self.reading = reading
        self.stripped = tuple(stripped)
        self.pretrained_classes = pretrained_classes
        self.arguments = dict(arguments or {})
        self.input_mean = [float(value) for value in mean]
        self.input_std = [float(value) for value in std]
        self.classifier_names = self._find_classifier() if classifier else ()
        self._dtype: torch.dtype | None = None
        self._view: View | None = None
        shape = (1, channels, 1, 1)
        self.register_buffer("mean", torch.tensor(self.input_mean).reshape(shape), persistent=False)
        self.register_buffer("std", torch.tensor(self.input_std).reshape(shape), persistent=False)
        if self.has_classifier:
            feature_dim = self.classifier.in_features
        elif reading is not None:
            feature_dim = reading.width
        self._feature_dim = self._measure() if feature_dim is None else feature_dim

    def _find_classifier(self) -> tuple[str, ...]:
        if self.reading is not None:
            return self.reading.classifier
        if not hasattr(self.net, "get_classifier"):
            raise UserError(
                f"{self.name}: expected a network with timm's forward_features, forward_head and "
                "get_classifier, got one without; use gendd.wrap, which finds the feature of any."
            )
        classifier = cast(FeatureNetwork, self.net).get_classifier()
        if not isinstance(classifier, nn.Linear):
            raise UserError(
                f"{self.name}: expected a network whose classifier is a single Linear layer, got "
                f"{type(classifier).__name__}; choose another network."
            )
        return (next(key for key, module in self.net.named_modules() if module is classifier),)

    def _measure(self) -> int:
        size = self.image_size or (_MEASURED_SIDE, _MEASURED_SIDE)
        with still(self.net):
            return self.read(sample_images(self.net, self.channels, size)).shape[-1]

    @property
    def has_classifier(self) -> bool:
        """Whether there are logits; False for an embedding network."""
        return bool(self.classifier_names)

    @property
    def classifier_name(self) -> str | None:
        """Dotted name of the classifier, the first if there are two; None without one."""
        return next(iter(self.classifier_names), None)

    @property
    def _apart(self) -> bool:
        """Whether each of two classifiers takes its own part of the feature."""
        return self.reading is not None and len(self.reading.modules) > 1

    @property
    def classifier(self) -> nn.Linear:
        """The layer from feature (B, D) to logits (B, K); may be set to another Linear with D inputs.

        If the logits come from a 1x1 convolution, or are the mean of two layers' outputs, it is a view of
        those layers: write to it with :func:`gendd.models.affine.assign`.

        Raises:
            UserError: the network has none.
        """
        if not self.has_classifier:
            raise UserError(
                f"{self.name}: expected a network with a classifier, got an embedding network; "
                "use what needs its feature alone, or choose another network."
            )
        return as_linear([self.net.get_submodule(name) for name in self.classifier_names], self._apart)

    @classifier.setter
    def classifier(self, layer: nn.Linear) -> None:
        if not self.has_classifier:
            raise UserError(
                f"{self.name}: expected no classifier for an embedding network, got one; "
                "build the network with its own."
            )
        if layer.in_features != self.feature_dim:
            raise UserError(
                f"{self.name}: expected a classifier of {self.feature_dim} inputs, got {layer.in_features}; "
                f"build it as nn.Linear({self.feature_dim}, classes)."
            )
        if self.classifier is self.net.get_submodule(self.classifier_names[0]):
            self.net.set_submodule(self.classifier_names[0], layer)
            return
        for name in self.classifier_names:
            own = self.net.get_submodule(name)
            fresh = with_classes(own, layer.out_features, layer.bias is not None).to(layer.weight)
            self.net.set_submodule(name, fresh)
        assign(self.classifier, layer.weight, layer.bias)

    def take_classifier(self, source: nn.Linear) -> None:
        """Copy the classifier of another network with the same widths into this one's and freeze it."""
        assign(self.classifier, source.weight, source.bias)
        self.classifier.requires_grad_(False)

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
            UserError: the images have another type or number of channels.
        """
        return self.read(self.prepare(images))

    def prepare(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) -> the network's input, with its channels, size and normalisation.

        Raises:
            UserError: as :meth:`features`.
        """
        check_images(images, self.in_channels, self.name)
        x = as_channels(images, self.channels)
        if self.image_size is not None and x.shape[-2:] != self.image_size:
            x = F.interpolate(x, self.image_size, mode="bilinear", align_corners=False, antialias=True)
        # a single channel is repeated here by broadcasting
        x = (x - self.mean) / self.std
        return x.to(self._dtype or self.mean.dtype)

    def read(self, x: Tensor) -> Tensor:
        """The network's input, as :meth:`prepare` gives it -> feature (B, D)."""
        return self._as_feature(self._reader()(x))

    def body(self) -> Backbone:
        """Return this network without its classifier, sharing all weights; the original is unchanged."""
        if not self.has_classifier:
            return self
        # a network that can't run without its classifiers keeps them
        skips = self.reading is None or self.reading.skips
        copy = self._around(without(self.net, self.classifier_names if skips else ()))
        copy.classifier_names = ()
        return copy

    def _reader(self) -> Callable[[Tensor], Tensor]:
        if self._view is not None:
            return self._view.__call__
        if self.reading is not None:
            return View(self.net, self.reading).__call__
        net = cast(FeatureNetwork, self.net)
        return lambda x: net.forward_head(net.forward_features(x), pre_logits=True)

    def settle(self) -> Backbone:
        """Switch to eval mode permanently, in place, and fix the feature's view, so that it can be traced."""
        self.eval()
        if self.reading is not None:
            self._view = View(self.net, self.reading)
        return self

    def compute_in(self, dtype: torch.dtype) -> Backbone:
        """Convert weights and arithmetic to another floating-point type, in place, for inference only.

        The classifier keeps its type and the feature is float32, so that logits and class centres lose no
        further precision.
        """
        kept = self.classifier if self.has_classifier else None
        tensors = [] if kept is None else [(value, value.data) for value in kept.parameters()]
        self.net.to(dtype)
        for value, data in tensors:
            value.data = data
        self._dtype = dtype
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) in [0, 1] -> (feature (B, D), logits (B, K)); raises like :meth:`features`."""
        return self.with_logits(self.features(images))

    def with_logits(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """Feature (B, D) -> (the feature, its logits (B, K))."""
        return feature, self.classifier(feature) if self.has_classifier else feature[:, :0]

    def config(self) -> dict[str, Any]:
        """Arguments of :func:`gendd.models.create_backbone` that build the same network; JSON-ready."""
        described: dict[str, Any] = {
            "name": self.name,
            "num_classes": self.num_classes,
            "in_channels": self.in_channels,
            "mean": list(self.input_mean),
            "std": list(self.input_std),
        }
        if self.channels != self.in_channels:
            described["channels"] = self.channels
        if self.image_size is not None and self.image_size[0] == self.image_size[1]:
            described["input_size"] = self.image_size[0]
        if self.reading is not None and self.reading.spelled is not None:
            described["feature"] = self.reading.spelled
        if not self.has_classifier:
            described["classifier"] = False
        return described | self.arguments

    def describe(self) -> str:
        """The network's name, the place of its feature, and its sizes, on one line."""
        classes = f"K {self.num_classes}" if self.has_classifier else "no classifier"
        return f"{self.name}: feature = {self._place()}, D {self.feature_dim}, {classes}"

    def _place(self) -> str:
        if self.reading is None:
            if not self.has_classifier:
                return "pooled output"
            paths, side = self.classifier_names, "input"
        else:
            paths, side = self.reading.modules, "input" if self.reading.of_input else "output"
        if paths == ("",):
            return "output of the network"
        token = None if self.reading is None else self.reading.token
        chosen = "" if token is None else f", token {token}"
        where = " and ".join(f"{path} ({type(self.net.get_submodule(path)).__name__})" for path in paths)
        return f"{side} of {where}{chosen}"
