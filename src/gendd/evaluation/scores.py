"""What a student is worth and what it costs.

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

# from none beyond the student's own to many passes of the head
COSTS_RISE: tuple[ReadoutName, ...] = ("linear", "mean", "sample")
BATCH_SIZE = 256


@dataclass(frozen=True)
class Answers:
    """What was said of every image that was scored, in order.

    Attributes:
        predicted: (N,) int64, the first class.
        confidence: (N,) float32, its probability.
        labels: (N,) int64; None without, or where the classes are not those of the labels.
    """

    predicted: Tensor
    confidence: Tensor
    labels: Tensor | None

    @property
    def right(self) -> Tensor | None:
        """Whether each answer is right, bool (N,)."""
        return None if self.labels is None else self.predicted == self.labels


@dataclass
class Scores:
    """How one readout does on a set.

    Attributes:
        top1: Percent of images whose first class is right; None without labels, or where the readout's
            classes are the teacher's and not those of the labels.
        top5: Percent whose first five classes hold the right one; None likewise, or with K <= 5.
        agreement: Percent of images with the teacher's first class; None without a teacher, or with one of
            other classes than the readout's.
        confusion: (K, K) counts, a row a true class; None as ``top1``.
        images: How many were scored; corrupt ones are left out.
        groups: Top-1 by how many training images a class has; None where that
            was not asked for, and as ``top1``.
        calibration: Of its probabilities; None where that was not asked for, and as ``top1``.
        answers: Image by image; None where that was not asked for.
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
        """The percentages, rounded to two decimals; ``groups``, ``nll`` and ``ece`` where there are any."""
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
    """Scores of a student's readouts; its feature is computed once for all of them.

    Several processes share the images, and all of them get the scores of all.

    Args:
        student: In eval mode, on ``device``.
        images: The set.
        readouts: Which; all the student has by default.
        teacher: To agree with, on ``device``.
        told: The teacher's classes of these images by batch, of an earlier call; what is missing is added.
        num_classes: K of the labels; None: that of every readout.
        shots: Tell top-1 of these groups of classes too.
        calibrated: Tell the calibration too.
        answered: Tell what was said of every image too.
        device: Where to compute.
        seed: Of the noise of readout ``sample``.
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
    # the first class of each image, and its probability
    answers: dict[str, list[Tensor]] = {name: [] for name in names if answered}
    true: list[Tensor] = []
    told = {} if told is None else told
    part = rank(), world_size()
    loader = eval_loader(images, BATCH_SIZE, workers, *part)
    for number, batch in enumerate(followed(loader, len(loader), "scoring", bar=progress and part[0] == 0)):
        # the noise of a batch depends on nothing but its number in the set
        generator.manual_seed(derive_seed(seed, "evaluation", number * part[1] + part[0]))
        batch = batch.to(device)
        counted[0] += len(batch.images)
        features = student.features(batch.images)
        said = told.get(number)
        # an image that can't be read any more is left out of its batch
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
    """Of batches (n, 2) of first classes and their probabilities, and of labels (n,)."""
    first, confidence = torch.cat(said).unbind(1)
    return Answers(first.long(), confidence.float(), torch.cat(true) if true else None)


@dataclass(frozen=True)
class ReadoutPick:
    """How ``readout.name: auto`` was settled.

    Attributes:
        name: The cheapest readout within the tolerance of the best.
        metric: What was compared, ``top1`` or ``agreement``.
        percent: Of every readout, the cheapest first.
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
    """The cheapest readout within ``tolerance`` of the best.

    Args:
        scores: Of the readouts of one student, on images its training did not see; those without a figure
            are out.
        metric: By what they are compared.
        tolerance: In points.

    Raises:
        UserError: no readout has a figure.
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
    # of rounded numbers, so that what is printed is what was compared
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
