"""Feature maps of a network.

Shapes: B images, C channels, D feature width, E channels of a map of h x w positions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Self, cast

import torch
from torch import Tensor, nn

from gendd.models.costs import multiply_adds
from gendd.models.feature import FeatureNetwork
from gendd.models.maps import Stages, as_map, has_positions, stage_names, thinned
from gendd.models.trial import sample_images, still
from gendd.models.view import Reading, View, tapped


class Mapped(nn.Module):
    """The part of :class:`gendd.models.Backbone` concerned with feature maps."""

    net: nn.Module
    reading: Reading | None
    channels: int
    image_size: tuple[int, int] | None
    _feature_dim: int
    mean: Tensor
    _dtype: torch.dtype | None

    def __init__(self) -> None:
        super().__init__()
        self.noise_size: tuple[int, int] | None = None
        self._stage_names: list[str] | None = None
        self._stage_shapes: list[tuple[int, int, int]] | None = None
        self._map_shape: tuple[int, int, int] | Literal["unknown"] | None = "unknown"

    def prepare(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) -> the network's input."""
        raise NotImplementedError

    def with_map(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images (B, C, H, W) in [0, 1] -> feature (B, D) and the map (B, E, h, w) that it is pooled from.

        Patch tokens count as a map; it is None for a network without one. Raises like :meth:`features`.
        """
        return self.read_with_map(self.prepare(images))

    def read_with_map(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Like :meth:`with_map`, but for the network's input, as returned by :meth:`prepare`."""
        if self.reading is not None:
            view = View(self.net, self.reading, with_map=True)
            feature, found = view(x), view.take_map()
        else:
            net = cast(FeatureNetwork, self.net)
            maps = net.forward_features(x)
            feature = net.forward_head(maps, pre_logits=True)
            last = getattr(net, "output_fmt", "NCHW") == "NHWC"
            # a network of several branches has no single map
            single = isinstance(maps, Tensor)
            found = as_map(maps, getattr(net, "num_prefix_tokens", None), last) if single else None
        if found is not None:
            found = self._as_feature(found)
        return self._as_feature(feature), found

    def with_stages(
        self, images: Tensor, stages: Stages = None
    ) -> tuple[Tensor, Tensor | None, list[Tensor]]:
        """Like :meth:`with_map`, followed by the last map (B, E, h, w) of each finer grid before it.

        The finest comes first. A network with a single grid, such as a plain vision transformer, has none.

        Args:
            images: As for :meth:`with_map`.
            stages: For each of the last of these maps whether it is thinned (see
                :func:`gendd.models.maps.thinned`); others are left out. None: all, whole.
        """
        names = self._stages()
        if stages is not None:
            names = names[max(0, len(names) - len(stages)) :]
        flags = [False] * len(names) if stages is None else list(stages[len(stages) - len(names) :])
        taken: dict[str, Tensor] = {}
        feature, found = self._tapped(dict(zip(names, flags, strict=True)), taken).with_map(images)
        return feature, found, [self._as_feature(taken[name]) for name in names]

    def _tapped(self, thin: dict[str, bool], taken: dict[str, Tensor]) -> Self:
        """A view of this network, sharing everything, that stores the outputs of modules in ``taken``."""

        def take(name: str, output: Tensor) -> None:
            if not thin[name]:
                taken[name] = output.clone()
                return
            last = output.is_contiguous(memory_format=torch.channels_last)
            layout = torch.channels_last if last else torch.contiguous_format
            taken[name] = thinned(output).clone(memory_format=layout)

        return self._around(tapped(self.net, list(thin), take))

    def _stages(self) -> list[str]:
        if self._stage_names is None:
            size = self._sizes()[0] if self.has_map else (0, 0)
            run = cast("Callable[[], Tensor]", lambda: self.on_noise()[1])
            self._stage_names = stage_names(self.net, run, size) if self.has_map else []
        return self._stage_names

    @property
    def stage_shapes(self) -> list[tuple[int, int, int]]:
        """(E, h, w) of the additional maps of :meth:`with_stages`, measured like :attr:`map_shape`."""
        if self._stage_shapes is None:
            names, taken = self._stages(), dict[str, Tensor]()
            self._tapped(dict.fromkeys(names, False), taken).on_noise()
            sizes = [taken[name].shape for name in names]
            self._stage_shapes = [(size[1], size[2], size[3]) for size in sizes]
        return self._stage_shapes

    @property
    def map_shape(self) -> tuple[int, int, int] | None:
        """(E, h, w) of the map for an image of the network's own size; None without a map.

        Measured by running the network once; if it takes any size, on images of 32 or 224 pixels per side.
        """
        if self._map_shape == "unknown":
            found = self.on_noise()[1]
            self._map_shape = None
            if found is not None and has_positions(found):
                self._map_shape = found.shape[1], found.shape[2], found.shape[3]
        return self._map_shape

    def on_noise(self) -> tuple[Tensor, Tensor | None]:
        """Output of :meth:`with_map` for noise, in eval mode, at an image size that gives a map, if any."""
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
        return last if last is not None else (self.mean.new_zeros(1, self._feature_dim), None)

    def expect(self, size: tuple[int, int]) -> Self:
        """Set the image size (H, W) at which maps and costs are measured."""
        self.noise_size, self._map_shape = size, "unknown"
        self._stage_names = self._stage_shapes = None
        return self

    def noise_cost(self) -> int:
        """Multiply-adds for one image of the size used by :meth:`on_noise`."""
        self.on_noise()
        for size in dict.fromkeys([*self._sizes(), (32, 32), (224, 224)]):
            try:
                return multiply_adds(self.net, sample_images(self.net, self.channels, size)[:1])
            except Exception:  # too small for the network, or not the size it takes
                continue
        return 0

    def _sizes(self) -> list[tuple[int, int]]:
        """Image sizes to try; once known, only the one that gave a map."""
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

    def _as_feature(self, feature: Tensor) -> Tensor:
        return feature if self._dtype is None else feature.float()

    def _around(self, net: nn.Module) -> Self:
        """A shallow copy with another network."""
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__)
        copy._modules = {**self._modules, "net": net}
        return copy
