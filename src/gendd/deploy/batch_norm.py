"""Fold BatchNorm into the preceding convolution, for a network that isn't trained further."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from gendd.models.backbone import Backbone
from gendd.models.feature import FeatureNetwork
from gendd.models.trial import find_size, sample_images, still
from gendd.models.view import Reading

# exact types only, as subclasses may do more with their weights or output;
# timm's by name, as timm is imported only where it is used
_PADDED = "timm.layers.conv2d_same.Conv2dSame"
_WITH_ACTIVATION = "timm.layers.norm_act.BatchNormAct2d"
_CONVOLUTIONS = {f"torch.nn.modules.conv.Conv{n}d" for n in (1, 2, 3)} | {_PADDED}
_NORMS = {f"torch.nn.modules.batchnorm.BatchNorm{n}d" for n in (1, 2, 3)} | {_WITH_ACTIVATION}
# relative to the feature's largest value
_DEVIATION = 1e-4


def _kind(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__name__}"


class _Features(nn.Module):
    """The feature of a network that returns it itself, as a module that can be traced."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Any:
        net = cast(FeatureNetwork, self.net)
        return net.forward_head(net.forward_features(x), pre_logits=True)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return _kind(m) in _CONVOLUTIONS | _NORMS or super().is_leaf_module(m, module_qualified_name)


def fold_batch_norms(backbone: Backbone) -> int:
    """Fold every BatchNorm into the convolution before it, if that has no other consumer; in place.

    y = γ (W x + b - μ) / √(σ² + ε) + β is a convolution with different weights and bias, computed in float64.
    Nothing is folded if equality can't be guaranteed: a network that ``torch.fx`` can't trace or that has
    hooks, and layers called more than once or of a dtype other than float32 and float64. If the network's
    feature for random noise changes, the network is restored.

    Args:
        backbone: In eval mode; its convolutions are modified.

    Returns:
        The number of BatchNorms folded.
    """
    net = backbone.net
    pairs = _pairs(net, backbone.reading)
    seen = _seen(backbone) if pairs else None
    if seen is None:
        return 0
    images, expected = seen
    before = []
    try:
        for convolution, norm in pairs:
            layer, following = net.get_submodule(convolution), net.get_submodule(norm)
            before.append((norm, layer, layer.weight, layer.bias, following))
            _merge(layer, following)
            net.set_submodule(norm, _remainder(following))
        found = _read(backbone, images)
        same = float((found - expected).abs().max()) <= _DEVIATION * float(expected.abs().max())
    except Exception:  # a network may use more of a norm than its output
        same = False
    if same:
        return len(pairs)
    # the network does not run as it was traced
    for norm, layer, weight, bias, following in before:
        layer.weight, layer.bias = weight, bias
        if net.get_submodule(norm) is not following:
            net.set_submodule(norm, following)
    return 0


def _seen(backbone: Backbone) -> tuple[Tensor, Tensor] | None:
    """Return noise of a size the network accepts, and its feature; None if no tried size works."""
    size = backbone.image_size
    try:
        if size is None:
            _, size, _ = find_size(backbone.net, [backbone.channels], None, backbone.name)
        images = sample_images(backbone.net, backbone.channels, size)
        return images, _read(backbone, images)
    except Exception:  # whatever a foreign network raises for images it does not accept
        return None


def _read(backbone: Backbone, images: Tensor) -> Tensor:
    """Compute the feature in full precision."""
    with (
        still(backbone.net),
        torch.autocast(images.device.type, enabled=False),
        torch.backends.cudnn.flags(allow_tf32=False),
    ):
        return backbone.read(images)


def _pairs(net: nn.Module, reading: Reading | None) -> list[tuple[str, str]]:
    """Return the names of convolutions and of the BatchNorms that are their only consumers."""
    modules = list(net.modules())
    if not any(_kind(module) in _NORMS for module in modules):
        return []
    # tracing would call them
    if any(module._forward_hooks or module._forward_pre_hooks for module in modules):
        return []
    try:
        # a copy, as a network that stores intermediate results would store the tracer's proxies
        copied = copy.deepcopy(net)
        with still(copied):
            graph = _Tracer().trace(copied if reading else _Features(copied))
    except Exception:  # fx can't follow networks with data-dependent control flow
        return []
    prefix = "" if reading else "net."
    # every use of a module, and of its parameters directly; by identity, as a module can have several names
    uses = Counter(
        id(copied.get_submodule(_owner(node, prefix)))
        for node in graph.nodes
        if node.op in ("call_module", "get_attr")
    )
    owners = Counter(id(value) for module in copied.modules() for value in module._parameters.values())
    found = []
    for node in graph.nodes:
        before = node.args[0] if len(node.args) == 1 else None
        if (
            not isinstance(before, fx.Node)
            or {node.op, before.op} != {"call_module"}
            or len(before.users) != 1
        ):
            continue
        names = _owner(before, prefix), _owner(node, prefix)
        layer, norm = (cast(Any, copied.get_submodule(name)) for name in names)
        if (
            _kind(layer) in _CONVOLUTIONS
            and _kind(norm) in _NORMS
            and norm.running_mean is not None
            and layer.weight.dtype in (torch.float32, torch.float64)
            and not (layer.training or norm.training)
            and all(uses[id(each)] == 1 for each in (layer, norm))
            and all(owners[id(value)] == 1 for value in layer.parameters())
            # and the feature is not taken between them
            and (reading is None or set(reading.modules).isdisjoint(names))
        ):
            found.append(names)
    return found


def _owner(node: fx.Node, prefix: str) -> str:
    """Return the name of the module that is called, or that owns the tensor that is read."""
    name = str(node.target)
    if node.op == "get_attr":
        name = name.rpartition(".")[0]
    # the network itself has an empty name
    return f"{name}.".removeprefix(prefix).removesuffix(".")


@torch.no_grad()
def _merge(layer: Any, norm: Any) -> None:
    parts = (layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    exact: list[Any] = [None if part is None else part.double() for part in parts]
    weight, bias, mean, variance, scale, shift = exact
    merged = fuse_conv_bn_weights(weight, bias, mean, variance, norm.eps, scale, shift)
    dtype, learned = layer.weight.dtype, layer.weight.requires_grad
    layer.weight, layer.bias = (nn.Parameter(part.to(dtype), learned) for part in merged)


def _remainder(norm: Any) -> nn.Module:
    """Return what a norm does after its arithmetic."""
    if _kind(norm) == _WITH_ACTIVATION:
        return nn.Sequential(norm.drop, norm.act)
    return nn.Identity()
