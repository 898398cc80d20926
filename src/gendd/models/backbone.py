"""A network that gives its feature beside its logits, and its frozen form.

Shapes: B images, C channels, D feature width, K classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gendd.errors import UserError, first_line
from gendd.models.costs import multiply_adds
from gendd.models.feature import (
    FeatureNetwork,
    Reading,
    View,
    as_map,
    has_positions,
    sample_images,
    stage_names,
    still,
    tapped,
    without,
)
from gendd.models.graphs import GraphedPasses

_MEASURED_SIDE = 32
# ITU-R BT.601, as image libraries turn RGB to grey
_LUMA = (0.299, 0.587, 0.114)


class Backbone(nn.Module):
    """Images (B, C, H, W) in [0, 1] -> (feature (B, D), logits (B, K)).

    The feature is the input of the classifier. A network without one, an embedding network, gives its
    feature and empty logits: K = 0. What turns images into the network's input (its channels, its size,
    its normalisation, in this order) is part of the module, so every backbone takes the same images; it
    is not part of the state dict.

    Args:
        net: The network, an ``nn.Module`` with the methods of :class:`FeatureNetwork`, or any with a
            ``reading``; its plain ``state_dict()`` is what is saved.
        name: The name :func:`gendd.models.create_backbone` builds it by.
        in_channels: C.
        mean: Numbers subtracted from the images, one for each of the network's channels.
        std: Positive numbers they are divided by, likewise.
        image_size: (H, W) that images are resized to (bilinear, antialiased); None: left as they are.
        classifier: Whether the network's classifier is used; False makes it an embedding network.
        feature_dim: D of an embedding network; None: measured on one image.
        channels: The network's channels; None: C. One channel is repeated for a network of three, three
            are averaged to the luma of ITU-R BT.601 for a network of one.
        reading: How the feature is read; None: by the methods of :class:`FeatureNetwork`.
        stripped: Names of classifiers that the network was built without; what a weights file has of
            them is left out.
        pretrained_classes: Classes of the classifier that the network's pretrained weights have.
        arguments: Further arguments of :func:`gendd.models.create_backbone` that build it; JSON-ready.

    Raises:
        UserError: the classifier is not a single ``nn.Linear``, ``mean`` or ``std`` don't hold a number
            for each of the network's channels, or images of C channels can't become such.
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
        if channels != in_channels and {channels, in_channels} != {1, 3}:
            raise UserError(
                f"channels: expected {in_channels}, as the images have, for {name}, got {channels}; "
                "only 1 and 3 are turned into one another."
            )
        for key, values in (("mean", mean), ("std", std)):
            if len(values) != channels:
                raise UserError(
                    f"{key}: expected {channels} numbers, one a channel, got {list(values)}; "
                    f"give as many as {name} has channels."
                )
        if min(std) <= 0:
            raise UserError(
                f"std: expected positive numbers, got {list(std)}; 1.0 leaves the scale as it is."
            )
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
        self.classifier_name = self._find_classifier() if classifier else None
        self._dtype: torch.dtype | None = None
        self._view: View | None = None
        self.noise_size: tuple[int, int] | None = None
        self._stage_names: list[str] | None = None
        self._stage_dims: list[int] | None = None
        self._map_shape: tuple[int, int, int] | Literal["unknown"] | None = "unknown"
        shape = (1, channels, 1, 1)
        self.register_buffer("mean", torch.tensor(self.input_mean).reshape(shape), persistent=False)
        self.register_buffer("std", torch.tensor(self.input_std).reshape(shape), persistent=False)
        if self.classifier_name is not None:
            feature_dim = self.classifier.in_features
        elif reading is not None:
            feature_dim = reading.width
        self._feature_dim = self._measure() if feature_dim is None else feature_dim

    def _find_classifier(self) -> str | None:
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
        found: str = next(key for key, module in self.net.named_modules() if module is classifier)
        return found

    def _measure(self) -> int:
        size = self.image_size or (_MEASURED_SIDE, _MEASURED_SIDE)
        with still(self.net):
            return self.read(sample_images(self.net, self.channels, size)).shape[-1]

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
            raise UserError(
                f"{self.name}: expected no classifier for an embedding network, got one; "
                "build the network with its own."
            )
        if layer.in_features != self.feature_dim:
            raise UserError(
                f"{self.name}: expected a classifier of {self.feature_dim} inputs, got {layer.in_features}; "
                f"build it as nn.Linear({self.feature_dim}, classes)."
            )
        parent, _, attribute = replaced.rpartition(".")
        setattr(self.net.get_submodule(parent), attribute, layer)

    @torch.no_grad()
    def take_classifier(self, source: nn.Linear) -> None:
        """Copy a classifier of another network with the same widths into this one's, which then is frozen."""
        own = self.classifier
        own.weight.copy_(source.weight)
        own.bias.zero_() if source.bias is None else own.bias.copy_(source.bias)
        own.requires_grad_(False)

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
            UserError: images of another type or number of channels.
        """
        return self.read(self.prepare(images))

    def prepare(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) -> the network's input, of its channels, size and normalisation.

        Raises:
            UserError: as :meth:`features`.
        """
        if not isinstance(images, Tensor):
            raise UserError(
                f"{self.name}: expected a torch.Tensor of images, got {type(images).__name__}; make one."
            )
        if images.dim() != 4 or images.shape[1] != self.in_channels or not images.is_floating_point():
            way = "build the network with their number of channels"
            if images.dim() != 4:
                way = "give a batch, of one image as images[None]"
            elif not images.is_floating_point():
                way = "scale them to [0, 1]"
            raise UserError(
                f"{self.name}: expected floating-point images of shape (B, {self.in_channels}, H, W), got "
                f"{str(images.dtype).removeprefix('torch.')} of shape {tuple(images.shape)}; {way}."
            )
        if self.channels < self.in_channels:
            images = (images * images.new_tensor(_LUMA).reshape(1, 3, 1, 1)).sum(1, keepdim=True)
        if self.image_size is not None and images.shape[-2:] != self.image_size:
            images = F.interpolate(
                images, self.image_size, mode="bilinear", align_corners=False, antialias=True
            )
        # one channel meets three numbers here, and is repeated
        x = (images - self.mean) / self.std
        return x.to(self._dtype or self.mean.dtype)

    def read(self, x: Tensor) -> Tensor:
        """The network's input, as :meth:`prepare` gives it -> feature (B, D)."""
        return self._as_feature(self._reader()(x))

    def with_map(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images (B, C, H, W) in [0, 1] -> feature (B, D) and the map (B, E, h, w) that it is pooled from.

        Patch tokens are a map too. None of a network without one. Raises as :meth:`features`.
        """
        return self.read_with_map(self.prepare(images))

    def read_with_map(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The network's input, as :meth:`prepare` gives it -> as :meth:`with_map`."""
        if self.reading is not None:
            view = View(self.net, self.reading, with_map=True)
            feature, found = view(x), view.map
        else:
            net = cast(FeatureNetwork, self.net)
            maps = net.forward_features(x)
            feature = net.forward_head(maps, pre_logits=True)
            last = getattr(net, "output_fmt", "NCHW") == "NHWC"
            found = as_map(maps, getattr(net, "num_prefix_tokens", None), last)
        if found is not None:
            found = self._as_feature(found)
        return self._as_feature(feature), found

    def with_stages(self, images: Tensor) -> tuple[Tensor, Tensor | None, list[Tensor]]:
        """As :meth:`with_map`, and the last map (B, E, h, w) of each coarser grid on the way to it.

        The finest comes first, and the grid of the map itself is left out. A network that keeps one grid, as
        plain vision transformers do, has none.
        """
        taken: dict[str, Tensor] = {}
        feature, found = self._tapped(taken).with_map(images)
        return feature, found, [self._as_feature(taken[name]) for name in self._stages()]

    def _tapped(self, taken: dict[str, Tensor]) -> Backbone:
        """This one, sharing everything, which puts the maps of its stages into a dictionary."""
        return self._around(tapped(self.net, self._stages(), taken.__setitem__))

    def _around(self, net: nn.Module) -> Backbone:
        """A shallow copy with another network."""
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__)
        copy._modules = {**self._modules, "net": net}
        return copy

    def body(self) -> Backbone:
        """This network without its classifier; it shares everything, and the whole one stays as it is."""
        if self.classifier_name is None:
            return self
        copy = self._around(without(self.net, self.classifier_name))
        copy.classifier_name = None
        return copy

    def _stages(self) -> list[str]:
        if self._stage_names is None:
            size = self._sizes()[0] if self.has_map else (0, 0)
            run = cast("Callable[[], Tensor]", lambda: self.on_noise()[1])
            self._stage_names = stage_names(self.net, run, size) if self.has_map else []
        return self._stage_names

    @property
    def stage_dims(self) -> list[int]:
        """The channels of the maps that :meth:`with_stages` adds."""
        if self._stage_dims is None:
            taken: dict[str, Tensor] = {}
            self._tapped(taken).on_noise()
            self._stage_dims = [taken[name].shape[1] for name in self._stages()]
        return self._stage_dims

    @property
    def map_shape(self) -> tuple[int, int, int] | None:
        """(E, h, w) of the map of an image of the network's own size; None without a map.

        The network is run once to see it; of a network of any size on 32 pixels a side, or 224.
        """
        if self._map_shape == "unknown":
            found = self.on_noise()[1]
            self._map_shape = None
            if found is not None and has_positions(found):
                self._map_shape = found.shape[1], found.shape[2], found.shape[3]
        return self._map_shape

    def on_noise(self) -> tuple[Tensor, Tensor | None]:
        """What :meth:`with_map` gives of images of noise, in eval mode, of a size that makes a map if any."""
        last: tuple[Tensor, Tensor | None] | None = None
        for size in self._sizes():
            with still(self.net):
                try:
                    last = self.read_with_map(sample_images(self.net, self.channels, size))
                except Exception:  # too small for the network
                    continue
            if has_positions(last[1]):
                self.noise_size = size
                break
        return last if last is not None else (self.mean.new_zeros(1, self.feature_dim), None)

    def expect(self, size: tuple[int, int]) -> Backbone:
        """Be told of the size (H, W) that images come in: maps and costs are then those of that size."""
        self.noise_size, self._map_shape = size, "unknown"
        self._stage_names = self._stage_dims = None
        return self

    def noise_cost(self) -> int:
        """Multiply-adds of one image of the size of :meth:`on_noise`."""
        self.on_noise()
        for size in dict.fromkeys([*self._sizes(), (32, 32), (224, 224)]):
            try:
                return multiply_adds(self.net, sample_images(self.net, self.channels, size)[:1])
            except Exception:  # too small for the network, or not its size
                continue
        return 0

    def _sizes(self) -> list[tuple[int, int]]:
        """Sizes of images that are tried, that which gave a map alone once it is known."""
        known = self.image_size or self.noise_size
        return [known] if known is not None else [(32, 32), (224, 224)]

    @property
    def has_map(self) -> bool:
        """Whether the feature is pooled from a map of more than one position."""
        return self.map_shape is not None

    @property
    def map_dim(self) -> int:
        """E, the channels of the map; 0 without one."""
        return 0 if self.map_shape is None else self.map_shape[0]

    def _reader(self) -> Callable[[Tensor], Tensor]:
        if self._view is not None:
            return self._view.__call__
        if self.reading is not None:
            return View(self.net, self.reading).__call__
        net = cast(FeatureNetwork, self.net)
        return lambda x: net.forward_head(net.forward_features(x), pre_logits=True)

    def settle(self) -> Backbone:
        """Eval mode for good, in place: nothing but the network then runs, so that it can be traced."""
        self.eval()
        if self.reading is not None:
            self._view = View(self.net, self.reading)
        return self

    def _as_feature(self, feature: Tensor) -> Tensor:
        return feature if self._dtype is None else feature.float()

    def compute_in(self, dtype: torch.dtype) -> Backbone:
        """Weights and arithmetic in another floating-point type, in place, for a network not trained further.

        The classifier stays as it is and the feature is float32: logits and class centres lose nothing
        more.
        """
        kept = self.classifier if self.has_classifier else None
        tensors = [] if kept is None else [(value, value.data) for value in kept.parameters()]
        self.net.to(dtype)
        for value, data in tensors:
            value.data = data
        self._dtype = dtype
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) in [0, 1] -> (feature (B, D), logits (B, K)); raises as :meth:`features`."""
        return self.with_logits(self.features(images))

    def with_logits(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """Feature (B, D) -> itself and its logits (B, K)."""
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
        """The network's name, where its feature is, and its sizes, on one line."""
        classes = f"K {self.num_classes}" if self.has_classifier else "no classifier"
        return f"{self.name}: feature = {self._place()}, D {self.feature_dim}, {classes}"

    def _place(self) -> str:
        if self.reading is None:
            if self.classifier_name is None:
                return "pooled output"
            path, side = self.classifier_name, "input"
        else:
            path, side = self.reading.module, "input" if self.reading.of_input else "output"
        if not path:
            return "output of the network"
        token = None if self.reading is None else self.reading.token
        chosen = "" if token is None else f", token {token}"
        return f"{side} of {path} ({type(self.net.get_submodule(path)).__name__}){chosen}"


