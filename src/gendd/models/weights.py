"""Weights files: plain state dicts of networks, as .safetensors or saved by torch."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gendd.errors import UserError, first_line
from gendd.files import check_code, read_text, user_path
from gendd.messages import say
from gendd.models.backbone import Backbone
from gendd.models.described import checked
from gendd.models.feature import ADDED

_SHOWN = 3


class OtherClassesError(UserError):
    """Weights that fit except for the number of classes.

    Attributes:
        classes: Number of classes of the weights.
    """

    def __init__(self, message: str, classes: int) -> None:
        super().__init__(message)
        self.classes = classes


_STUDENT_WEIGHTS = "model.safetensors"
# keys of the state dict in a checkpoint that holds more
_WRAPPERS = ("model", "state_dict", "model_state_dict", "net")
# keys of averaged weights, which are preferred if there are both, as in timm
_AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
# prefixes that trainers add to every key of the network they wrap
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.", "student.", "method.")
# names of the classifier in public checkpoints
_CLASSIFIERS = ("fc", "linear", "classifier", "head", "classifier.0", "last_linear")


class _Dropped:
    """Placeholder for a NumPy scalar in a checkpoint, such as its best accuracy, which is not needed here."""

    def __new__(cls, *_: Any) -> _Dropped:
        return super().__new__(cls)

    def __setstate__(self, _: Any) -> None:
        """Ignore the pickled state."""


# Everything a pickle may name besides torch's tensors. No NumPy code runs, and a namespace of options can
# only hold allowed objects.
_HARMLESS: list[Any] = [argparse.Namespace] + [
    (_Dropped, name)
    for name in ("numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
]


def save_weights(backbone: Backbone, path: str | Path) -> None:
    """Save the network's plain state dict to a .safetensors file."""
    state = {key: value.detach().cpu().contiguous() for key, value in backbone.net.state_dict().items()}
    save_file(state, path)


def load_weights(backbone: Backbone, path: str | Path, *, other_classes: bool = False) -> None:
    """Load a weights file into the network, strictly.

    Takes a ``.safetensors`` file, a file with any other suffix written by ``torch.save`` (code in a pickle
    is refused), or the folder of a run or student. See :func:`read_checkpoint` for what a checkpoint may
    contain besides the state dict, and :func:`load_state` for tolerated differences. Prefixes added by
    trainers to every key (``model.`` in Lightning's checkpoints, ``module.model.``) are removed.

    Args:
        backbone: The network.
        path: The file or folder.
        other_classes: Keep the network's own classifier if the file has none, or one with another number of
            classes; ``backbone.pretrained_classes`` is then that number (0 for none).

    Raises:
        UserError: no such file, an unreadable file, a classifier with another number of classes, or
            keys or shapes of another network. The network is then unchanged.
    """
    stripped = tuple(f"{name}." for name in backbone.stripped)
    state, _ = read_checkpoint(path)
    state = _without_prefixes(state, set(backbone.net.state_dict()))
    state = {key: value for key, value in state.items() if not key.startswith(stripped)}
    load_state(backbone, state, path, other_classes=other_classes)


