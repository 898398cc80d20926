"""Locate a network's feature by running it once.

Shapes: B images, C channels, D feature width, K classes, N tokens.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from itertools import chain, combinations
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from gendd.errors import UserError, did_you_mean, first_line
from gendd.models.affine import is_affine, width_of
from gendd.models.maps import as_map, first_tensor, has_positions
from gendd.models.trial import still
from gendd.models.view import Reading, View

ADDED = "gendd_readout"
_OUTPUT = "output"
_SHOWN = 6
_SPELLED = re.compile(r"(.*?)(?:\[(\d+)\])?")


class FeatureNetwork(Protocol):
    """A network with methods to get its feature; every timm model has them."""

    def forward_features(self, x: Tensor, /) -> Tensor:
        """Normalised images (B, C, H, W) -> the input of ``forward_head``."""

    def forward_head(self, x: Tensor, /, pre_logits: bool = False) -> Tensor:
        """-> logits (B, K), or the feature (B, D), the classifier's input, if ``pre_logits``."""

    def get_classifier(self) -> nn.Module:
        """The layer from feature to logits."""


def fits(net: nn.Module, images: Tensor) -> bool:
    """Whether a :class:`FeatureNetwork`'s classifier is one Linear layer directly on the feature.

    A few timm networks have a norm between the two, or average in a second head, which shapes don't show.
    """
    network = cast(FeatureNetwork, net)
    classifier = network.get_classifier()
    if not isinstance(classifier, nn.Linear):
        return False
    with still(net):
        maps = network.forward_features(images)
        feature = network.forward_head(maps, pre_logits=True)
        # Exact equality: an untrained BatchNorm between the two changes the logits by only 5e-6.
        return feature.shape == (len(images), classifier.in_features) and torch.equal(
            classifier(feature), network.forward_head(maps)
        )


def find(
    net: nn.Module,
    images: Tensor,
    name: str,
    feature: str | None = None,
    classifier: bool = True,
    own: bool = False,
) -> Reading:
    """Find out how a network's feature is read.

    Args:
        net: Any network.
        images: Normalised images of a size that the network takes.
        name: Name of the network for error messages.
        feature: Dotted name of a Linear layer, which is the classifier and whose input is the feature; or
            of any other module, whose output is the feature: maps (B, C, H, W) averaged over H and W, tokens
            (B, N, D) averaged over N, or only token ``n`` for ``NAME[n]``; the classifier is then the last
            Linear layer if that output is its input. ``output`` is the network's own output. None: the input
            of the Linear layer, or of the 1x1 convolution on one pixel, that gives the network's output; if
            the outputs of two layers are averaged, their concatenated inputs, or the input they share.
        classifier: Use the classifier. If False and ``feature`` is None, a network that does not end in a
            Linear layer gives its output.
        own: Whether the network may be modified: if no layer gives its output, the output becomes the feature
            and a Linear layer :data:`ADDED`, initialised to the identity, the classifier.

    Raises:
        UserError: no such module, or no feature is found.
    """
    with still(net):
        last = _last_layers(net, images)
        if last is None and own and classifier and feature is None:
            last = _add_classifier(net, images)
        found = _found(net, images, name, feature, classifier, last)
        found = replace(found, map=_last_map(net, images, found))
    return replace(found, final=last is not None and found.classifier == last.classifier)


def _found(
    net: nn.Module, images: Tensor, name: str, feature: str | None, classifier: bool, last: Reading | None
) -> Reading:
    if feature is None:
        if last is not None:
            return _tried(net, images, name, last if classifier else replace(last, classifier=()))
        if not classifier:
            return _tried(net, images, name, Reading(("",), False, (), False, 0))
        raise _no_feature(net, images, name)
    path, token = _module(net, name, feature)
    if isinstance(net.get_submodule(path), nn.Linear) or (last is not None and last.classifier == (path,)):
        layers = (path,) if classifier else ()
        return _tried(net, images, name, Reading((path,), True, layers, False, 0, None, feature))
    found = _tried(net, images, name, Reading((path,), False, (), False, 0, token, feature))
    if classifier and last is not None and _same(View(net, found)(images), View(net, last)(images)):
        return _tried(net, images, name, replace(found, classifier=last.classifier))
    return found


