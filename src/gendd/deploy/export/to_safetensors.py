"""``safetensors``: a student folder for :func:`gendd.load`, with what one readout needs."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

from gendd.deploy import deploy
from gendd.deploy.export.formats import Format
from gendd.deploy.export.source import Network, Source
from gendd.deploy.hub import load
from gendd.report.model_card import write_card
from gendd.student import Student
from gendd.student.folders import RunFolder


def reduced(source: Source) -> Student:
    """Return the student with one readout: without the head for ``linear``."""
    student, linear = source.student, source.readout == "linear"
    kept = Student(
        student.backbone,
        None if linear else student.generator,
        None if linear else student.classifier,
        dataclasses.replace(student.settings, name=source.readout),
        student.info,
        student.linear,
    )
    return kept.eval()


def _figures(run: RunFolder, student: Student, resampled: bool) -> dict[str, Any]:
    """Return the run's metrics that hold for the exported student, given its readouts and sampler."""
    metrics = run.metrics
    kept = set(student.readouts) - ({"sample"} if resampled else set())
    own = metrics["student"]
    own["readouts"] = {name: each for name, each in own["readouts"].items() if name in kept}
    own["readout"] = student.readout
    return metrics


def write(source: Source, path: Path) -> Network:
    """Write the folder, with the model card of a run's student, and load it."""
    student = reduced(source)
    student.save(path)
    # an imported checkpoint has no card
    if source.run is not None and (source.run.folder / "student" / "README.md").is_file():
        write_card(path / "README.md", student, _figures(source.run, student, source.resampled))
    backbone = source.student.backbone.net if source.student.backbone.name.startswith("module/") else None
    return deploy(load(path, backbone=copy.deepcopy(backbone)), source.readout, seed=source.seed)


FORMAT = Format("safetensors", "", write)