class Frozen(nn.Module):
    """A backbone that never changes: eval mode whatever ``train()`` is called, and no gradient.

    The backbone is frozen in place. Outputs are constants that may enter a graph. On CUDA a pass becomes a
    CUDA graph once its shape has come three times.

    Args:
        backbone: What is frozen.
        dtype: Type of its weights and arithmetic, see :meth:`Backbone.compute_in`; None: as they are.
        compile: Compile the network at its first use; it runs uncompiled, with a warning, where that
            fails.
    """

    def __init__(
        self, backbone: Backbone, *, dtype: torch.dtype | None = None, compile: bool = False
    ) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        if dtype is not None and dtype != torch.float32:
            backbone.compute_in(dtype)
        self.eval()
        self._passes = GraphedPasses()
        # the view of a network that stays in eval mode stays good
        self._compiled: Callable[[Tensor], Tensor] | None = None
        if compile:
            self._compiled = torch.compile(backbone._reader())

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
            if self._compiled is None:
                found: tuple[Tensor, Tensor] = self._passes("feature", self.backbone, images)
                return found
            return self.backbone.with_logits(self._read(self.backbone.prepare(images)))

    def _apply(self, fn: Any, recurse: bool = True) -> Frozen:
        self._passes.clear()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    @property
    def has_map(self) -> bool:
        """As :attr:`Backbone.has_map`."""
        return self.backbone.has_map

    @property
    def map_dim(self) -> int:
        """As :attr:`Backbone.map_dim`."""
        return self.backbone.map_dim

    def with_stages(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor | None, list[Tensor]]:
        """As :meth:`with_map`, and the maps of finer grids, as :meth:`Backbone.with_stages`."""

        def look(images: Tensor) -> tuple[Tensor, Tensor, Tensor | None, list[Tensor]]:
            feature, found, stages = self.backbone.with_stages(images)
            return *self.backbone.with_logits(feature), found, stages

        with torch.no_grad():
            return self._passes("stages", look, images)

    def with_map(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Images (B, C, H, W) in [0, 1] -> constants: feature (B, D), logits (B, K), map (B, E, h, w)."""

        def look(images: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
            feature, found = self.backbone.with_map(images)
            return *self.backbone.with_logits(feature), found

        with torch.no_grad():
            return self._passes("map", look, images)

    def _read(self, x: Tensor) -> Tensor:
        if self._compiled is not None:
            try:
                return self.backbone._as_feature(self._compiled(x))
            except Exception as error:  # of the compiler, of which there may be none
                feature = self.backbone.read(x)  # the network's own are raised here
                reason = first_line(error)
                warnings.warn(f"{self.backbone.name}: not compiled ({reason})", stacklevel=2)
                self._compiled = None
                return feature
        return self.backbone.read(x)
