"""Build the networks of a run, before anything is trained."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import nn

from gendd.config import RunConfig
from gendd.data import Data
from gendd.errors import UserError
from gendd.files import networks_of_runs
from gendd.models import Backbone, Frozen, build_model, build_teacher, teacher_class_names
from gendd.models.weights import network_of
from gendd.run.settings import is_taught, sees_labels


def with_folders(values: dict[str, Any]) -> None:
    """Replace run folders among the names of networks in settings by network and weights, in place.

    Raises:
        UserError: a folder's student can't be used, or there are other weights beside a folder.
    """
    for role, name in networks_of_runs(values).items():
        given, found = values[role], network_of(name)
        if "weights" in found and given.get("weights") not in (None, name):
            raise UserError(
                f"{role}.weights: expected none beside the folder of a run, {role}.name {name!r}, got "
                f"{given['weights']!r}; leave one of them out."
            )
        values[role] = {**given, **found}


def teacher_network(config: RunConfig, data: Data, networks: Mapping[str, nn.Module]) -> Backbone | None:
    """Build the teacher, untrained if it has no weights; None if no method has a teacher."""
    if not is_taught(config):
        return None
    try:
        found = build_teacher(config.teacher, data.num_classes, data.channels, networks.get("teacher"))
    except UserError as error:
        raise UserError(f"Teacher: {error}") from error
    return found.expect((data.image_size, data.image_size))


def with_classes(config: RunConfig, data: Data, teacher: Backbone | Frozen | None) -> Data:
    """Return the data with the teacher's classes if it has no class names of its own."""
    if data.class_names or teacher is None:
        return data
    classes = teacher.num_classes
    names = teacher_class_names(config.teacher, classes)
    return dataclasses.replace(data, class_names=names or [str(number) for number in range(classes)])


def student_network(
    config: RunConfig, data: Data, teacher: Backbone | Frozen | None, given: nn.Module | None
) -> Backbone:
    """Build the student as it is before training; each method trains its own copy."""
    classes = _student_classes(config, data, teacher)
    # if the number of classes is unknown, its classifier is not used as a readout
    backbone = build_model(config.student, classes or 1, data.channels, given, other_classes=True)
    backbone.expect((data.image_size, data.image_size))
    if not backbone.has_classifier:
        raise UserError(
            f"student.feature: expected a module before the classifier of {backbone.name}, got "
            f"{config.student.feature!r}, which none follows; leave it out."
        )
    if classes and backbone.num_classes != classes:
        raise UserError(
            f"Student: expected {backbone.name} with {classes} classes, as the data or, without labels, its "
            f"teacher has, got one with {backbone.num_classes}; rebuild it."
        )
    return backbone if given is None else copy.deepcopy(backbone)


def _student_classes(config: RunConfig, data: Data, teacher: Backbone | Frozen | None) -> int:
    """Return the student's K: the data's if it sees labels, else that of the teacher it learns from."""
    if sees_labels(config, data) or teacher is None or not teacher.has_classifier:
        return data.num_classes
    return teacher.num_classes
