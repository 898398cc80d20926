"""The data a report is built from.

Shapes: n images · D teacher feature width · K classes · H, W image height and width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gendd.evaluation import Answers

Array = NDArray[Any]
# logged rows in chronological order
Log = list[dict[str, float]]


@dataclass
class Example:
    """One test image and the student's prediction.

    Args:
        image: (H, W) or (H, W, 3), uint8.
        true: Name of its class; None without labels.
        predicted: Name of the class predicted by the student.
        confidence: The student's probability of that class, in [0, 1].
        teacher: Name of the class predicted by the teacher, if available.
    """

    image: Array
    true: str | None
    predicted: str
    confidence: float
    teacher: str | None = None


@dataclass
class ReportData:
    """Everything the report shows.

    Args:
        title: Name of the run.
        metrics: The content of ``metrics.json``; accuracies in percent, latencies in ms per image.
        curves: Per method, or ``teacher``, its log in chronological order; a row holds any of ``step``,
            ``epoch`` (from 0), ``train/*`` and ``val/top1`` (percent), or ``val/agreement`` (percent) or
            ``val/diffusion`` if accuracy is not available.
        confusion: (K, K) counts, rows true classes; None without labels.
        class_names: K names.
        teacher_features: (n, D); None if there are none to show.
        generated_features: (n, D), of the same images; None if the student generates no features.
        feature_labels: (n,) class indices; None without labels.
        examples: Test images; the first 24 are shown.
        answers: Predictions of each row of the table on the test images, by method or ``teacher``.
        picture: Returns a test image (H, W) or (H, W, 3), uint8, by index; None if not available.
        config_yaml: The resolved config.
        folder: The run folder as passed to commands; "" to show no commands.
    """

    title: str
    metrics: dict[str, Any]
    curves: dict[str, Log] = field(default_factory=dict)
    confusion: Tensor | Array | None = None
    class_names: list[str] = field(default_factory=list)
    teacher_features: Tensor | Array | None = None
    generated_features: Tensor | Array | None = None
    feature_labels: Tensor | Array | None = None
    examples: list[Example] = field(default_factory=list)
    answers: dict[str, Answers] = field(default_factory=dict)
    picture: Callable[[int], Array] | None = None
    config_yaml: str = ""
    folder: str = ""


def array(values: Tensor | Array) -> Array:
    """Convert values on any device to NumPy; tensors to float."""
    return values.detach().cpu().float().numpy() if isinstance(values, Tensor) else np.asarray(values)