def load_state(
    backbone: Backbone, state: Mapping[str, Tensor], path: str | Path, *, other_classes: bool = False
) -> None:
    """Load a state dict into the network, strictly.

    BatchNorm's ``num_batches_tracked`` may be missing. If nothing else differs, a classifier named
    ``linear``, ``classifier`` or the like is loaded into the network's own, whatever its name.

    Args:
        backbone: The network.
        state: Names to tensors.
        path: Source of the state dict, for error messages.
        other_classes: As for :func:`load_weights`.

    Raises:
        UserError: as :func:`load_weights`, once the file is read.
    """
    own = backbone.net.state_dict()
    # files of its library lack the layer that was added to the network
    state = {key: value for key, value in own.items() if key.startswith(f"{ADDED}.")} | dict(state)
    state = _own_classifier(backbone, own, state)
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = sorted(key for key in state if key not in own)
    reshaped = [key for key, value in own.items() if key in state and value.shape != state[key].shape]
    classes = None if missing or unexpected else _classes_of(backbone, state, reshaped)
    classifier = [key for name in backbone.classifier_names for key in own if key.startswith(f"{name}.")]
    if other_classes and classifier and set(missing) == set(classifier) and not (unexpected or reshaped):
        classes, missing = 0, []
    elif classes is not None:
        if not other_classes:
            raise OtherClassesError(
                f"{path}: its {backbone.name} has {classes} classes, not the expected "
                f"{backbone.num_classes}: give weights trained on those classes.",
                classes,
            )
        state, reshaped = dict(state) | {key: own[key] for key in reshaped}, []
    if missing or unexpected or reshaped:
        shapes = [f"{key} is {_shape(state[key])} for {_shape(own[key])}" for key in reshaped[:_SHOWN]]
        parts = [
            f"{len(keys)} keys {problem} ({', '.join(shown)}{', …' if len(keys) > len(shown) else ''})"
            for keys, shown, problem in (
                (missing, missing[:_SHOWN], "missing"),
                (unexpected, unexpected[:_SHOWN], "unexpected"),
                (reshaped, shapes, "of another shape"),
            )
            if keys
        ]
        remedy = "Give the file of this network or the name of the file's."
        if (channels := _channels_of(own, state, reshaped)) is not None:
            remedy = (
                f"Its network takes {channels} channels: set --student.channels {channels} (or --teacher's)."
            )
        raise UserError(f"{path}: expected the weights of {backbone.name}, got {'; '.join(parts)}. {remedy}")
    learned = [name for name, _ in backbone.net.named_parameters() if name in state]
    if odd := [name for name in learned if not bool(state[name].isfinite().all())]:
        raise UserError(
            f"{path}: expected finite weights, got NaN or infinity in {len(odd)} of {len(learned)} tensors "
            f"({', '.join(odd[:_SHOWN])}{', …' if len(odd) > _SHOWN else ''}); give an earlier checkpoint."
        )
    backbone.net.load_state_dict({**own, **state})
    backbone.pretrained_classes = backbone.num_classes if classes is None else classes


def saved_backbone(path: str | Path) -> dict[str, Any] | None:
    """Description of a student's network in the ``config.json`` beside its weights.

    Args:
        path: As for :func:`load_weights`.

    Returns:
        The arguments of :func:`gendd.models.create_backbone` that built it; None if the weights are not
        those of a saved student.

    Raises:
        UserError: the config.json can't be read.
    """
    file = _weights_file(Path(path))
    config = file.parent / "config.json"
    if file.name != _STUDENT_WEIGHTS or not config.is_file():
        return None
    try:
        saved = json.loads(read_text(config))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{str(config)!r}: expected a readable JSON file, got one that is not ({first_line(error)}); "
            "restore it."
        ) from error
    if not isinstance(saved, dict) or "format" not in saved:  # of another library
        return None
    try:
        return checked(saved.get("backbone"))
    except UserError as error:
        raise UserError(f"Student {str(file.parent)!r}: {error}") from error


def network_of(value: str) -> dict[str, str]:
    """Keys of :class:`gendd.ModelConfig` for a network's name or the folder of its run."""
    described = saved_backbone(value) if os.path.isdir(user_path(value)) else None
    if described is not None:
        check_code(described["name"], f"Student {value!r}")
    return {"name": value} if described is None else {"name": described["name"], "weights": value}


def saved_class_names(path: str | Path) -> list[str] | None:
    """Class names in the folder of a run or student, as :func:`load_weights` takes it; None without any."""
    names = saved_info(path).get("class_names")
    return [str(name) for name in names] if isinstance(names, list) else None


