"""Validate a run before anything is trained or written."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import torch
from torch import nn

from gendd.config import DataConfig, ModelConfig, RunConfig, registry
from gendd.data import Data
from gendd.data.readers import reader
from gendd.errors import UserError, first_line
from gendd.evaluation.refit import check_refit
from gendd.files import is_python_name
from gendd.messages import say
from gendd.methods import Method, Pretraining, build_method
from gendd.models import Backbone, teacher_class_names
from gendd.models.registry import check_name, new_classifier
from gendd.models.trial import still
from gendd.run.networks import student_network
from gendd.run.settings import is_taught, methods_of, refit_target, sees_labels, trains_teacher
from gendd.training import choose_monitor

_LARGEST_SIDE = 1024


def check_names(config: RunConfig, networks: Mapping[str, nn.Module]) -> None:
    """Raise :class:`UserError` for an unknown name of a data set or network, before either is loaded."""
    check_place(config.data)
    if is_taught(config) and "teacher" not in networks:
        try:
            check_name(config.teacher.name)
        except UserError as error:
            raise UserError(f"Teacher: {error}") from error
    if "student" not in networks:
        check_name(config.student.name)


def check_place(config: DataConfig) -> None:
    """Raise :class:`UserError` if no reader knows the data set, or if it takes no path and one is given."""
    if config.name == "webdataset" or is_python_name(config.name):
        return
    if not reader(config.name).located and config.path is not None:
        raise UserError(
            f"data.path: expected none for data.name {config.name!r}, whose images come with a package, got "
            f"{config.path!r}; for a folder of images give --data folder too."
        )


def check_networks(
    config: RunConfig, data: Data, teacher: Backbone | None, networks: Mapping[str, nn.Module]
) -> None:
    """Raise :class:`UserError` if the student or a method can't be built or can't learn from the data.

    Called before anything is trained or written.
    """
    _check_teacher(config, data)
    _check_cached(config)
    check_class_names(config.teacher, data, teacher)
    seen = sees_labels(config, data)
    student = student_network(config, data, teacher, networks.get("student"))
    source = config.student.weights or ("its pretrained weights" if config.student.pretrained else None)
    if source is not None and "student" not in networks and (line := new_classifier(student, source)):
        say(f"student {line}")
    for role, network in (("teacher", teacher), ("student", student)):
        if network is not None:
            check_size(network, data, role)
    for name in methods_of(config):
        method = build_method(dataclasses.replace(config, method=name), student, teacher, seen)
        _check_labels(name, method, config, data)
        if data.val is not None:
            monitor = config.training.monitor
            choose_monitor(method, monitor, seen and data.judged, data.num_classes, config.readout.name)
        target = refit_target(dataclasses.replace(config, method=name))
        if target is not None and method.teacher is not None:
            given = method.student(), method.teacher, target, seen and method.may_see_labels
            check_refit(*given, f"{registry.section(name)}.refit")
    if "linear_probe" in methods_of(config) and not (config.student.weights or config.student.pretrained):
        raise UserError(
            "student.weights: expected a trained student for method 'linear_probe', got none; "
            "give its run or its file."
        )
    if config.method == "gendd" and config.training.stage1_epochs > 0:
        if not seen:
            raise UserError(
                f"training.stage1_epochs: expected 0 without labels, got {config.training.stage1_epochs}."
            )
        assert teacher is not None
        Pretraining(student, teacher)
    if trains_teacher(config) and not data.labelled:
        raise UserError(
            "teacher.weights: expected a trained teacher for images without labels; give its file."
        )
    if data.test.labels is None and not is_taught(config):
        raise UserError(
            f"data.test_path: expected labelled test images for method {config.method!r}, which has no "
            "teacher to agree with, got unlabelled ones; set data.test_path."
        )


def check_class_names(config: ModelConfig, data: Data, teacher: Backbone | None) -> None:
    """Warn if a trained teacher's class names differ from the data's.

    Raises:
        UserError: the names are the same in a different order.
    """
    if teacher is None or teacher.num_classes != data.num_classes:
        return
    names = teacher_class_names(config, data.num_classes)
    if names is None or names == data.class_names or _are_numbers(names) or _are_numbers(data.class_names):
        return
    number = next(index for index, name in enumerate(names) if name != data.class_names[index])
    differs = f"class {number} is {names[number]!r} to the teacher, {data.class_names[number]!r} in the data"
    if sorted(names) == sorted(data.class_names):
        raise UserError(
            f"Teacher: expected its classes in the order of the data's, but {differs}; give its names, one "
            "per line, in a file data.classes, which orders the data's."
        )
    say(f"warning: the teacher's class names are not the data's: {differs}; check that they mean the same")


def _are_numbers(names: list[str]) -> bool:
    """Return whether the class names are just class numbers."""
    return names == [str(number) for number in range(len(names))]


def check_size(backbone: Backbone, data: Data, role: str) -> None:
    """Raise :class:`UserError` if a network can't take images of the data's size."""
    error = _failure(backbone, data.channels, data.image_size)
    if error is not None:
        least = _least_side(lambda side: _failure(backbone, data.channels, side) is None, data.image_size)
        taken = "" if least is None else f", but of {least}"
        raise UserError(
            f"{role}.input_size: expected a size that {backbone.name} takes, as it can't take images of "
            f"{data.image_size} pixels{taken} ({first_line(error)}); set it, or data.image_size."
        ) from error


def _failure(backbone: Backbone, channels: int, side: int) -> Exception | None:
    images = torch.zeros(2, channels, side, side, device=backbone.mean.device)
    try:
        with still(backbone.net):
            backbone.features(images)
    except Exception as error:  # whatever the network's own code raises
        return error
    return None


def _least_side(takes: Callable[[int], bool], refused: int) -> int | None:
    """Return the smallest side above ``refused`` from which all tried sizes work; None if none does."""
    doubled = (refused << times for times in range(1, 11) if refused << times <= _LARGEST_SIDE)
    side = next(filter(takes, doubled), None)
    if side is None:
        return None
    refused = side // 2
    while side - refused > 1:
        middle = (side + refused) // 2
        side, refused = (middle, refused) if takes(middle) else (side, middle)
    return side


def _check_labels(name: str, method: Method, config: RunConfig, data: Data) -> None:
    """Raise :class:`UserError` if a method needs labels that are absent or may not be used."""
    if not method.needs_labels or sees_labels(config, data):
        return
    if config.data.labels:
        where = ", in a folder as train/CLASS/ or CLASS/" if data.name == "folder" else ""
        raise UserError(
            f"Method {name!r} learns from labels, and {data.name!r} has none: use method gendd or kl, "
            f"or give labelled images{where}."
        )
    if name == config.method:
        raise UserError(
            f"data.labels: expected true for method {name!r}, which learns from labels, got False."
        )
    raise UserError(
        f"baselines: expected methods without labels (gendd, kl) where data.labels is false, "
        f"got {name!r}. Give --baselines '[kl]' or '[]'."
    )


def _check_cached(config: RunConfig) -> None:
    """Raise :class:`UserError` if the teacher cache is enabled but there is no teacher."""
    views, own = config.training.cache_teacher, config.teacher_training.cache_teacher
    if views and not is_taught(config):
        raise UserError(
            f"training.cache_teacher: expected 0 for method {config.method!r}, which has no teacher, got "
            f"{views}; leave it out."
        )
    if own:
        raise UserError(
            f"teacher_training.cache_teacher: expected 0, as a teacher has none, got {own}; leave it out."
        )


def _check_teacher(config: RunConfig, data: Data) -> None:
    """Raise :class:`UserError` if the teacher would have to be trained but can't be."""
    if not trains_teacher(config):
        return
    if not config.teacher.classifier:
        raise UserError(
            "teacher.classifier: expected true for a teacher that is trained on the labels first, got False. "
            "Give --teacher.weights, or a pretrained one."
        )
    if config.teacher.classes not in (None, data.num_classes):
        raise UserError(
            f"teacher.classes: expected null for a teacher that is trained on the labels first, got "
            f"{config.teacher.classes}. Give --teacher.weights, or leave it out."
        )
