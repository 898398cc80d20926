"""Choose the target a linear probe is fitted to, and what it is evaluated against."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from gendd.config import RunConfig
from gendd.data import Data
from gendd.errors import UserError
from gendd.evaluation.refit import Target, best_targets, targets_of
from gendd.models import Frozen
from gendd.run.teacher import open_teacher
from gendd.student import Student


def lay_out(network: nn.Module, config: RunConfig) -> None:
    """Convert a network to the memory format it is trained in, which is the faster one."""
    if config.training.channels_last is not False:
        network.to(memory_format=torch.channels_last)


@dataclass
class AskedTeacher:
    """The run's teacher, loaded on first use."""

    config: RunConfig
    data: Data
    device: torch.device
    given: nn.Module | None
    found: Frozen | None = None
    missing: UserError | None = None

    def __call__(self) -> Frozen | None:
        """Return the teacher; None if it is ``missing``."""
        if self.found is None and self.missing is None:
            try:
                self.found = open_teacher(self.config, self.data, self.device, self.given)
                lay_out(self.found, self.config)
            except UserError as error:
                self.missing = error
        return self.found


def choose_targets(
    target: Target | None,
    config: RunConfig,
    data: Data,
    student: Student,
    ask: AskedTeacher,
    allow_labels: bool,
) -> tuple[list[Target], bool]:
    """Choose the targets the readout is fitted to, and whether it may use labels.

    Raises:
        UserError: the target is not available, or may not be used.
    """
    if target == "labels":
        _check_labels(config, data, student, allow_labels)
        return [target], True
    seen = config.data.labels and data.labelled and student.backbone.num_classes == data.num_classes
    if seen:
        _check_classes(data, student)
    # without labels the fit is also evaluated against the teacher
    teacher = ask() if target in (None, "teacher") or not seen else None
    there = targets_of(student, teacher, seen)
    if target is None and there:
        return best_targets(there), seen
    if target is None or target not in there:
        raise _unavailable(target, there, data, student, ask)
    return [target], seen


def _check_labels(config: RunConfig, data: Data, student: Student, allowed: bool) -> None:
    """Raise :class:`UserError` if there are no usable labels of the student's classes."""
    if not data.labelled:
        raise UserError(
            f"--target: expected teacher or mean, as the training images of {data.name!r} have no labels, "
            "got 'labels'."
        )
    if not (config.data.labels or allowed):
        raise UserError(
            "--target: expected teacher or mean for a run that saw no labels (data.labels false), got "
            "'labels'; give --allow-labels too where its linear readout may see them, and say so with its "
            "figures."
        )
    if student.backbone.num_classes != data.num_classes:
        raise UserError(
            f"--target: expected teacher or mean, as the student's classifier is of "
            f"{student.backbone.num_classes} classes and the labels are of {data.num_classes}, got 'labels'."
        )
    _check_classes(data, student)


def _check_classes(data: Data, student: Student) -> None:
    """Raise :class:`UserError` if the labels no longer mean the same classes as in training."""
    then, now = list(student.info.get("class_names") or data.class_names), data.class_names
    if then != now:
        first = next(
            index for index in range(len(now) + 1) if then[index : index + 1] != now[index : index + 1]
        )
        raise UserError(
            f"Images of {data.name!r}: expected the {len(then)} classes the student was trained on, got "
            f"{len(now)} that differ from number {first} on; restore the images."
        )


def _unavailable(
    target: Target | None, there: list[Target], data: Data, student: Student, ask: AskedTeacher
) -> UserError:
    classes = student.backbone.num_classes
    if target == "mean":
        why = f"nothing that this student generates is read as one of {classes} classes"
    elif ask.missing is not None:
        why = str(ask.missing).rstrip(".")
    else:
        assert ask.found is not None
        why = (
            f"the teacher has {ask.found.num_classes or 'no'} classes and the student's classifier {classes}"
        )
    if there:
        return UserError(f"--target: expected {' or '.join(there)}, got {target!r}: {why}.")
    labels = ""
    if data.labelled and classes == data.num_classes:
        labels = "; --target labels with --allow-labels fits to the labels, which the run did not see"
    return UserError(f"The run has nothing to fit a linear readout to: {why}{labels}.")