def saved_info(path: str | Path) -> dict[str, Any]:
    """``info`` of the student in the folder of a run or student; empty for other weights."""
    config = _weights_file(Path(path)).parent / "config.json"
    try:
        info = json.loads(read_text(config))["info"]
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return {}
    return info if isinstance(info, dict) else {}


def read_checkpoint(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the state dict of a weights file, and the other contents of the file.

    Wrappers such as ``{"model": ...}`` and ``{"state_dict": ...}``, and the prefix ``module.`` of every key,
    are removed. Besides the state dict a file may hold plain Python values (epoch, optimiser state), NumPy
    scalars and an ``argparse.Namespace``.

    If a checkpoint also holds averaged weights, these are returned.

    Args:
        path: As for :func:`load_weights`; ``FILE::KEY`` selects the entry KEY of a checkpoint.

    Returns:
        Names to tensors, and the outermost wrapper's other values by name, NumPy's as opaque objects.

    Raises:
        UserError: no such file, or one that can't be read or holds no state dict.
    """
    file, _, key = str(path).partition("::")
    loaded = _read(_weights_file(Path(file)))
    beside: dict[str, Any] = {}
    parts = loaded if isinstance(loaded, Mapping) else {}
    if key or any(isinstance(parts.get(name), Mapping) for name in _AVERAGES):
        return _plain_keys(_unwrap(_chosen(parts, key, file), Path(file))), beside
    if isinstance(loaded, Mapping) and (inner := _inner(loaded)) is not None:
        beside = {key: value for key, value in loaded.items() if value is not inner}
    return _plain_keys(_unwrap(loaded, Path(path))), beside


def _chosen(loaded: Mapping[Any, Any], key: str, file: str) -> Mapping[Any, Any]:
    """Entry of a checkpoint named by the user, else the averaged weights."""
    parts = {name: part for name, part in loaded.items() if isinstance(part, Mapping)}
    if key:
        if key not in parts:
            known = f"one of {', '.join(map(repr, parts))}" if parts else "nothing"
            raise UserError(f"weights: expected {known} after {file}::, got {key!r}; correct it.")
        return parts[key]
    name = next(name for name in _AVERAGES if name in parts)
    others = [other for other in _WRAPPERS if other in parts]
    if others:
        say(f"{file}: took {name!r}, the average of the weights, and not {others[0]!r} ({file}::{others[0]})")
    return parts[name]


def _without_prefixes(state: dict[str, Tensor], own: set[str]) -> dict[str, Tensor]:
    """Remove prefixes common to every key; unchanged if no key then matches the network.

    If the state dict is that of a larger module, the part below one prefix that holds the whole network is
    returned.
    """
    if not own.isdisjoint(state):
        return state
    bare = state
    needed = {key for key in own if not key.endswith("num_batches_tracked")}
    for each in _PREFIXES:
        below = {key.removeprefix(each): value for key, value in state.items() if key.startswith(each)}
        if len(below) < len(state) and needed <= set(below):
            return below
    while bare and own.isdisjoint(bare):
        prefix = next((prefix for prefix in _PREFIXES if all(key.startswith(prefix) for key in bare)), None)
        if prefix is None:
            return state
        bare = {key.removeprefix(prefix): value for key, value in bare.items()}
    return bare


def _own_classifier(
    backbone: Backbone, own: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> Mapping[str, Tensor]:
    """Rename the classifier's keys in a state dict to the network's, if only these differ."""
    if not backbone.has_classifier:
        return state
    known = f"{backbone.classifier_name}."
    suffixes = {key.removeprefix(known) for key in own if key.startswith(known)}
    missing = {key for key in own if key not in state and not key.endswith("num_batches_tracked")}
    unexpected = {key for key in state if key not in own}
    if missing != {known + suffix for suffix in suffixes}:
        return state
    for name in _CLASSIFIERS:
        if unexpected == {f"{name}.{suffix}" for suffix in suffixes}:
            renamed = {f"{name}.{suffix}": known + suffix for suffix in suffixes}
            return {renamed.get(key, key): value for key, value in state.items()}
    return state


def _classes_of(backbone: Backbone, state: Mapping[str, Tensor], reshaped: Sequence[str]) -> int | None:
    """Number of classes of a state dict that fits except for that number; else None."""
    names = backbone.classifier_names
    weights, biases = ([f"{name}.{suffix}" for name in names] for suffix in ("weight", "bias"))
    if not names or not set(weights) <= set(reshaped) <= {*weights, *biases}:
        return None
    classes, *width = state[weights[0]].shape
    return classes if width == list(backbone.net.state_dict()[weights[0]].shape[1:]) else None


def _channels_of(
    own: Mapping[str, Tensor], state: Mapping[str, Tensor], reshaped: Sequence[str]
) -> int | None:
    """Input channels of a state dict's first layer if only these keep it from fitting; else None."""
    for key in reshaped[:1]:
        rows, channels, *window = state[key].shape if state[key].ndim == 4 else (0, 0)
        if channels in (1, 3) and [rows, *window] == [own[key].shape[0], *own[key].shape[2:]]:
            return channels
    return None


def _shape(tensor: Tensor) -> str:
    return "x".join(str(size) for size in tensor.shape) or "a scalar"


def _weights_file(path: Path) -> Path:
    """Weights file in the folder of a run or student; any other path unchanged."""
    path = user_path(path)
    inside = (path / "student" / _STUDENT_WEIGHTS, path / _STUDENT_WEIGHTS)
    return next((file for file in inside if os.path.isfile(file)), path)


def _read(path: Path) -> Any:
    """Contents of a weights file."""
    if not os.path.isfile(path):
        raise UserError(f"weights: expected a file, found none at {str(path)!r}; check the path.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings(), torch.serialization.safe_globals(_HARMLESS):
            warnings.simplefilter("ignore")  # torch's guess at the pickle's protocol
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can break any layer of the readers
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused:
            raise UserError(
                f"{path}: expected a state dict of tensors, got a pickle of the Python object {refused[1]} "
                "besides, which could run code; if you trust the file, keep its tensors alone with: "
                f"{_conversion(path)}"
            ) from error
        raise UserError(
            f"{path}: expected a .safetensors file or a state dict saved by torch, got a file that can't be "
            "read as one; is it complete, with the right suffix?"
        ) from error


def _conversion(path: Path) -> str:
    """Shell command that reduces a checkpoint to its state dict."""
    source, target = (json.dumps(str(name)) for name in (path, path.with_suffix(".tensors.pt")))
    program = (
        f'import torch; c = torch.load({source}, map_location="cpu", weights_only=False); '
        'c = c.get("model", c.get("state_dict", c)) if isinstance(c, dict) else c; '
        f"torch.save(c if isinstance(c, dict) else c.state_dict(), {target})"
    )
    return f"python -c {shlex.quote(program)}"


def _inner(loaded: Mapping[Any, Any]) -> Mapping[Any, Any] | None:
    """State dict inside a wrapper; None if there is no wrapper."""
    return next((loaded[key] for key in _WRAPPERS if isinstance(loaded.get(key), Mapping)), None)


def _unwrap(loaded: Any, path: Path) -> dict[str, Tensor]:
    while isinstance(loaded, Mapping) and (inner := _inner(loaded)) is not None:
        loaded = inner
    if not isinstance(loaded, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in loaded.items()
    ):
        kind = type(loaded).__name__
        raise UserError(
            f"{path}: expected a state dict (names to tensors), got a {kind} holding something else; "
            "save model.state_dict()."
        )
    return dict(loaded)


def _plain_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    saved = "backbone.net."
    if any(key.startswith(saved) for key in state):  # a saved student: only its network
        return {key.removeprefix(saved): value for key, value in state.items() if key.startswith(saved)}
    if all(key.startswith("module.") for key in state):
        return {key.removeprefix("module."): value for key, value in state.items()}
    return state
