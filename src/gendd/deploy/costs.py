"""Costs of a deployed student: parameters, multiply-adds, latency."""

from __future__ import annotations

import statistics
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gendd.config import ReadoutName
from gendd.data import ImageSet, eval_loader
from gendd.deploy.folded_mean import FoldedMean
from gendd.models import count_parameters, memory_format, multiply_adds, timings
from gendd.student import Student

OutputName = ReadoutName | Literal["feature", "generated"]
LATENCY_BATCH = 32


class _Reading(nn.Module):
    """Images (B, C, H, W) -> an output of a deployed student."""

    def __init__(self, student: Student, output: OutputName) -> None:
        super().__init__()
        self.student, self.name = student, output
        self.mean: FoldedMean | None = None
        if output == "mean" and student.generator is not None and student.classifier is not None:
            self.mean = FoldedMean(student.generator, student.classifier).eval()

    def forward(self, images: Tensor) -> Tensor:
        if self.name == "feature":
            return self.student.features(images)
        if self.name == "generated":
            return self.student.embed(images)
        features = self.student.features(images)
        logits: Tensor = (
            self.student.logits(features, self.name) if self.mean is None else self.mean(features)
        )
        return logits


def latency_images(images: ImageSet, device: torch.device | str) -> Tensor:
    """Return the first images of a set, at most :data:`LATENCY_BATCH`, to measure costs with."""
    first = next(iter(eval_loader(images, min(LATENCY_BATCH, len(images)))))
    return first.to(device).images


def readout_costs(student: Student, output: OutputName, images: Tensor) -> dict[str, Any]:
    """Measure parameters in use, multiply-adds and milliseconds per image (median, quartiles) of an output.

    Args:
        student: In eval mode.
        output: One of its readouts, its own ``feature``, or the ``generated`` teacher feature.
        images: (B, C, H, W); the latency is that of this batch divided by B, in the memory format of the
            student's weights.
    """
    reading = _Reading(student, output)
    images = images.contiguous(memory_format=memory_format(student))
    parameters = count_parameters(student.backbone)
    if output != "linear" and student.backbone.has_classifier:
        parameters -= count_parameters(student.backbone.classifier)
    if student.generator is not None:
        if output in ("sample", "generated"):
            parameters += count_parameters(student.generator)
        if output == "sample" and student.classifier is not None:
            parameters += count_parameters(student.classifier)
        if reading.mean is not None:
            parameters += count_parameters(reading.mean)
    sampled = output == "sample"
    seconds = timings(reading, images, warmup=1 if sampled else 3, repeats=3 if sampled else 10)
    low, _, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return {
        "parameters": parameters,
        "multiply_adds": multiply_adds(reading, images[:1]),
        "latency_ms": round(1000 * statistics.median(seconds), 4),
        "latency_quartiles_ms": [round(1000 * low, 4), round(1000 * high, 4)],
    }
