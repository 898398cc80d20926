"""The student of a released checkpoint, and the settings it was trained with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gendd.config import RunConfig, from_dict, read_yaml
from gendd.data.images import SMALL
from gendd.errors import UserError
from gendd.models import Backbone, create_backbone
from gendd.models.weights import load_state
from gendd.recipes import recipe_path
from gendd.released.checkpoints import (
    CIFAR_MEAN,
    CIFAR_STD,
    OPTIONS,
    Released,
    load_generator,
    read_released,
)
from gendd.student import Student
from gendd.student.generator import FeatureGenerator

# the released ImageNet settings that differ from those for CIFAR
_IMAGENET = {"gendd": {"repeats": 10}, "training": {"beta2": [0.96, 0.999]}, "readout": {"steps": 64}}
# the released evaluation crops the central 224 of 256 pixels of ImageNet; images as small as CIFAR's are kept
_CIFAR_SIZE, _IMAGENET_SIZE, _IMAGENET_FRAMING = 32, 224, 0.875


def _own_size(backbone: Backbone, made_here: bool) -> int | None:
    """Side of the images that a released student takes; None if unknown, for a user's own network."""
    if backbone.name.startswith("cifar/"):
        return _CIFAR_SIZE
    if backbone.image_size is not None:
        return backbone.image_size[0]
    return _IMAGENET_SIZE if made_here else None


def released_config(released: Released, student: str, settings: Mapping[str, Any]) -> RunConfig:
    """The published settings, overridden by the checkpoint's options, the settings given, and its sizes."""
    cifar = student.startswith("cifar/")
    values = read_yaml(recipe_path("published"))
    _lay(values, {} if cifar else _IMAGENET)
    if released.stage == 1:
        values |= {"method": "supervised", "readout": {"name": "linear"}}
    sets = {10: "cifar10", 100: "cifar100"} if cifar else {}
    values["data"] = {"name": sets.get(released.num_classes, "folder"), "validation": 0.0}
    normalised = cifar and released.in_channels == len(CIFAR_MEAN)
    values["student"] = {"mean": CIFAR_MEAN, "std": CIFAR_STD} if normalised else {}
    teacher = settings.get("teacher", {}).get("name", RunConfig().teacher.name)
    if teacher.startswith("cifar/"):
        values["teacher"] = dict(values["student"])
    for layer in (_trained_with(released.options), settings, {"student": {"name": student}}):
        _lay(values, layer)
    _lay(values, {"gendd": released.sizes()})
    if values["gendd"]["condition_dropout"] == 0 and "guidance" not in settings.get("readout", {}):
        values["readout"]["guidance"] = 1.0
    return from_dict(values, RunConfig)


def _trained_with(options: Mapping[str, Any]) -> dict[str, Any]:
    """Settings corresponding to the released code's options."""
    found: dict[str, Any] = {"gendd": {}, "training": {}, "data": {}}
    for option, (section, key) in OPTIONS.items():
        if option in options:
            found[section][key] = options[option]
    if "cos" in options:
        found["training"]["schedule"] = "cosine" if options["cos"] else "step"
    # the released code allows a warmup as long as the training
    if {"epochs", "warmup_epochs"} <= set(options) and options["warmup_epochs"] < options["epochs"]:
        found["training"]["warmup_epochs"] = options["warmup_epochs"]
    return found


def _lay(values: dict[str, Any], layer: Mapping[str, Any]) -> None:
    """Merge settings over others, section by section."""
    for key, value in layer.items():
        values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value


def released_student(
    checkpoint: str | Path | Released, student: str | Backbone, config: RunConfig | None = None
) -> Student:
    """Build the student of a released checkpoint, in eval mode.

    For stage 1 it is only the backbone, with the teacher's classifier on the projected feature, as in
    stage 1, folded into one Linear layer.

    Args:
        checkpoint: The file, or the result of :func:`read_released`.
        student: The student network's name, or the network (its weights are overwritten).
        config: Its settings; by default the published ones and those in the checkpoint.

    Raises:
        UserError: not such a checkpoint, or one of another student network.
    """
    released = checkpoint if isinstance(checkpoint, Released) else read_released(checkpoint)
    name = student.name if isinstance(student, Backbone) else student
    config = config or released_config(released, name, {})
    if isinstance(student, Backbone):
        backbone = student
    else:
        backbone = create_backbone(
            name, released.num_classes, released.in_channels, config.student.mean, config.student.std
        )
    load_state(backbone, released.student, released.path)
    info: dict[str, Any] = {"method": config.method}
    size = config.data.image_size or _own_size(backbone, made_here=not isinstance(student, Backbone))
    if size is not None:
        info |= {"image_size": size, "framing": _IMAGENET_FRAMING if size > SMALL else 1.0}
    try:
        classifier = _teacher_classifier(released.state)
        if released.stage == 1:
            backbone.classifier = _folded(classifier, released.state)
            return Student(backbone, readout=config.readout, info=info).eval()
        generator = FeatureGenerator(backbone.feature_dim, released.feature_width, config.gendd)
        load_generator(generator, released.state)
    except (KeyError, RuntimeError) as error:
        reason = str(error) if isinstance(error, RuntimeError) else f"{error} is missing"
        raise UserError(
            f"{released.path}: expected a stage-{released.stage} checkpoint whose tensors fit together; "
            f"{' '.join(reason.split())[:300]}"
        ) from error
    classifier.requires_grad_(False)
    return Student(backbone, generator, classifier, config.readout, info).eval()


def _teacher_classifier(state: Mapping[str, Tensor]) -> nn.Linear:
    weight = state["classifier.weight"]
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    bias = state.get("classifier.bias", torch.zeros(weight.shape[0]))
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer


@torch.no_grad()
def _folded(classifier: nn.Linear, state: Mapping[str, Tensor]) -> nn.Linear:
    """Fold stage 1's projection (D, d) and the classifier (K, D) into one layer (K, d)."""
    if "proj.weight" not in state:
        return classifier
    weight, bias = state["proj.weight"].double(), state["proj.bias"].double()
    outer = classifier.weight.double()
    folded = nn.Linear(weight.shape[1], classifier.out_features)
    folded.weight.copy_(outer @ weight)
    folded.bias.copy_(outer @ bias + classifier.bias.double())
    return folded
