"""``safetensors``: a student's folder as :func:`gendd.load` reads it, with what one readout needs."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

from gendd.deploy import deploy
from gendd.exporting.job import Job, Network
from gendd.modelcard import write_card
from gendd.student import Student, load

SUFFIX = ""
FILES = {"config.json", "model.safetensors", "README.md"}


def reduced(job: Job) -> Student:
    """The student with one readout: without the head for ``linear``."""
    student, linear = job.student, job.readout == "linear"
    kept = Student(
        student.backbone,
        None if linear else student.generator,
        None if linear else student.classifier,
        dataclasses.replace(student.settings, name=job.readout),
        student.info,
        student.linear,
    )
    return kept.eval()


def write(job: Job, path: Path) -> Network:
    """Write the folder, with the model card of a run's student, and load it."""
    student = reduced(job)
    student.save(path)
    # an imported checkpoint has none
    if job.run is not None and (job.run.folder / "student" / "README.md").is_file():
        metrics = copy.deepcopy(job.run.metrics)
        own = metrics["student"]
        own["readouts"] = {name: own["readouts"][name] for name in student.readouts}
        own["readout"] = job.readout
        write_card(path / "README.md", student, metrics)
    backbone = job.student.backbone.net if job.student.backbone.name.startswith("module/") else None
    return deploy(load(path, backbone=copy.deepcopy(backbone)), job.readout, seed=job.seed)
