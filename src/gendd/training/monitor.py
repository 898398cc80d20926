"""The validation metric that chooses the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping

from gendd.config import MonitorName, ReadoutChoice, ReadoutName
from gendd.errors import UserError
from gendd.methods import Method


def readout_classes(method: Method) -> dict[ReadoutName, int]:
    """K of each readout of a method's student that costs one pass; the data's or the teacher's classes."""
    student = method.student()
    return {name: student.num_classes(name) for name in student.readouts if name != "sample"}


def choose_monitor(
    method: Method, monitor: MonitorName, labels: bool, num_classes: int, readout: ReadoutChoice = "mean"
) -> str | None:
    """The validation metric that checkpoints of a method are chosen by; None where nothing judges it.

    Args:
        method: What is trained.
        monitor: ``training.monitor``.
        labels: Whether the validation images have labels that training may see.
        num_classes: K of the data's labels.
        readout: The readout in use; for ``sample`` it is ``mean``, which costs one pass, and for ``auto``
            the better of those that do.

    Returns:
        ``val/READOUT`` (top-1 of it), ``val/best`` (of the better of two), ``val/agreement`` or
        ``val/diffusion``; None for a method without a teacher where there are no labels.

    Raises:
        UserError: the method can't be judged by what ``monitor`` names, or by anything.
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
    # a baseline beside the method is none the worse for what it lacks
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
    """Of one-pass readouts those in use: ``mean`` for ``sample``, both for ``auto``, or what there is.

    Those of ``auto`` have the same classes.

    Args:
        classes: K of each readout there is.
        readout: The one that is asked for.
        seen: K of the labels that training sees: a readout of other classes gives way to one of these.
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
    """Whether a logged metric is a share in [0, 1], of which more is better, and no loss."""
    return name.startswith("val/") and name != "val/diffusion"
