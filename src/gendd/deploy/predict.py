"""Classify image files with a saved student."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gendd.config import ReadoutName
from gendd.data.decoding import decode, frame, least_to_frame
from gendd.data.readers import image_files
from gendd.deploy.hub import load
from gendd.errors import UserError
from gendd.files import read_bytes
from gendd.messages import followed
from gendd.student.uncertainty import PredictiveDistribution, check_samples


@dataclass
class Prediction:
    """Prediction for an image.

    Attributes:
        path: Path of the image.
        classes: Class names, the most likely first; empty for a file that is not an image.
        probabilities: Probabilities of these classes.
        error: What is wrong with the file; None for an image.
        uncertainty: If requested: the number of generated ``samples``, and of these ``total``, ``aleatoric``
            and ``mutual_information`` in nats, and ``spread``.
    """

    path: str
    classes: list[str]
    probabilities: list[float]
    error: str | None = None
    uncertainty: dict[str, float] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return path, and either the error or classes and probabilities, with any uncertainty."""
        if self.error is not None:
            return {"path": self.path, "error": self.error}
        said = {"path": self.path, "classes": self.classes, "probabilities": self.probabilities}
        return said if self.uncertainty is None else {**said, "uncertainty": self.uncertainty}


@torch.no_grad()
def predict(
    path: str | Path,
    images: list[str],
    top: int = 5,
    readout: ReadoutName | None = None,
    uncertainty: int = 0,
) -> list[Prediction]:
    """Predict the most likely classes of image files with a saved student.

    Args:
        path: A run folder, a student's folder, or the id of a Hugging Face repository.
        images: Image files, and directories for all images in them.
        top: Classes per image.
        readout: The readout; the student's chosen one by default.
        uncertainty: Features to generate per image to estimate the uncertainty; 0 for no estimate.

    Returns:
        One prediction per file; files that are not images, and directories without any, have an ``error``.

    Raises:
        UserError: no student there, or it lacks that readout or can't estimate the uncertainty.
    """
    student = load(path)
    if readout is not None:
        student.readout = readout
    size = int(student.info.get("image_size") or 224)
    framing = float(student.info.get("framing") or 1.0)
    if not student.readouts:
        raise UserError(
            f"Student {str(path)!r}: expected one that classifies, got one that gives features only; "
            "use its embed(images) from Python."
        )
    if uncertainty != 0:
        check_samples(uncertainty, student.generator is not None, student.classifier is not None)
    names = student.class_names()

    def one(file: str) -> Prediction:
        try:
            content = _content(file)
            least = least_to_frame(size, framing)
            pixels = frame(decode(content, file, student.backbone.in_channels, least), size, framing)
        except UserError as error:
            return Prediction(file, [], [], str(error))
        # a new generator per image, so that its prediction does not depend on the others
        generator = torch.Generator().manual_seed(0)
        said = student.predict(pixels[None].float() / 255, uncertainty, generator)
        best = said.probabilities[0].topk(min(top, len(names)))
        classes = [names[index] for index in best.indices.tolist()]
        unsure = {"samples": uncertainty, **_entropies(said)} if uncertainty else None
        return Prediction(file, classes, best.values.tolist(), uncertainty=unsure)

    files = [file for given in images for file in _images_at(given)]
    return [one(file) for file in followed(files, len(files), "predicting", unit="images", bar=True)]


def _entropies(said: PredictiveDistribution) -> dict[str, float]:
    """Return the uncertainty of the first image."""
    names = ("total", "aleatoric", "mutual_information", "spread")
    return {name: float(getattr(said, name)[0]) for name in names}


def _images_at(path: str) -> list[str]:
    """Return the images in a directory, or the path itself if it is a file or a directory without images."""
    return (image_files(Path(path)) if os.path.isdir(path) else []) or [path]


def _content(file: str) -> bytes:
    try:
        return read_bytes(file)
    except IsADirectoryError as error:
        raise UserError(f"Expected images in {file!r}, found none; give another directory.") from error
    except OSError as error:
        raise UserError(f"Image {file!r}: expected a readable file; {error.strerror}.") from error
