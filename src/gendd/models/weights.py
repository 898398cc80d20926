"""Weights files: the plain state dict of a network, as .safetensors or saved by torch."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gendd.errors import UserError
from gendd.models.backbone import Backbone

_SHOWN = 3


class OtherClassesError(UserError):
    """Weights that fit but for the number of classes.

    Attributes:
        classes: How many theirs are.
    """

    def __init__(self, message: str, classes: int) -> None:
        super().__init__(message)
        self.classes = classes


_STUDENT_WEIGHTS = "model.safetensors"


def save_weights(backbone: Backbone, path: str | Path) -> None:
    """Write the network's state dict under its plain keys to a .safetensors file."""
    state = {key: value.detach().cpu().contiguous() for key, value in backbone.net.state_dict().items()}
    save_file(state, path)


def load_weights(backbone: Backbone, path: str | Path) -> None:
    """Load a weights file into the network, strictly.

    Takes ``.safetensors``, or any other suffix for what ``torch.save`` wrote (tensors only: code in
    a pickle is refused), or a run's or student's folder. ``{"model": ...}`` and ``{"state_dict": ...}``
    around the state dict and ``module.`` before every key are removed. BatchNorm's
    ``num_batches_tracked`` may be missing.

    Raises:
        UserError: no such file, an unreadable file, a classifier of another number of classes, or
            keys or shapes of another network. The network is then unchanged.
    """
    stripped = tuple(f"{name}." for name in backbone.stripped)
    state = {key: value for key, value in _read(Path(path)).items() if not key.startswith(stripped)}
    own = backbone.net.state_dict()
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = sorted(key for key in state if key not in own)
    reshaped = [key for key, value in own.items() if key in state and value.shape != state[key].shape]
    if not missing and not unexpected and reshaped:
        _check_classes(backbone, state, reshaped, path)
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
        raise UserError(
            f"{path}: expected the weights of {backbone.name}, got {'; '.join(parts)}. "
            "Give the file of this network or the name of the file's."
        )
    backbone.net.load_state_dict({**own, **state})


def saved_backbone(path: str | Path) -> dict[str, Any] | None:
    """How the ``config.json`` beside a student's weights describes its network.

    Args:
        path: As for :func:`load_weights`.

    Returns:
        The arguments of :func:`gendd.models.create_backbone` that built it; None where the weights are
        no student's of ours.

    Raises:
        UserError: the config.json can't be read.
    """
    file = _weights_file(Path(path))
    config = file.with_name("config.json")
    if file.name != _STUDENT_WEIGHTS or not config.is_file():
        return None
    try:
        described = json.loads(config.read_text(encoding="utf-8"))["backbone"]
        optional = [key for key in ("feature", "input_size", "channels", "config") if key in described]
        return {key: described[key] for key in ("name", "in_channels", "mean", "std", *optional)}
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{config}: expected a readable JSON file; {reason}") from error
    except (KeyError, TypeError):  # of another library
        return None


def saved_class_names(path: str | Path) -> list[str] | None:
    """Class names of a run's or a student's folder, as :func:`load_weights` takes it; None where none are."""
    config = _weights_file(Path(path)).with_name("config.json")
    try:
        names = json.loads(config.read_text(encoding="utf-8"))["info"]["class_names"]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError):
        return None
    return [str(name) for name in names] if isinstance(names, list) else None


def _check_classes(
    backbone: Backbone, state: Mapping[str, Tensor], reshaped: Sequence[str], path: str | Path
) -> None:
    weight, bias = (f"{backbone.classifier_name}.{suffix}" for suffix in ("weight", "bias"))
    if weight in reshaped and set(reshaped) <= {weight, bias}:
        classes, *width = state[weight].shape
        if width == [backbone.feature_dim]:
            raise OtherClassesError(
                f"{path}: its {backbone.name} has {classes} classes, not the expected "
                f"{backbone.num_classes}: give weights trained on those classes.",
                classes,
            )


def _shape(tensor: Tensor) -> str:
    return "x".join(str(size) for size in tensor.shape) or "a scalar"


def _weights_file(path: Path) -> Path:
    """The weights of a run's or a student's folder; any other path as it is."""
    inside = (path / "student" / _STUDENT_WEIGHTS, path / _STUDENT_WEIGHTS)
    return next((file for file in inside if file.is_file()), path)


def _read(path: Path) -> dict[str, Tensor]:
    path = _weights_file(path)
    if not path.is_file():
        raise UserError(f"weights: expected a file, found none at {path}; check the path.")
    try:
        if path.suffix == ".safetensors":
            return _plain_keys(load_file(path))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's guess at the pickle's protocol
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can break any layer of the readers
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused:
            raise UserError(
                f"{path}: expected tensors only, got a pickle of the Python object {refused[1]}, which could "
                "run code; save the state dict alone with torch.save or as .safetensors."
            ) from error
        raise UserError(
            f"{path}: expected a .safetensors file or a state dict saved by torch, got a file that can't be "
            "read as one; is it whole and of the right suffix?"
        ) from error
    return _plain_keys(_unwrap(loaded, path))


def _unwrap(loaded: Any, path: Path) -> dict[str, Tensor]:
    while isinstance(loaded, Mapping):
        inner = next(
            (loaded[key] for key in ("model", "state_dict") if isinstance(loaded.get(key), Mapping)), None
        )
        if inner is None:
            break
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
    if any(key.startswith(saved) for key in state):  # a student of ours: its network alone
        return {key.removeprefix(saved): value for key, value in state.items() if key.startswith(saved)}
    if all(key.startswith("module.") for key in state):
        return {key.removeprefix("module."): value for key, value in state.items()}
    return state
