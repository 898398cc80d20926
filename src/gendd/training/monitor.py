"""The validation metric that chooses the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping

from gendd.config import MonitorName, ReadoutChoice, ReadoutName
from gendd.errors import UserError
from gendd.methods import Method


def readout_classes(method: Method) -> dict[ReadoutName, int]:
    """Number of classes (the data's or the teacher's) of each one-pass readout of a method's student."""
    student = method.student()
    return {name: student.num_classes(name) for name in student.readouts if name != "sample"}


def choose_monitor(
    method: Method, monitor: MonitorName, labels: bool, num_classes: int, readout: ReadoutChoice = "mean"
) -> str | None:
    """Choose the validation metric that selects a method's checkpoint; None if there is none.

    Args:
        method: The method to train.
        monitor: ``training.monitor``.
        labels: Whether the validation images have labels that training may see.
        num_classes: K of the data's labels.
        readout: The readout in use; ``sample`` is judged by ``mean``, which costs one pass, and ``auto`` by
            the better of the one-pass readouts.

    Returns:
        ``val/READOUT`` (its top-1), ``val/best`` (of the better of two), ``val/agreement`` or
        ``val/diffusion``; None for a method without a teacher if there are no labels.

    Raises:
        UserError: the method does not have the metric that ``monitor`` names, or has none at all.
    """
    classes = readout_classes(method)
    chosen = chosen_readouts(classes, readout, num_classes if labels else None)
    found: dict[str, str] = {}
    if labels and chosen and classes[chosen[0]] == num_classes:
        found["top1"] = f"val/{chosen[0]}" if len(chosen) == 1 else "val/best"
    if chosen and classes[chosen[0]] == teacher_classes(method):
        found["agreement"] = "val/agreement"
    if method.has_diffusion:
        found["diffusion"] = "val/diffusion"
    if not found and not labels and method.teacher is None:
        return None
    if not found:
        raise UserError(
            "Validation: expected a readout of the data's or the teacher's classes to judge the student by, "
            "got none; set data.validation 0 or give another teacher."
        )
    # baselines may lack the metric chosen for the method
    lacking = (monitor == "diffusion" and not method.has_diffusion) or (
        monitor == "agreement" and method.teacher is None
    )
    if monitor != "auto" and not lacking and monitor not in found:
        raise UserError(
            f"training.monitor: expected {' or '.join(found)} for this teacher, student and labels, "
            f"got {monitor!r}."
        )
    return found.get(monitor) or next(iter(found.values()))


def chosen_readouts(
    classes: Mapping[ReadoutName, int], readout: ReadoutChoice, seen: int | None = None
) -> list[ReadoutName]:
    """One-pass readouts in use: ``mean`` for ``sample``, both for ``auto``, or those available.

    The readouts of ``auto`` have the same classes.

    Args:
        classes: K of each available readout.
        readout: The requested readout.
        seen: K of the labels that training sees; readouts with these classes are preferred.
    """
    own = [name for name, count in classes.items() if count == seen]
    there = own or list(classes)
    if readout == "auto" and len({classes[name] for name in there}) == 1:
        return there
    if "mean" in there and (readout != "linear" or "linear" not in there):
        return ["mean"]
    return ["linear"] if "linear" in there else []


def teacher_classes(method: Method) -> int:
    return 0 if method.teacher is None else method.teacher.num_classes


def is_share(name: str) -> bool:
    """Whether a logged metric is a fraction in [0, 1], higher being better, rather than a loss."""
    return name.startswith("val/") and name != "val/diffusion"
