"""Where a network's feature is, found by running it once, and how it is read there.

Shapes: B images, C channels, D feature width, K classes, N tokens.

The network itself is never changed. It runs as a *view*: a copy of the modules on the way to the one
that is looked at, which shares every parameter and buffer with it.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gendd.errors import UserError, did_you_mean, first_line

# Sides of square images, in the order they are tried on a network whose own is unknown.
_SIDES = (32, 64, 128, 224, 256, 299, 384, 448, 518, 28, 16, 8)
_OUTPUT = "output"
_SHOWN = 6
_SPELLED = re.compile(r"(.*?)(?:\[(\d+)\])?")


class FeatureNetwork(Protocol):
    """A network that tells its feature by itself; every timm model has these methods."""

    def forward_features(self, x: Tensor, /) -> Tensor:
        """Normalised images (B, C, H, W) -> whatever ``forward_head`` takes."""

    def forward_head(self, x: Tensor, /, pre_logits: bool = False) -> Tensor:
        """-> logits (B, K), or the feature (B, D) that enters the classifier if ``pre_logits``."""

    def get_classifier(self) -> nn.Module:
        """The layer from feature to logits."""


@dataclass(frozen=True)
class Reading:
    """How the feature (B, D) is read off a network that does not tell it by itself.

    Attributes:
        module: Dotted name of the module that is looked at; empty for the network itself.
        of_input: Look at its input, which is the feature; else at its output, which is pooled.
        classifier: Dotted name of the ``nn.Linear`` that takes the feature; None for an embedding network.
        skips: Whether the network runs without computing that layer.
        width: D.
        token: Of an output (B, N, D) the token that is the feature; None: their mean.
        spelled: The ``feature`` it was asked for by; None where it was found.
        final: Whether what the classifier gives is the network's output.
        map: Dotted name of the module whose output is the last map, or the last tokens, before the feature;
            None where there is none.
    """

    module: str
    of_input: bool
    classifier: str | None
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
        self._seen: list[Tensor] = []
        self.map: Tensor | None = None
        if reading.classifier is not None:
            kind = _Passing if reading.skips else _Loose
            net = _with(net, reading.classifier, lambda layer: _shallow(layer, kind))
        net = _with(net, reading.module, self._tapped)
        if with_map and reading.map is not None:
            net = _with(net, reading.map, self._mapped)
        self._net = net

    def __call__(self, x: Tensor) -> Tensor:
        """The feature of normalised images."""
        self._net(x)
        # a module that runs more than once is looked at when it does so last
        feature = self._seen[-1]
        self._seen.clear()
        return feature

    def _tapped(self, module: nn.Module) -> nn.Module:
        twin = _shallow(module)
        if self._reading.of_input:
            twin._forward_pre_hooks = OrderedDict(module._forward_pre_hooks)
            twin.register_forward_pre_hook(self._take_input)
        else:
            twin._forward_hooks = OrderedDict(module._forward_hooks)
            twin.register_forward_hook(self._take_output)
        return twin

    def _mapped(self, module: nn.Module) -> nn.Module:
        twin = _shallow(module)
        twin._forward_hooks = OrderedDict(module._forward_hooks)
        twin.register_forward_hook(self._take_map)
        return twin

    def _take_map(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        # copied, as what follows may work in place
        self.map = as_map(_first_tensor(output).clone())

    def _take_input(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._seen.append(inputs[0].flatten(1))

    def _take_output(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        # pooled at once, as what follows may work in place
        self._seen.append(_pooled(_first_tensor(output), self._reading.token))


class _Passing(nn.Linear):
    """A Linear layer that hands its input on."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class _Loose(nn.Linear):
    """A Linear layer that computes in the type of its input."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


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


def without(net: nn.Module, path: str) -> nn.Module:
    """The network with nothing in the place of its module at ``path``; it shares all else and stays whole."""
    return _with(net, path, lambda _: nn.Identity())


def stage_names(net: nn.Module, run: Callable[[], Tensor], size: tuple[int, int]) -> list[str]:
    """The modules that give the last map of each grid finer than the final one, the finest grid first.

    Of the modules of one grid the last of those that lie least deep is taken: a stage's output, not what a
    block of the next stage makes of it first.

    Args:
        net: The network.
        run: Runs it once on images of one size and gives the final map (B, E, h, w).
        size: (H, W) of the images, of which a map's grid is a whole part.
    """
    seen: dict[tuple[int, int], tuple[int, str]] = {}

    def note(name: str, output: Any) -> None:
        if not isinstance(output, Tensor) or output.dim() != 4:
            return
        grid, depth = (output.shape[2], output.shape[3]), name.count(".")
        # attention weights of as many queries as keys are no map, nor are channels that come last
        steps = [-(-side // max(1, round(side / cells))) for side, cells in zip(size, grid, strict=True)]
        if steps == list(grid) and depth <= seen.get(grid, (depth, ""))[0]:
            seen[grid] = depth, name

    handles = [
        module.register_forward_hook(lambda _, __, out, name=name: note(name, out))
        for name, module in net.named_modules()
        if name
    ]
    try:
        final = run()
    finally:
        for handle in handles:
            handle.remove()
    finer = [grid for grid in seen if grid[0] > final.shape[2]]
    return [seen[grid][1] for grid in sorted(finer, reverse=True)]


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


def _first_tensor(output: Any) -> Tensor:
    """The tensor of a module's output, or the first one of a tuple or mapping."""
    values = output.values() if isinstance(output, Mapping) else output
    if isinstance(values, Tensor):
        return values
    return next(value for value in values if isinstance(value, Tensor))


