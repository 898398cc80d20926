"""``gendd.distill``: start a run from Python."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from torch import nn

from gendd.config import DataConfig, ModelConfig, RunConfig, from_dict, to_dict
from gendd.models.registry import describe_module
from gendd.models.weights import network_of
from gendd.run.experiment import execute
from gendd.run.finished import Run
from gendd.run.networks import with_folders


def distill(
    config: RunConfig | None = None,
    *,
    teacher: str | ModelConfig | nn.Module | None = None,
    student: str | ModelConfig | nn.Module | None = None,
    data: str | DataConfig | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    fresh_teacher: bool = False,
    **settings: Any,
) -> Run:
    """Distil a teacher into a student.

    Args:
        config: The whole configuration; the other arguments replace parts of it.
        teacher: Name or configuration of the teacher, a run folder whose student becomes the teacher, or a
            trained network: a :class:`gendd.Backbone` (see :func:`gendd.wrap`) or any module. It is frozen in
            place.
        student: Name, configuration or run folder of the student, or a network, a copy of which is trained
            from its current weights; ``gendd.load(run, backbone=module)`` loads the distilled student.
        data: Name or configuration of the images.
        out: Output folder.
        overwrite: Replace a run in that folder. Only files that a run writes are deleted, and nothing at all
            if the folder holds any other files.
        resume: Resume the run in that folder.
        fresh_teacher: Train a teacher without weights again even if it is cached.
        settings: Any other section or key of :class:`RunConfig`; sections may be dictionaries.

    Returns:
        The finished run.

    Raises:
        UserError: an argument can't be used.
    """
    values = to_dict(config or RunConfig())
    given = {"teacher": teacher, "student": student, "data": data, "out": out, **settings}
    networks: dict[str, nn.Module] = {}
    for key, value in given.items():
        if value is None:
            continue
        if key in ("teacher", "student") and isinstance(value, nn.Module):
            networks[key] = value
            values[key] = to_dict(describe_module(from_dict(values[key], ModelConfig), value))
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            values[key] = to_dict(value)
        elif isinstance(value, dict) and isinstance(values.get(key, {}), dict):
            values[key] = {**values.get(key, {}), **value}
        elif key in ("teacher", "student"):
            values[key] = {**values[key], **network_of(str(value))}
        elif key == "data":
            values[key] = {**values[key], "name": str(value)}
        else:
            values[key] = str(value) if key == "out" else value
    with_folders(values)
    return execute(
        from_dict(values, RunConfig),
        overwrite=overwrite,
        resume=resume,
        networks=networks,
        fresh_teacher=fresh_teacher,
    )
