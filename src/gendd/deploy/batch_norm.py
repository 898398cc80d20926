"""BatchNorm as a part of the convolution before it, for a network that isn't trained further."""

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

# exact types alone: what derives from them may compute with its weights, or with its output;
# timm's by name, as it is imported only where it is used
_PADDED = "timm.layers.conv2d_same.Conv2dSame"
_WITH_ACTIVATION = "timm.layers.norm_act.BatchNormAct2d"
_CONVOLUTIONS = {f"torch.nn.modules.conv.Conv{n}d" for n in (1, 2, 3)} | {_PADDED}
_NORMS = {f"torch.nn.modules.batchnorm.BatchNorm{n}d" for n in (1, 2, 3)} | {_WITH_ACTIVATION}
# in units of the largest number of the feature
_DEVIATION = 1e-4


def _kind(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__name__}"


class _Features(nn.Module):
    """What is read of a network that tells its feature by itself, as a module that can be traced."""

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
    """Make every BatchNorm that follows a convolution, and nothing else reads, a part of it; in place.

    y = γ (W x + b - μ) / √(σ² + ε) + β is a convolution of other weights and bias; they are computed in
    float64. What can't be known to be the same is left as it is: a network that ``torch.fx`` can't trace or
    that has hooks, layers called more than once or in another type than float32 and float64. A network
    whose feature of noise is another afterwards is put back as it was.

    Args:
        backbone: In eval mode; its own convolutions change.

    Returns:
        How many were folded.
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
    except Exception:  # of a network that asks a norm for more than its answer
        same = False
    if same:
        return len(pairs)
    # what ran was not what was traced
    for norm, layer, weight, bias, following in before:
        layer.weight, layer.bias = weight, bias
        if net.get_submodule(norm) is not following:
            net.set_submodule(norm, following)
    return 0


def _seen(backbone: Backbone) -> tuple[Tensor, Tensor] | None:
    """Noise of a size that the network takes, and its feature; None where it takes none that is tried."""
    size = backbone.image_size
    try:
        if size is None:
            _, size, _ = find_size(backbone.net, [backbone.channels], None, backbone.name)
        images = sample_images(backbone.net, backbone.channels, size)
        return images, _read(backbone, images)
    except Exception:  # whatever a foreign network raises at images it does not take
        return None


def _read(backbone: Backbone, images: Tensor) -> Tensor:
    """The feature, in full precision."""
    with (
        still(backbone.net),
        torch.autocast(images.device.type, enabled=False),
        torch.backends.cudnn.flags(allow_tf32=False),
    ):
        return backbone.read(images)


def _pairs(net: nn.Module, reading: Reading | None) -> list[tuple[str, str]]:
    """Names of convolutions and of the BatchNorms that alone read them."""
    modules = list(net.modules())
    if not any(_kind(module) in _NORMS for module in modules):
        return []
    # tracing would call them
    if any(module._forward_hooks or module._forward_pre_hooks for module in modules):
        return []
    try:
        # a copy: a network that keeps what it computed would keep the tracer's stand-ins
        copied = copy.deepcopy(net)
        with still(copied):
            graph = _Tracer().trace(copied if reading else _Features(copied))
    except Exception:  # of any network: what it does can depend on its input, and fx can't follow that
        return []
    prefix = "" if reading else "net."
    # every use of a module, and of its parameters without it; by identity, as one can have many names
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
            # and what is between them is not the feature
            and (reading is None or set(reading.modules).isdisjoint(names))
        ):
            found.append(names)
    return found


def _owner(node: fx.Node, prefix: str) -> str:
    """Name in the network of the module that is called, or that has the tensor that is read."""
    name = str(node.target)
    if node.op == "get_attr":
        name = name.rpartition(".")[0]
    # of the network itself the name is empty
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
    """What a norm does after its arithmetic."""
    if _kind(norm) == _WITH_ACTIVATION:
        return nn.Sequential(norm.drop, norm.act)
    return nn.Identity()