def as_map(output: Tensor, prefix: int | None = None, channels_last: bool = False) -> Tensor | None:
    """What comes before pooling as a map (B, D, h, w); None of a vector.

    Args:
        output: (B, D, h, w), or tokens (B, N, D).
        prefix: Tokens in front that are of no position; None: so many that the others form a square.
        channels_last: Whether a map is (B, h, w, D).
    """
    if output.dim() == 3:
        count = output.shape[1]
        if prefix is None:
            prefix = next((k for k in range(9) if count > k and math.isqrt(count - k) ** 2 == count - k), 0)
        tokens = output[:, prefix:].transpose(1, 2)
        side = math.isqrt(tokens.shape[-1])
        shape = (side, side) if side * side == tokens.shape[-1] else (tokens.shape[-1], 1)
        output = tokens.reshape(*tokens.shape[:2], *shape)
    elif channels_last and output.dim() == 4:
        output = output.permute(0, 3, 1, 2)
    return output if output.dim() == 4 else None


def has_positions(found: Tensor | None) -> bool:
    """Whether there is a map (B, D, h, w) of more than one position."""
    return found is not None and found.shape[-1] * found.shape[-2] > 1


def _pooled(output: Tensor, token: int | None) -> Tensor:
    if output.dim() == 4:
        return F.adaptive_avg_pool2d(output, 1).flatten(1)
    if output.dim() == 3:
        return output.mean(1) if token is None else output[:, token].clone()
    if output.dim() == 2:
        return output.clone()
    raise ValueError(f"an output of shape {tuple(output.shape)}")


def _logits(output: Any) -> Tensor | None:
    """What a network's output calls its logits; else its first tensor."""
    found = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(found, Tensor):
        return found
    try:
        return _first_tensor(output)
    except (StopIteration, TypeError):
        return None


@contextmanager
def still(net: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; every module's mode and the random state are put back."""
    modes = [(part, part.training) for part in net.modules()]
    net.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        for part, training in modes:
            part.training = training


def sample_images(net: nn.Module, channels: int, size: tuple[int, int]) -> Tensor:
    """Two normalised images (2, C, H, W) of noise, in the network's type and on its device."""
    noise = torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(0))
    for value in net.parameters():
        if value.is_floating_point():
            return noise.to(value)
    return noise


