"""How a network's feature is read: it runs as a *view*.

A view is a copy of the modules on the way to the ones that are looked at, which shares every parameter and
buffer with the network. The network itself is never changed.

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
    """How the feature (B, D) is read off a network that does not tell it by itself.

    Attributes:
        modules: Dotted names of the modules that are looked at; the feature is what each has, one after the
            other. An empty name is the network itself.
        of_input: Look at their inputs, which are the feature; else at their outputs, which are pooled.
        classifier: Dotted names of the affine layers that take the feature and whose outputs are averaged;
            none for an embedding network.
        skips: Whether the network runs without computing those layers.
        width: D.
        token: Of an output (B, N, D) the token that is the feature; None: their mean.
        spelled: The ``feature`` it was asked for by; None where it was found.
        final: Whether what the classifier gives is the network's output.
        map: Dotted name of the module whose output is the last map, or the last tokens, before the feature;
            None where there is none.
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
    """A network's feature as a function of its normalised images (B, C, H, W) -> (B, D).

    It shares all of the network and keeps its training or eval mode of now.

    Args:
        net: The network.
        reading: How its feature is read.
        with_map: Also look at the map; :attr:`map` is then that of the last call.
    """

    def __init__(self, net: nn.Module, reading: Reading, with_map: bool = False) -> None:
        self._reading = reading
        self._seen: dict[str, Tensor] = {}
        self.map: Tensor | None = None
        kind = _Passing if reading.skips else _Loose
        for name in reading.classifier:
            net = _with(net, name, lambda layer: _shallow(layer, kind))
        for name in reading.modules:
            net = _with(net, name, partial(self._tapped, name))
        if with_map and reading.map is not None:
            net = _with(net, reading.map, self._mapped)
        self._net = net

    def __call__(self, x: Tensor) -> Tensor:
        """The feature of normalised images."""
        self._net(x)
        # a module that runs more than once is looked at when it does so last
        parts = [self._seen[name] for name in self._reading.modules]
        self._seen.clear()
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

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
        # copied, as what follows may work in place
        self.map = as_map(first_tensor(output).clone())

    def _take_input(self, name: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._seen[name] = inputs[0].flatten(1)

    def _take_output(self, name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        # pooled at once, as what follows may work in place
        self._seen[name] = pooled(first_tensor(output), self._reading.token)


class _Passing(nn.Module):
    """A layer that hands its input on."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class _Loose(nn.Linear):
    """An affine layer that computes in the type of its input."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        weight = self.weight.to(x.dtype)
        return F.linear(x, weight, bias) if weight.dim() == 2 else F.conv2d(x, weight, bias)


def _shallow(module: nn.Module, kind: type[nn.Module] | None = None) -> nn.Module:
    # not copy.copy, which some modules define to copy more
    twin: nn.Module = object.__new__(kind or type(module))
    twin.__dict__.update(module.__dict__)
    return twin


def _with(net: nn.Module, path: str, twin: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """The network with the twin of its module at ``path``, sharing all else."""
    if not path:
        return twin(net)
    first, _, rest = path.partition(".")
    child = net._modules[first]
    assert child is not None
    copy = _shallow(net)
    copy._modules = {**net._modules, first: _with(child, rest, twin)}
    return copy


def without(net: nn.Module, paths: Sequence[str]) -> nn.Module:
    """The network with nothing in the place of some of its modules; it shares all else and stays whole."""
    for path in paths:
        net = _with(net, path, lambda _: nn.Identity())
    return net


def tapped(net: nn.Module, names: Sequence[str], take: Callable[[str, Tensor], None]) -> nn.Module:
    """The network with the outputs of some of its modules, all maps, handed on too; it shares all of it."""

    def twin_of(name: str) -> Callable[[nn.Module], nn.Module]:
        def twin(module: nn.Module) -> nn.Module:
            found = _shallow(module)
            found._forward_hooks = OrderedDict(module._forward_hooks)
            # copied, as what follows may work in place
            found.register_forward_hook(lambda _, __, output: take(name, output.clone()))
            return found

        return twin

    for name in names:
        net = _with(net, name, twin_of(name))
    return net
