"""A finished student's features over whole sets: what they are worth, and the linear readout fitted to them.

Shapes: N images of the bank · n test images · d student feature · D teacher feature · K classes.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gendd.data import Data, ImageSet, Shards, sample_loader
from gendd.errors import UserError
from gendd.models import Frozen
from gendd.probe import agreement, choose_classifier, neighbour_votes
from gendd.student import Student

BATCH_SIZE = 256
BANK_IMAGES = 50_000
# of held-out rows where no validation images are
_HELD = 10
_REFIT_NUMBERS = 2**28


@dataclass
class Features:
    """What a student and its teacher make of the images of a set; float32 on the CPU.

    Attributes:
        own: (N, d), the student's own feature.
        generated: (N, D), the expected teacher feature E[f | z]; None without a generator.
        teacher: (N, D); None without a teacher.
        teacher_logits: (N, K); None without a teacher, of no columns where it has no classifier.
        labels: (N,) int64; None without labels.
    """

    own: Tensor
    generated: Tensor | None
    teacher: Tensor | None
    teacher_logits: Tensor | None
    labels: Tensor | None


@torch.no_grad()
def collect_features(
    student: Student,
    teacher: Frozen | None,
    images: ImageSet | Shards,
    *,
    limit: int | None = None,
    device: torch.device | str = "cpu",
    workers: int | None = None,
) -> Features:
    """Features of the images as they are (not augmented).

    Args:
        student: In eval mode, on ``device``.
        teacher: On ``device``.
        images: The set.
        limit: At most so many images (see :func:`gendd.data.sample_loader`); None takes all.
        device: Where to compute.
        workers: Loader processes of a set that streams.
    """
    parts: dict[str, list[Tensor]] = {entry.name: [] for entry in dataclasses.fields(Features)}
    for batch in sample_loader(images, BATCH_SIZE, limit, workers):
        batch = batch.to(device)
        own = student.features(batch.images)
        made: dict[str, Tensor | None] = {"own": own, "labels": batch.labels}
        if student.generator is not None:
            made["generated"] = student.generator.mean(student.generator.condition(own))
        if teacher is not None:
            made["teacher"], made["teacher_logits"] = teacher(batch.images)
        for name, value in made.items():
            if value is not None:
                parts[name].append(value.cpu() if name == "labels" else value.float().cpu())
    return Features(**{name: torch.cat(rows) if rows else None for name, rows in parts.items()})  # type: ignore[arg-type]


def embedding_scores(
    student: Student,
    teacher: Frozen,
    bank: ImageSet | Shards,
    test: ImageSet,
    num_classes: int,
    *,
    device: torch.device | str = "cpu",
    workers: int | None = None,
) -> dict[str, dict[str, float | None]]:
    """How good the features of a student and its teacher are, without any readout.

    ``knn`` is the accuracy in percent of the 20 nearest images of the bank by cosine; ``linear_probe`` that
    of a multinomial regression on the bank, its penalty chosen on every tenth of its images; both None where
    the bank or the test images have no labels. ``cosine`` is the mean cosine, on the test images, between
    what is generated and the teacher's feature, both less the teacher's mean over the bank: 1 for the
    teacher's own feature, 0 for features that have nothing to do with the image.

    Args:
        student: In eval mode, on ``device``.
        teacher: On ``device``.
        bank: The training images, of which 50,000 are used at most: evenly spread, or those of some shards.
        test: The test images.
        num_classes: K of the labels.
        device: Where to compute.
        workers: Loader processes of sets that stream.

    Returns:
        By features: ``teacher``, ``feature`` (the student's own) and, with a generator, ``generated``.
    """
    known = collect_features(student, teacher, bank, limit=BANK_IMAGES, device=device, workers=workers)
    asked = collect_features(student, teacher, test, device=device, workers=workers)
    scores: dict[str, dict[str, float | None]] = {}
    for name, rows, questions in (
        ("teacher", known.teacher, asked.teacher),
        ("feature", known.own, asked.own),
        ("generated", known.generated, asked.generated),
    ):
        if rows is None or questions is None:
            continue
        scores[name] = {"knn": None, "linear_probe": None}
        if known.labels is not None and asked.labels is not None:
            given = _Labelled(rows.to(device), known.labels.to(device))
            wanted = _Labelled(questions.to(device), asked.labels.to(device))
            scores[name]["knn"] = _knn(given, wanted, num_classes)
            scores[name]["linear_probe"] = _probe(given, wanted, num_classes)
    if known.teacher is not None and asked.teacher is not None and asked.generated is not None:
        mean = known.teacher.mean(0)
        cosine = F.cosine_similarity(asked.generated - mean, asked.teacher - mean, dim=-1).mean()
        scores["generated"]["cosine"] = round(float(cosine), 4)
    return scores


@dataclass
class _Labelled:
    """Features (N, d) and their classes (N,)."""

    features: Tensor
    labels: Tensor


def _knn(bank: _Labelled, test: _Labelled, num_classes: int) -> float:
    votes = neighbour_votes(test.features, bank.features, bank.labels, num_classes)
    return round(100 * agreement(votes, test.labels), 2)


def _probe(bank: _Labelled, test: _Labelled, num_classes: int) -> float | None:
    held = _every_tenth(len(bank.labels)).to(bank.labels.device)
    if bool(held.all()):
        return None
    choice = choose_classifier(
        bank.features[~held],
        bank.labels[~held],
        bank.features[held],
        bank.labels[held],
        num_classes=num_classes,
    )
    return round(100 * agreement(F.linear(test.features, choice.weight, choice.bias), test.labels), 2)


def _every_tenth(count: int) -> Tensor:
    return torch.arange(count) % _HELD == 0


@dataclass
class Refit:
    """How fitting the linear readout anew went.

    Attributes:
        target: What it was fitted to.
        l2: Strength of the penalty that was chosen.
        trained: Percent of held-out images on which the readout that was trained along is right, or says
            what the teacher says.
        refitted: Likewise of the one fitted anew.
        kept: Which of the two the student has, of equals the one that was trained.
    """

    target: str
    l2: float
    trained: float
    refitted: float
    kept: Literal["trained", "refitted"]


def refit_linear(
    student: Student,
    teacher: Frozen,
    data: Data,
    target: Literal["labels", "teacher", "mean"],
    *,
    labels: bool,
    device: torch.device | str = "cpu",
    workers: int | None = None,
) -> Refit:
    """Fit the linear readout to the features of the finished student; the better one stays, in place.

    The training images are taken as they are, as many as a gibibyte holds the features and targets of.
    Penalty and winner are chosen on the validation images (every tenth training image where there are none):
    by the labels where they may be seen, else by the teacher's first class.

    Args:
        student: In eval mode, on ``device``.
        teacher: Of the student's classes, unless the labels are seen.
        data: Training and validation images.
        target: The labels, or the probabilities of the teacher or of readout ``mean``.
        labels: Whether labels may be seen.
        device: Where to compute.
        workers: Loader processes of sets that stream.

    Raises:
        UserError: ``target`` is not to be had, or the readout has no bias to fit.
    """
    check_refit(student, teacher, target, labels)
    classifier = student.backbone.classifier
    limit = _REFIT_NUMBERS // max(classifier.in_features, classifier.out_features)
    train = collect_features(student, teacher, data.train, limit=limit, device=device, workers=workers)
    features, targets = train.own.to(device), _targets(student, train, target).to(device)
    if data.val is not None:
        held = collect_features(student, teacher, data.val, device=device, workers=workers)
        held_features = held.own.to(device)
        held_targets = _targets(student, held, "labels" if labels else "teacher").to(device)
    else:
        picked = _every_tenth(len(features)).to(device)
        judged = _targets(student, train, "labels" if labels else "teacher").to(device)
        held_features, held_targets = features[picked], judged[picked]
        features, targets = features[~picked], targets[~picked]
    choice = choose_classifier(
        features, targets, held_features, held_targets, num_classes=classifier.out_features
    )
    with torch.no_grad():
        trained = agreement(classifier(held_features), held_targets)
        better = choice.accuracy > trained
        if better:
            classifier.weight.copy_(choice.weight)
            classifier.bias.copy_(choice.bias)
    return Refit(
        target,
        choice.l2,
        round(100 * trained, 2),
        round(100 * choice.accuracy, 2),
        "refitted" if better else "trained",
    )


def check_refit(student: Student, teacher: Frozen, target: str, labels: bool) -> None:
    """Raise :class:`UserError` where the linear readout can't be fitted to ``target``."""
    classes = student.backbone.num_classes
    taught = teacher.num_classes == classes
    there = {
        "labels": labels,
        "teacher": taught,
        "mean": student.classifier is not None and student.num_classes("mean") == classes,
    }
    if not there[target] or not (labels or taught):
        found = [name for name, ok in there.items() if ok and (labels or taught)]
        raise UserError(
            f"gendd.refit: expected {' or '.join([*found, 'none'])} for this teacher and these labels, "
            f"got {target!r}."
        )
    classifier: nn.Linear = student.backbone.classifier
    if classifier.bias is None:
        raise UserError(
            f"gendd.refit: expected a student whose classifier has a bias, got {student.backbone.name} "
            "without. Set gendd.refit none."
        )


def _targets(student: Student, features: Features, target: str) -> Tensor:
    """(N,) labels or (N, K) probabilities."""
    if target == "labels":
        assert features.labels is not None
        return features.labels
    if target == "teacher":
        assert features.teacher_logits is not None
        return features.teacher_logits.softmax(-1)
    assert features.generated is not None and student.classifier is not None
    with torch.no_grad():
        logits: Tensor = student.classifier(features.generated.to(student.classifier.weight.device))
    return logits.float().cpu().softmax(-1)
