"""Evaluate a finished run again, or a network without a run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from gendd.config import DataConfig, ModelConfig, ReadoutName
from gendd.data import load_data
from gendd.errors import UserError
from gendd.evaluation import evaluate
from gendd.evaluation.embedding import embedding_scores
from gendd.evaluation.long_tail import shots_of
from gendd.models import build_teacher
from gendd.models.registry import check_name
from gendd.run.checks import check_class_names, check_place, check_size
from gendd.run.networks import with_classes
from gendd.run.output import warn_of_other_images
from gendd.run.settings import is_taught
from gendd.run.teacher import open_teacher
from gendd.student import Student
from gendd.student.folders import RunFolder
from gendd.training import join, resolve_device


def evaluate_run(
    path: str | Path, readout: ReadoutName | None = None, progress: bool = False
) -> dict[str, dict[str, Any]]:
    """Score a run's student on its test images again, by readout, using all processes of the launch.

    Without labels, or if a readout does not predict the data's classes, the teacher is loaded to measure
    agreement (none is trained). For a student without readouts its features are scored as in
    :func:`gendd.evaluation.embedding.embedding_scores`.

    Args:
        path: The run folder.
        readout: One readout; all by default.
        progress: Show a progress bar.

    Raises:
        UserError: no finished run there, it does not have that readout, or its images or the teacher needed
            for scoring are no longer available.
    """
    run = RunFolder.open(path)
    config = run.config
    device = resolve_device(config.training.device)
    # all processes that were launched
    join(dataclasses.replace(config.training, devices="auto", sync_batchnorm=False), device)
    student = run.student(device)
    if readout is not None:
        student.readout = readout
    if "imported" in run.metrics["run"] and "data" not in student.info:
        raise UserError(
            f"The run at {str(path)!r} was imported without images to score it on; import it again with "
            "--data.name, --data.path and another --out."
        )
    # streamed, as the training images only determine size and channels and need no decoding
    trained = "imported" not in run.metrics["run"]
    streamed = dataclasses.replace(config.data, in_memory=False)
    data = load_data(streamed, config.evaluation.images, trained=trained)
    warn_of_other_images(run.folder, data)
    names = student.readouts if readout is None else (readout,)
    teacher = None
    unlabelled = data.test.labels is None
    others = unlabelled or any(student.num_classes(name) != data.num_classes for name in names)
    if is_taught(config) and (others or not names):
        teacher = open_teacher(config, data, device)
        data = with_classes(config, data, teacher)
    if teacher is not None and not names:
        workers = config.data.workers
        return embedding_scores(
            student, teacher, data.train, data.test, data.num_classes, device=device, workers=workers
        )
    scores = evaluate(
        student,
        data.test,
        readouts=names,
        teacher=teacher,
        num_classes=data.num_classes,
        shots=shots_of(data, config.data),
        device=device,
        seed=config.seed,
        workers=config.data.workers,
        progress=progress,
    )
    return {name: score.as_dict() for name, score in scores.items()}


def evaluate_network(
    network: ModelConfig, data: DataConfig, scored: int | None = None, progress: bool = False
) -> dict[str, Any]:
    """Return top-1, top-5, negative log-likelihood and calibration error of a trained network, without a run.

    Args:
        network: Configured like a run's teacher, with the classes of its weights.
        data: The data set; its test images are scored.
        scored: Maximum number of test images, evenly spread; None: all.
        progress: Show a progress bar.

    Raises:
        UserError: the network is untrained or its classes are not the data's, or as raised by
            :func:`gendd.models.build_teacher` and :func:`gendd.data.load_data`.
    """
    check_name(network.name)
    check_place(data)
    if network.weights is None and not network.pretrained:
        raise UserError(
            f"--network: expected {network.name} with weights, got none; give --weights FILE, or "
            "--network.pretrained true."
        )
    images = load_data(dataclasses.replace(data, in_memory=False), scored, trained=False)
    if images.test.labels is None:
        raise UserError(
            f"Images of {data.name!r}: expected labelled test images, got unlabelled ones; set "
            "data.test_path."
        )
    backbone = build_teacher(network, images.num_classes, images.channels)
    if backbone.num_classes != images.num_classes:
        raise UserError(
            f"--network: expected {network.name} of the data's {images.num_classes} classes, got one of "
            f"{backbone.num_classes}; give weights trained on those classes."
        )
    check_class_names(network, images, backbone)
    check_size(backbone, images, "network")
    device = resolve_device("auto")
    scores = evaluate(
        Student(backbone.expect((images.image_size, images.image_size))).to(device).eval(),
        images.test,
        num_classes=images.num_classes,
        shots=shots_of(images, data),
        calibrated=True,
        device=device,
        workers=data.workers,
        progress=progress,
    )
    return scores["linear"].as_dict()
