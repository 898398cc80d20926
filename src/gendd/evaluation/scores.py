"""Scores of a student's readouts, and the choice between them.

Shapes: B images · K classes · C, H, W of the images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from gendd.config import ReadoutName
from gendd.data import ImageSet, eval_loader
from gendd.data.draws import derive_seed
from gendd.errors import UserError
from gendd.evaluation.calibration import Calibration, calibration
from gendd.evaluation.long_tail import Shots
from gendd.messages import followed
from gendd.models import Frozen
from gendd.processes import in_turn, rank, total, world_size
from gendd.student import Student

# by rising cost: from nothing beyond the student to many passes of the head
COSTS_RISE: tuple[ReadoutName, ...] = ("linear", "mean", "sample")
BATCH_SIZE = 256


@dataclass(frozen=True)
class Answers:
    """Predictions for every scored image, in order.

    Attributes:
        predicted: (N,) int64, the top class.
        confidence: (N,) float32, its probability.
        labels: (N,) int64; None without labels, or if the classes are not those of the labels.
    """

    predicted: Tensor
    confidence: Tensor
    labels: Tensor | None

    @property
    def right(self) -> Tensor | None:
        """Whether each prediction is right, bool (N,); None without labels."""
        return None if self.labels is None else self.predicted == self.labels


@dataclass
class Scores:
    """Scores of one readout on a set.

    Attributes:
        top1: Top-1 accuracy in percent; None without labels, or if the readout's classes are the teacher's
            and not those of the labels.
        top5: Top-5 accuracy in percent; None likewise, or with K <= 5.
        agreement: Percent of images with the teacher's top class; None without a teacher, or if its classes
            differ from the readout's.
        confusion: (K, K) counts, one row per true class; None like ``top1``.
        images: Number of scored images; corrupt ones are left out.
        groups: Top-1 by number of training images of a class; None if not requested, or like ``top1``.
        calibration: Calibration of its probabilities; None if not requested, or like ``top1``.
        answers: Prediction for every image; None if not requested.
    """

    top1: float | None
    top5: float | None
    agreement: float | None
    confusion: Tensor | None
    images: int = 0
    groups: dict[str, dict[str, Any]] | None = None
    calibration: Calibration | None = None
    answers: Answers | None = None

    def as_dict(self) -> dict[str, Any]:
        """The percentages, rounded to two decimals, and ``groups``, ``nll`` and ``ece`` if available."""
        values = {"top1": self.top1, "top5": self.top5, "agreement": self.agreement}
        told: dict[str, Any] = {
            name: None if value is None else round(value, 2) for name, value in values.items()
        }
        if self.calibration is not None:
            told |= {"nll": round(self.calibration.nll, 4), "ece": round(self.calibration.ece, 4)}
        return told if self.groups is None else {**told, "groups": self.groups}


@torch.no_grad()
def evaluate(
    student: Student,
    images: ImageSet,
    *,
    readouts: tuple[ReadoutName, ...] | None = None,
    teacher: Frozen | None = None,
    told: dict[int, Tensor] | None = None,
    num_classes: int | None = None,
    shots: Shots | None = None,
    calibrated: bool = False,
    answered: bool = False,
    device: torch.device | str = "cpu",
    seed: int = 0,
    workers: int | None = None,
    progress: bool = False,
) -> dict[ReadoutName, Scores]:
    """Score a student's readouts; its feature is computed once for all of them.

    Several processes share the images, and all of them get the scores over all images.

    Args:
        student: In eval mode, on ``device``.
        images: The set.
        readouts: Readouts to score; by default all that the student has.
        teacher: Teacher to compute the agreement with, on ``device``.
        told: The teacher's predicted classes by batch, from an earlier call; missing batches are added.
        num_classes: K of the labels; None: that of every readout.
        shots: Also return top-1 for these groups of classes.
        calibrated: Also return the calibration.
        answered: Also return the prediction for every image.
        device: Device to compute on.
        seed: Seed of the noise of readout ``sample``.
        workers: Loader processes of a set that streams.
        progress: Show a progress bar.
    """
    names = readouts or student.readouts
    if not names:
        return {}
    classes = {name: student.num_classes(name) for name in names}
    meters: dict[str, dict[str, Any]] = {
        name: _meters(classes[name], device) if num_classes in (None, classes[name]) else {} for name in names
    }
    agreeing = [name for name in names if teacher is not None and teacher.num_classes == classes[name]]
    counted = torch.zeros(1 + len(agreeing), dtype=torch.int64, device=device)
    generator = torch.Generator(device)
    labelled = images.labels is not None
    # probabilities of each readout, and the labels
    said_by: dict[str, list[Tensor]] = {
        name: [] for name in names if calibrated and labelled and meters[name]
    }
    # the top class of each image, and its probability
    answers: dict[str, list[Tensor]] = {name: [] for name in names if answered}
    true: list[Tensor] = []
    told = {} if told is None else told
    part = rank(), world_size()
    loader = eval_loader(images, BATCH_SIZE, workers, *part)
    for number, batch in enumerate(followed(loader, len(loader), "scoring", bar=progress and part[0] == 0)):
        # the noise of a batch depends only on its number in the set
        generator.manual_seed(derive_seed(seed, "evaluation", number * part[1] + part[0]))
        batch = batch.to(device)
        counted[0] += len(batch.images)
        features = student.features(batch.images)
        said = told.get(number)
        # images that have become unreadable are left out of their batch
        if teacher is not None and agreeing and (said is None or len(said) != len(batch.images)):
            said = told[number] = teacher(batch.images)[1].argmax(-1)
        for name in names:
            logits = student.logits(features, name, generator)
            if said is not None and name in agreeing:
                counted[1 + agreeing.index(name)] += (logits.argmax(-1) == said).sum()
            if batch.labels is not None:
                for meter in meters[name].values():
                    meter.update(logits, batch.labels)
            if name in said_by:
                said_by[name].append(logits.float().softmax(-1).cpu())
            if answered:
                confidence, first = logits.float().softmax(-1).max(-1)
                answers[name].append(torch.stack([first.double(), confidence.double()]).T.cpu())
        if (said_by or answered) and batch.labels is not None:
            true.append(batch.labels.cpu())
    seen, *same = total(counted).tolist()
    agreed = dict(zip(agreeing, same, strict=True))
    said_by, true = {name: in_turn(rows) for name, rows in said_by.items()}, in_turn(true)
    answers = {name: in_turn(rows) for name, rows in answers.items()}
    scores: dict[ReadoutName, Scores] = {}
    for name in names:
        meter = meters[name] if labelled else {}
        confusion = meter["confusion"].compute().cpu() if "confusion" in meter else None
        scores[name] = Scores(
            100 * float(meter["top1"].compute()) if "top1" in meter else None,
            100 * float(meter["top5"].compute()) if "top5" in meter else None,
            100 * agreed[name] / seen if name in agreed else None,
            confusion,
            seen,
            None if shots is None or confusion is None else shots.accuracy(confusion),
            calibration(torch.cat(said_by[name]), torch.cat(true)) if name in said_by else None,
            _answers(answers[name], true if meter else []) if answered else None,
        )
    return scores


def _answers(said: list[Tensor], true: list[Tensor]) -> Answers:
    """Combine batches (n, 2) of top classes and their probabilities, and of labels (n,)."""
    first, confidence = torch.cat(said).unbind(1)
    return Answers(first.long(), confidence.float(), torch.cat(true) if true else None)


@dataclass(frozen=True)
class ReadoutPick:
    """Result of choosing a readout for ``readout.name: auto``.

    Attributes:
        name: The cheapest readout within the tolerance of the best.
        metric: The metric compared, ``top1`` or ``agreement``.
        percent: Value for every readout in percent, the cheapest first.
    """

    name: ReadoutName
    metric: Literal["top1", "agreement"]
    percent: dict[ReadoutName, float]

    def __str__(self) -> str:
        judged = "top-1" if self.metric == "top1" else "agreement with the teacher"
        shown = ", ".join(f"{name} {value:.2f} %" for name, value in self.percent.items())
        return (
            f"readout {self.name}, the cheapest one close to the best; {judged} on validation images: {shown}"
        )


def pick_readout(
    scores: Mapping[ReadoutName, Scores], metric: Literal["top1", "agreement"], tolerance: float = 0.1
) -> ReadoutPick:
    """Pick the cheapest readout within ``tolerance`` of the best.

    Args:
        scores: Scores of one student's readouts on images not seen in training; readouts without the metric
            are ignored.
        metric: Metric to compare.
        tolerance: In percentage points.

    Raises:
        UserError: no readout has the metric.
    """
    found = {name: getattr(scores[name], metric) for name in COSTS_RISE if name in scores}
    percent: dict[ReadoutName, float] = {
        name: round(value, 2) for name, value in found.items() if value is not None
    }
    if not percent:
        raise UserError(
            "readout.name: expected linear, mean or sample where no readout can be judged on validation "
            "images, got 'auto'."
        )
    # from rounded values, so that the printed numbers are those compared
    least = round(max(percent.values()) - tolerance, 2)
    name = next(each for each, value in percent.items() if value >= least)
    return ReadoutPick(name, metric, percent)


def _meters(classes: int, device: torch.device | str) -> dict[str, Any]:
    # slow to import
    from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

    made: dict[str, Any] = {
        "top1": MulticlassAccuracy(classes, average="micro"),
        "confusion": MulticlassConfusionMatrix(classes),
    }
    if classes > 5:
        made["top5"] = MulticlassAccuracy(classes, top_k=5, average="micro")
    return {name: meter.to(device) for name, meter in made.items()}