def find_size(
    net: nn.Module, channels: Sequence[int], side: int | None, name: str
) -> tuple[int, tuple[int, int], bool]:
    """What images a network takes, by trying.

    Args:
        net: The network.
        channels: Numbers of channels that come into question, the likeliest first.
        side: Its own side in pixels, if that is known.
        name: What it is called.

    Returns:
        Its number of channels, a size (H, W) it takes, and whether it takes that size only.

    Raises:
        UserError: it takes none of those tried.
    """
    reason = ""
    for count in channels:
        for tried in (side,) if side is not None else _SIDES:
            failure = _failure(net, count, tried)
            if failure is None:
                only = all(_failure(net, count, other) is not None for other in (tried // 2, 2 * tried))
                return count, (tried, tried), only
            reason = reason or failure
    shapes = " or ".join(map(str, channels))
    sides = str(side) if side is not None else f"{min(_SIDES)} to {max(_SIDES)}"
    raise UserError(
        f"{name}: expected a network of images (B, C, H, W), got none for {shapes} channels and sides of "
        f"{sides} pixels ({reason}); give its input_size, or its channels."
    )


def _failure(net: nn.Module, channels: int, side: int) -> str | None:
    try:
        with still(net):
            net(sample_images(net, channels, (side, side)))
    except Exception as error:  # whatever a foreign network raises at images it does not take
        return first_line(error)
    return None


def fits(net: nn.Module, images: Tensor) -> bool:
    """Whether a :class:`FeatureNetwork`'s classifier is one Linear layer that takes the feature itself.

    A few timm networks put a norm between the two, or mix in a second head, which no shape shows.
    """
    network = cast(FeatureNetwork, net)
    classifier = network.get_classifier()
    if not isinstance(classifier, nn.Linear):
        return False
    with still(net):
        maps = network.forward_features(images)
        feature = network.forward_head(maps, pre_logits=True)
        # Bit for bit: an untrained BatchNorm between the two changes the logits by 5e-6 only.
        return feature.shape == (len(images), classifier.in_features) and torch.equal(
            classifier(feature), network.forward_head(maps)
        )


def find(net: nn.Module, images: Tensor, name: str, feature: str | None, classifier: bool) -> Reading:
    """How a network's feature is read.

    Args:
        net: Any network.
        images: Normalised, of a size it takes.
        name: What it is called.
        feature: Dotted name of a Linear layer, whose input is the feature and which is the classifier; or
            of any other module, whose output is: maps (B, C, H, W) averaged over H and W, tokens
            (B, N, D) over N, or token ``n`` alone for ``NAME[n]``; the classifier is then the last
            Linear layer if it takes just that. ``output`` is the network's own output. None: the input
            of the Linear layer that gives the network's output.
        classifier: Use the classifier. Without one and without ``feature``, a network that ends in no
            Linear layer gives its output.

    Raises:
        UserError: no such module, or nothing that is found fits.
    """
    with still(net):
        last = _last_linear(net, images)
        found = _found(net, images, name, feature, classifier, last)
        found = replace(found, map=_last_map(net, images, found))
    return replace(found, final=last is not None and found.classifier == last)


def _found(
    net: nn.Module, images: Tensor, name: str, feature: str | None, classifier: bool, last: str | None
) -> Reading:
    if feature is None:
        if last is not None:
            return _reading(net, images, name, last, True, last if classifier else None, None, None)
        if not classifier:
            return _reading(net, images, name, "", False, None, None, None)
        raise _no_feature(net, images, name)
    path, token = _module(net, name, feature)
    if isinstance(net.get_submodule(path), nn.Linear):
        return _reading(net, images, name, path, True, path if classifier else None, None, feature)
    found = _reading(net, images, name, path, False, None, token, feature)
    if classifier and last is not None:
        taken = View(net, _reading(net, images, name, last, True, None, None, None))(images)
        if _same(View(net, found)(images), taken):
            return _reading(net, images, name, path, False, last, token, feature)
    return found


def _last_map(net: nn.Module, images: Tensor, reading: Reading) -> str | None:
    """The last module before the feature whose output is a map or tokens of more than one position."""
    made: list[str] = []

    def note(name: str, output: Any) -> None:
        try:
            found = _first_tensor(output)
        except (StopIteration, TypeError, AttributeError):
            return
        if found.dim() in (3, 4) and len(found) == len(images) and has_positions(as_map(found)):
            made.append(name)

    def stop(*_: Any) -> None:
        made.append("")

    handles = [
        module.register_forward_hook(lambda _, __, out, name=name: note(name, out))
        for name, module in net.named_modules()
        if name
    ]
    if reading.module:
        handles.append(net.get_submodule(reading.module).register_forward_pre_hook(stop))
    try:
        net(images)
    finally:
        for handle in handles:
            handle.remove()
    if reading.module and reading.of_input and "" in made:
        made = made[: len(made) - 1 - made[::-1].index("")]
    named = [name for name in made if name]
    if not reading.of_input and reading.module in named:
        return reading.module
    return named[-1] if named else None


def _same(one: Tensor, other: Tensor) -> bool:
    # pooling in another order rounds by 1e-7, an untrained norm in between changes by 5e-6
    if one.shape != other.shape:
        return False
    return bool((one - other).abs().max() <= 1e-6 * other.abs().max())


def _module(net: nn.Module, name: str, feature: str) -> tuple[str, int | None]:
    match = _SPELLED.fullmatch(feature)
    assert match is not None
    path, token = match[1], None if match[2] is None else int(match[2])
    known = dict(net.named_modules())
    if path in known:
        return path, token
    if path == _OUTPUT:
        return "", token
    raise UserError(
        f"{name}: expected feature to name one of its modules, got {feature!r}."
        + did_you_mean(path, filter(None, known))
    )


def _reading(
    net: nn.Module,
    images: Tensor,
    name: str,
    module: str,
    of_input: bool,
    classifier: str | None,
    token: int | None,
    spelled: str | None,
) -> Reading:
    """A reading that was tried; without the classifier's arithmetic where the network runs without it."""
    tried = Reading(module, of_input, classifier, False, 0, token, spelled)
    try:
        feature = View(net, tried)(images)
    except Exception as error:
        reason = first_line(error)
        raise UserError(
            f"{name}: expected a module that runs and gives a feature, got {spelled or module!r} ({reason}); "
            f"give another as feature.{_candidates(net, images)}"
        ) from error
    width = feature.shape[-1]
    layer = net.get_submodule(module)
    if feature.shape[0] != len(images) or (
        of_input and isinstance(layer, nn.Linear) and width != layer.in_features
    ):
        raise UserError(
            f"{name}: expected one feature an image, got {tuple(feature.shape)} for {len(images)} images at "
            f"{module!r}; give another module as feature.{_candidates(net, images)}"
        )
    found = Reading(module, of_input, classifier, False, width, token, spelled)
    if classifier is None:
        return found
    skipping = Reading(module, of_input, classifier, True, width, token, spelled)
    try:
        same = torch.equal(View(net, skipping)(images), feature)
    except Exception:  # what comes after the classifier may take nothing but its output
        same = False
    return skipping if same else found


def _last_linear(net: nn.Module, images: Tensor) -> str | None:
    """The name of the Linear layer whose output is the network's."""
    made: list[tuple[str, Tensor]] = []
    handles = [
        # copied: what follows may work in place
        module.register_forward_hook(lambda _, __, out, name=name: made.append((name, out.clone())))
        for name, module in net.named_modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        output = _logits(net(images))
    finally:
        for handle in handles:
            handle.remove()
    if output is None:
        return None
    for name, out in reversed(made):
        if torch.equal(out.flatten(1), output.flatten(1)) and _gives_output(net, images, name, out):
            return name
    return None


def _gives_output(net: nn.Module, images: Tensor, name: str, out: Tensor) -> bool:
    """Whether whatever the layer gives is the network's output, which equal zeros don't tell."""
    mark = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)

    def marking(layer: nn.Module) -> nn.Module:
        twin = _shallow(layer)
        twin._forward_hooks = OrderedDict()
        twin.register_forward_hook(lambda *_: mark.clone())
        return twin

    marked = _logits(_with(net, name, marking)(images))
    return marked is not None and torch.equal(marked.flatten(1), mark.flatten(1))


def _no_feature(net: nn.Module, images: Tensor, name: str) -> UserError:
    return UserError(
        f"{name}: expected a network whose output is that of one Linear layer on a feature, got another; "
        "give a module as feature (teacher.feature in a run), or classifier false to take its output as an "
        f"embedding.{_candidates(net, images)}"
    )


def no_classifier(net: nn.Module, images: Tensor, name: str) -> UserError:
    """The error for a :class:`FeatureNetwork` that does not :func:`fits`."""
    kind = type(cast(FeatureNetwork, net).get_classifier()).__name__
    return UserError(
        f"{name}: expected a classifier of one Linear layer on the pooled feature, got {kind} behind other "
        "layers or heads; give a module as feature (teacher.feature in a run), or classifier false for the "
        f"pooled feature alone, or choose another network.{_candidates(net, images)}"
    )


def _candidates(net: nn.Module, images: Tensor) -> str:
    """The end of a sentence that names the last modules near the top that give something poolable."""
    shapes: dict[str, str] = {}

    def note(name: str, output: Any) -> None:
        if isinstance(output, Tensor) and 2 <= output.dim() <= 4 and len(output) == len(images):
            shapes.pop(name, None)
            shapes[name] = "x".join(map(str, output.shape[1:]))

    handles = [
        module.register_forward_hook(lambda _, __, out, name=name: note(name, out))
        for name, module in net.named_modules()
        if name and name.count(".") <= 1
    ]
    try:
        with still(net):
            net(images)
    finally:
        for handle in handles:
            handle.remove()
    shown = [f"{name} ({shape})" for name, shape in list(shapes.items())[: -_SHOWN - 1 : -1]]
    return f" Candidates: {', '.join(shown)}." if shown else ""
