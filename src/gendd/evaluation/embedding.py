"""Evaluation of a finished student's features over whole data sets.

Shapes: N images of the bank · n test images · d student feature · D teacher feature · K classes.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from gendd.data import ImageSet, Shards, sample_loader
from gendd.evaluation.linear_fit import agreement, choose_classifier
from gendd.messages import followed
from gendd.models import Frozen
from gendd.processes import in_turn, rank, world_size
from gendd.student import Student

BATCH_SIZE = 256
BANK_IMAGES = 50_000
# every tenth row is held out to choose a penalty
_HELD = 10
# cosines per pass, to bound memory for any N and n
_CHUNK_NUMBERS = 2**24


@dataclass
class Features:
    """Features of a set of images by a student and its teacher; float32 on the CPU.

    Attributes:
        own: (N, d), the student's own feature.
        generated: (N, D), the expected teacher feature E[f | z]; None without a generator.
        teacher: (N, D); None without a teacher.
        teacher_logits: (N, K); None without a teacher, without columns if it has no classifier.
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
    """Compute features of unaugmented images; several processes share the work and all get the result.

    Args:
        student: In eval mode, on ``device``.
        teacher: On ``device``.
        images: The set.
        limit: Maximum number of images (see :func:`gendd.data.sample_loader`); None: all.
        device: Device to compute on.
        workers: Loader processes of a set that streams.
    """
    parts: dict[str, list[Tensor]] = {entry.name: [] for entry in dataclasses.fields(Features)}
    # shards are read by every process
    shared = isinstance(images, ImageSet)
    part = (rank(), world_size()) if shared else (0, 1)
    loader = sample_loader(images, BATCH_SIZE, limit, workers, part=part)
    for batch in followed(loader, len(loader), "features"):
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
    found = {name: in_turn(rows) if shared else rows for name, rows in parts.items()}
    return Features(**{name: torch.cat(rows) if rows else None for name, rows in found.items()})  # type: ignore[arg-type]


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
    """Score the features of a student and its teacher, without any readout.

    ``knn`` is the accuracy in percent of a vote of the 20 nearest bank images by cosine; ``linear_probe``
    that of multinomial regression on the bank, with the penalty chosen on every tenth of its images; both
    None if the bank or the test images have no labels. ``cosine`` is the mean cosine, on the test images,
    between the generated and the teacher's feature, both minus the teacher's mean over the bank: 1 for the
    teacher's own feature, 0 for features unrelated to the image.

    Args:
        student: In eval mode, on ``device``.
        teacher: On ``device``.
        bank: The training images; at most 50,000 are used, evenly spread or from some of the shards.
        test: The test images.
        num_classes: K of the labels.
        device: Device to compute on.
        workers: Loader processes of sets that stream.

    Returns:
        Scores by feature: ``teacher``, ``feature`` (the student's own) and, with a generator, ``generated``.
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
            there = known.labels >= 0
            given = _Labelled(rows[there].to(device), known.labels[there].to(device))
            wanted = _Labelled(questions.to(device), asked.labels.to(device))
            scores[name]["knn"] = _knn(given, wanted, num_classes)
            scores[name]["linear_probe"] = _probe(given, wanted, num_classes)
    if known.teacher is not None and asked.teacher is not None and asked.generated is not None:
        mean = known.teacher.mean(0)
        cosine = F.cosine_similarity(asked.generated - mean, asked.teacher - mean, dim=-1).mean()
        scores["generated"]["cosine"] = round(float(cosine), 4)
    return scores


def neighbour_votes(
    features: Tensor,
    bank: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    neighbours: int = 20,
    temperature: float = 0.07,
) -> Tensor:
    """Votes of the nearest neighbours by cosine, weighted by exp(cosine / temperature) (Wu et al. 2018).

    Args:
        features: (n, d).
        bank: (N, d) features with known classes.
        labels: (N,) int64 classes of the bank.
        num_classes: K.
        neighbours: Number of neighbours that vote; all of a smaller bank.
        temperature: Positive; smaller values give the nearest neighbours more weight.

    Returns:
        (n, K), float32; the argmax is the predicted class.
    """
    count = min(neighbours, len(bank))
    known = F.normalize(bank.float(), dim=-1)
    votes = []
    size = max(1, _CHUNK_NUMBERS // len(bank))
    for rows in torch.split(F.normalize(features.float(), dim=-1), size):
        cosines, nearest = (rows @ known.T).topk(count)
        # relative to the nearest: only ratios matter, and exp can't overflow
        weights = ((cosines - cosines[:, :1]) / temperature).exp()
        vote = weights.new_zeros(len(rows), num_classes)
        votes.append(vote.scatter_add_(1, labels[nearest], weights))
    return torch.cat(votes)


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
