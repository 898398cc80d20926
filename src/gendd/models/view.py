"""Read a network's feature through a *view* of it.

A view copies the modules on the path to the observed ones and shares every parameter and buffer with the
network. The network itself is never changed.

Shapes: B images, C channels, D feature width, K classes, N tokens.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gendd.models.maps import as_map, first_tensor, pooled


@dataclass(frozen=True)
class Reading:
    """How to read the feature (B, D) of a network without timm's methods.

    Attributes:
        modules: Dotted names of the observed modules, whose values are concatenated to the feature. An empty
            name is the network itself.
        of_input: Whether their inputs are the feature; else their outputs are, after pooling.
        classifier: Dotted names of the affine layers that take the feature and whose outputs are averaged;
            empty for an embedding network.
        skips: Whether the network can run without computing those layers.
        width: D.
        token: Index of the token of an output (B, N, D) that is the feature; None: their mean.
        spelled: The ``feature`` argument as given by the user; None if found automatically.
        final: Whether the classifier's output is the network's output.
        map: Dotted name of the module whose output is the last feature map, or the last tokens, before the
            feature; None without one.
    """

    modules: tuple[str, ...]
    of_input: bool
    classifier: tuple[str, ...]
    skips: bool
    width: int
    token: int | None = None
    spelled: str | None = None
    final: bool = False
    map: str | None = None


class View:
    """A network's feature as a function of its normalised images: (B, C, H, W) -> (B, D).

    It shares the network's weights and keeps the training or eval mode at the time of its creation.

    Args:
        net: The network.
        reading: How its feature is read.
        with_map: Also record the feature map, for :meth:`take_map`.
    """

    def __init__(self, net: nn.Module, reading: Reading, with_map: bool = False) -> None:
        self._reading = reading
        self._seen: dict[str, Tensor] = {}
        self._map: Tensor | None = None
        kind = _Passing if reading.skips else _Loose
        for name in reading.classifier:
            net = _with(net, name, lambda layer: _shallow(layer, kind))
        for name in reading.modules:
            net = _with(net, name, partial(self._tapped, name))
        if with_map and reading.map is not None:
            net = _with(net, reading.map, self._mapped)
        self._net = net

    def __call__(self, x: Tensor) -> Tensor:
        """Return the feature of normalised images."""
        self._net(x)
        # if a module runs more than once, its last run counts
        parts = [self._seen[name] for name in self._reading.modules]
        self._seen.clear()
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def take_map(self) -> Tensor | None:
        """Return the map of the last call, which is not kept: only Python's collector frees a view."""
        found, self._map = self._map, None
        return found

    def _tapped(self, name: str, module: nn.Module) -> nn.Module:
        twin = _shallow(module)
        if self._reading.of_input:
            twin._forward_pre_hooks = OrderedDict(module._forward_pre_hooks)
            twin.register_forward_pre_hook(partial(self._take_input, name))
        else:
            twin._forward_hooks = OrderedDict(module._forward_hooks)
            twin.register_forward_hook(partial(self._take_output, name))
        return twin

    def _mapped(self, module: nn.Module) -> nn.Module:
        twin = _shallow(module)
        twin._forward_hooks = OrderedDict(module._forward_hooks)
        twin.register_forward_hook(self._take_map)
        return twin

    def _take_map(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        # copied, as later layers may work in place
        self._map = as_map(first_tensor(output).clone())

    def _take_input(self, name: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._seen[name] = inputs[0].flatten(1)

    def _take_output(self, name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        # pooled immediately, as later layers may work in place
        self._seen[name] = pooled(first_tensor(output), self._reading.token)


class _Passing(nn.Module):
    """A layer that returns its input."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class _Loose(nn.Linear):
    """An affine layer that computes in the dtype of its input."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        weight = self.weight.to(x.dtype)
        return F.linear(x, weight, bias) if weight.dim() == 2 else F.conv2d(x, weight, bias)


def _shallow(module: nn.Module, kind: type[nn.Module] | None = None) -> nn.Module:
    # not copy.copy, which some modules override to copy more
    twin: nn.Module = object.__new__(kind or type(module))
    twin.__dict__.update(module.__dict__)
    return twin


def _with(net: nn.Module, path: str, twin: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """Return the network with its module at ``path`` replaced by its twin, sharing all else."""
    if not path:
        return twin(net)
    first, _, rest = path.partition(".")
    child = net._modules[first]
    assert child is not None
    copy = _shallow(net)
    copy._modules = {**net._modules, first: _with(child, rest, twin)}
    return copy


def without(net: nn.Module, paths: Sequence[str]) -> nn.Module:
    """Return a view of the network with some modules replaced by identities; the network is unchanged."""
    for path in paths:
        net = _with(net, path, lambda _: nn.Identity())
    return net


def tapped(net: nn.Module, names: Sequence[str], take: Callable[[str, Tensor], None]) -> nn.Module:
    """Return a view of the network that also passes the outputs of some modules, all maps, to ``take``.

    Later layers may work in place, so ``take`` copies what it keeps.
    """

    def twin_of(name: str) -> Callable[[nn.Module], nn.Module]:
        def twin(module: nn.Module) -> nn.Module:
            found = _shallow(module)
            found._forward_hooks = OrderedDict(module._forward_hooks)
            found.register_forward_hook(lambda _, __, output: take(name, output))
            return found

        return twin

    for name in names:
        net = _with(net, name, twin_of(name))
    return net