def _last_map(net: nn.Module, images: Tensor, reading: Reading) -> str | None:
    """Name of the last module before the feature whose output is a map, or tokens, of several positions."""
    made: list[str] = []

    def note(name: str, output: Any) -> None:
        try:
            found = first_tensor(output)
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
    first = reading.modules[0]
    if first:
        handles.append(net.get_submodule(first).register_forward_pre_hook(stop))
    try:
        net(images)
    finally:
        for handle in handles:
            handle.remove()
    if first and reading.of_input and "" in made:
        made = made[: len(made) - 1 - made[::-1].index("")]
    named = [name for name in made if name]
    if not reading.of_input and first in named:
        return first
    return named[-1] if named else None


def _same(one: Tensor, other: Tensor) -> bool:
    # another order of pooling changes the result by 1e-7, an untrained norm in between by 5e-6
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


def _tried(net: nn.Module, images: Tensor, name: str, reading: Reading) -> Reading:
    """Check a reading by running it; skips the classifier's computation if the network runs without it."""
    where = reading.spelled or " and ".join(reading.modules)
    try:
        feature = View(net, reading)(images)
    except Exception as error:
        reason = first_line(error)
        raise UserError(
            f"{name}: expected a module that runs and gives a feature, got {where!r} ({reason}); "
            f"give another as feature.{_candidates(net, images)}"
        ) from error
    width = feature.shape[-1]
    layers = [net.get_submodule(module) for module in reading.modules]
    known = reading.of_input and all(map(is_affine, layers))
    if feature.shape[0] != len(images) or (known and width != sum(map(width_of, layers))):
        raise UserError(
            f"{name}: expected one feature per image, got {tuple(feature.shape)} for {len(images)} images at "
            f"{where!r}; give another module as feature.{_candidates(net, images)}"
        )
    skipping = replace(reading, skips=True)
    try:
        skips = bool(reading.classifier) and torch.equal(View(net, skipping)(images), feature)
    except Exception:  # code after the classifier may need its output
        skips = False
    return replace(reading, skips=skips, width=width)


def _add_classifier(net: nn.Module, images: Tensor) -> Reading | None:
    """Add a classifier on a network's logits, which become its feature; None if they are not (B, K)."""
    logits = _logits(net(images))
    if logits is None or logits.dim() != 2:
        return None
    layer = nn.Linear(logits.shape[1], logits.shape[1])
    nn.init.eye_(layer.weight)
    nn.init.zeros_(layer.bias)
    net.add_module(ADDED, layer.to(logits))
    return Reading(("",), False, (ADDED,), False, 0)


def _last_layers(net: nn.Module, images: Tensor) -> Reading | None:
    """Find the affine layer whose output is the network's, or the two layers whose mean output is.

    Every candidate's output is replaced by noise: the network's output is then the noise of these layers.
    """
    output = _logits(net(images))
    if output is None:
        return None
    marks: dict[str, Tensor] = {}
    taken: dict[str, Tensor] = {}
    draw = torch.Generator().manual_seed(1)

    def mark(name: str, inputs: tuple[Any, ...], out: Tensor) -> Tensor | None:
        if out.flatten(1).shape != output.flatten(1).shape:
            return None
        noise = torch.randn(out.shape, generator=draw).to(out)
        # copied: later layers may work in place
        taken[name], marks[name] = inputs[0] if inputs else out, noise.flatten(1).clone()
        return noise

    handles = [
        module.register_forward_hook(lambda _, inputs, out, name=name: mark(name, inputs, out))
        for name, module in net.named_modules()
        if is_affine(module)
    ]
    try:
        marked = _logits(net(images))
    finally:
        for handle in handles:
            handle.remove()
    if marked is None:
        return None
    for names in chain(combinations(reversed(marks), 1), combinations(marks, 2)):
        if _same(torch.stack([marks[name] for name in names]).mean(0), marked.flatten(1)):
            # compare identity, not values: two untrained norms before the layers give equal inputs
            apart = any(taken[name] is not taken[names[0]] for name in names)
            return Reading(names if apart else names[:1], True, names, False, 0)
    return None


def _logits(output: Any) -> Tensor | None:
    """``logits`` of a network's output if it has that entry; else its first tensor."""
    found = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(found, Tensor):
        return found
    try:
        return first_tensor(output)
    except (StopIteration, TypeError):
        return None


def _no_feature(net: nn.Module, images: Tensor, name: str) -> UserError:
    return UserError(
        f"{name}: expected a network whose output is that of one Linear layer on a feature, or the mean of "
        "two, got another; give a module as feature (teacher.feature in a run), or classifier false to take "
        f"its output as an embedding.{_candidates(net, images)}"
    )


def _candidates(net: nn.Module, images: Tensor) -> str:
    """Suggestion to append to an error: the last modules near the top level with a poolable output."""
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
