"""Fit the linear readout of a finished student again, to its fixed features.

Shapes: B images of a batch · N training images · n held-out images · d student feature · K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from gendd.data import Batch, Data, ImageSet, Shards, sample_loader
from gendd.errors import UserError
from gendd.evaluation.linear_fit import HELD_NUMBERS, accuracy, choose_classifier
from gendd.evaluation.rows import Rows
from gendd.messages import followed
from gendd.models import Frozen, memory_format
from gendd.models.affine import assign
from gendd.student import Student

Target = Literal["labels", "teacher", "mean"]

BATCH_SIZE = 256
# every tenth training image is held out if there are no validation images
_HELD = 10
# minimum number of training images in that case, so that two are held out
_LEAST = 2 * _HELD
# minimum number of labelled training images of which a tenth judges between the labels and other targets
_ENOUGH = 100 * _HELD


@dataclass
class Refit:
    """Result of fitting the linear readout again.

    Attributes:
        target: Target of the fit; the best one, if there were several.
        judged_by: Reference for the accuracy on held-out images.
        l2: Strength of the chosen penalty.
        trained: Percent of held-out images on which the trained readout agrees with the reference; None if
            there was none.
        refitted: Likewise for the new readout.
        kept: Which of the two the student has; ties go to the trained one.
        images: N, the number of training images.
        held_images: n, the number of held-out images.
        tried: ``refitted`` of every target that was fitted to.
    """

    target: Target
    judged_by: Target
    l2: float
    trained: float | None
    refitted: float
    kept: Literal["trained", "refitted"]
    images: int
    held_images: int
    tried: dict[Target, float] = field(default_factory=dict)

    def __str__(self) -> str:
        before = "none before" if self.trained is None else f"before {self.trained:.2f} %"
        return (
            f"linear readout on held-out images: {before}, refitted to {SAID[self.target]} of "
            f"{self.images:,} images {self.refitted:.2f} %{self.others}; kept the {self.kept} one"
        )

    @property
    def others(self) -> str:
        """The other targets and their percentages, as the end of a sentence; empty if there was one."""
        return "".join(
            f", to {SAID[name]} {share:.2f} %" for name, share in self.tried.items() if name != self.target
        )


SAID = {
    "labels": "labels",
    "teacher": "the teacher's predictions",
    "mean": "the predictions of readout mean",
}


def targets_of(student: Student, teacher: Frozen | None, labels: bool) -> list[Target]:
    """Targets that the linear readout can be fitted to and judged by, the best judge first.

    Args:
        student: The student; its classifier has K classes.
        teacher: The teacher; None if it is not available.
        labels: Whether there are labels for the K classes that may be used.
    """
    classes = student.backbone.num_classes
    there: dict[Target, bool] = {
        "labels": labels,
        "teacher": teacher is not None and teacher.num_classes == classes,
        "mean": student.classifier is not None and student.num_classes("mean") == classes,
    }
    return [name for name, ok in there.items() if ok]


def best_targets(there: Sequence[Target]) -> list[Target]:
    """Targets worth fitting to, of those available: the labels, and the predictions of the teacher or, in its
    absence, of readout ``mean``."""
    taught = [name for name in there if name != "labels"]
    return [*(name for name in there if name == "labels"), *taught[:1]]


def check_refit(
    student: Student, teacher: Frozen | None, target: str, labels: bool, key: str = "gendd.refit"
) -> None:
    """Raise :class:`UserError` if the setting ``key`` names a target that is not available."""
    there = targets_of(student, teacher, labels)
    if target not in (["auto", *there] if there else []):
        more = ["auto"] if len(there) > 1 else []
        raise UserError(
            f"{key}: expected {' or '.join([*there, *more, 'none'])} for this teacher and these labels, "
            f"got {target!r}."
        )
    check_bias(student, key, f" Set {key} none.")


def check_bias(student: Student, key: str, advice: str = "") -> None:
    """Raise :class:`UserError` naming ``key`` if the student's classifier has no bias to fit."""
    if student.backbone.classifier.bias is None:
        raise UserError(
            f"{key}: expected a student whose classifier has a bias, got {student.backbone.name} "
            f"without.{advice}"
        )


def refit_linear(
    student: Student,
    teacher: Frozen | None,
    data: Data,
    target: Target | Sequence[Target],
    *,
    labels: bool,
    device: torch.device | str = "cpu",
    workers: int | None = None,
    limit: int | None = None,
    dtype: torch.dtype | None = None,
    progress: bool = False,
) -> Refit:
    """Fit the linear readout to the features of the finished student, and keep the better one, in place.

    All training images are used, unaugmented and framed like the test images. Their features are computed
    once, and stored in a temporary file if they have more than :data:`HELD_NUMBERS` numbers. Penalty and
    readout are chosen on the validation images (every tenth training image if there are none): by the
    labels if they may be used, else by the teacher's top class, else by that of readout ``mean``. A student
    without a linear readout gets one.

    In a partly labelled set the fit to the labels uses the labelled images, the others all. Where validation
    images have no labels, targets of which one is the labels are judged by every tenth labelled training
    image; with fewer than 1,000 of them the labels are neither fitted to nor used to judge.

    Args:
        student: In eval mode, on ``device``.
        teacher: On ``device``; None if it is not available.
        data: Training and validation images.
        target: The labels, or the probabilities of the teacher or of readout ``mean``; of
            :func:`targets_of`. Of several the best one, ties going to the first.
        labels: Whether labels may be used.
        device: Device to compute on.
        workers: Loader processes of sets that stream.
        limit: Maximum number of training images, spread over the set; None: all.
        dtype: Autocast dtype for the features to fit to; None: no autocast. Held-out images are judged in
            the student's own precision, as it will be used.
        progress: Show progress bars.

    Raises:
        UserError: no disk space for the features, or too few images.
    """
    targets: list[Target] = [target] if isinstance(target, str) else [*target]
    classifier = student.backbone.classifier
    judges = targets_of(student, teacher, labels)
    train, val = data.train, data.val
    if judges[0] == "labels" and val is not None and val.labels is None:
        if len(targets) > 1 and "labels" in targets:
            # judged by the teacher, a fit to the teacher would always be better
            val = None
        else:
            # if anything else can judge
            judges = judges[1:] or judges
            val = None if judges[0] == "labels" else val
    judge = judges[0]
    mixed = data.partly_labelled and len(targets) > 1 and "labels" in targets
    train = _chosen(train, limit, targets) if isinstance(train, ImageSet) and data.partly_labelled else train
    judging = data.known_labels if judge == "labels" and data.partly_labelled else len(train)
    judging = min(judging, limit or judging)
    if val is None and judging < (_ENOUGH if mixed else _LEAST):
        if mixed:
            # a tenth of so few would choose at random
            return refit_linear(
                student,
                teacher,
                data,
                [name for name in targets if name != "labels"],
                labels=False,
                device=device,
                workers=workers,
                limit=limit,
                dtype=dtype,
                progress=progress,
            )
        raise UserError(
            f"Linear readout: expected at least {_LEAST} training images, as there are no validation images "
            f"and every tenth is held out to judge by, got {judging}; take more."
        )
    count = min(len(train), limit or len(train))
    soft = sum(name != "labels" for name in targets)
    on_disk = count * (classifier.in_features + soft * classifier.out_features) > HELD_NUMBERS
    # of a partly labelled set, the labels have rows of their own
    parts: list[list[Target]] = [targets]
    if mixed:
        parts = [["labels"], [name for name in targets if name != "labels"]]
    rows = [Rows(names, on_disk) for names in parts]
    held = Rows([judge])
    run = _Pass(student, teacher, torch.device(device), workers, data.test.framing, progress)
    if val is not None:
        for own, said in run.over(train, "training", targets, limit=limit, dtype=dtype):
            for each in rows:
                each.add(own, said)
        for own, said in run.over(val, "validation", [judge]):
            held.add(own, {judge: _classes(said[judge])})
    else:
        seen = 0
        for own, said in run.over(train, "training", [*targets, judge], limit=limit):
            classes = _classes(said[judge])
            known = classes >= 0
            picked = known & ((seen + known.cumsum(0) - 1) % _HELD == 0)
            for each in rows:
                each.add(own[~picked], {name: wanted[~picked] for name, wanted in said.items()})
            held.add(own[picked], {judge: classes[picked]})
            seen += int(known.sum())
    held_features, held_classes = held.features.to(device), held.of(judge).to(device)
    found = {
        name: choose_classifier(
            each.features,
            each.of(name),
            held_features,
            held_classes,
            num_classes=classifier.out_features,
            device=device,
            watch=lambda penalties: followed(penalties, len(penalties), "fitting", unit="fits", bar=progress),
        )
        for each in rows
        for name in each.names
    }
    best = max(targets, key=lambda name: found[name].accuracy)
    choice = found[best]
    trained = None
    if student.linear:
        trained = accuracy(classifier.weight, classifier.bias, held_features, held_classes)
    better = trained is None or choice.accuracy > trained
    if better:
        install(student, choice.weight, choice.bias)
    return Refit(
        best,
        judge,
        choice.l2,
        None if trained is None else round(100 * trained, 2),
        round(100 * choice.accuracy, 2),
        "refitted" if better else "trained",
        next(len(each.features) for each in rows if best in each.names),
        len(held_features),
        {name: round(100 * found[name].accuracy, 2) for name in targets},
    )


def _chosen(train: ImageSet, limit: int | None, targets: Sequence[Target]) -> ImageSet:
    """Images of a partly labelled set: the labelled ones, and others if there is a target for them."""
    assert train.labels is not None
    labelled, others = ((train.labels >= 0) == known for known in (True, False))
    first = _spread(labelled.nonzero()[:, 0], limit)
    if all(name == "labels" for name in targets):
        return train.rows(first)
    if "labels" not in targets or limit is None:
        return train
    rest = _spread(others.nonzero()[:, 0], limit - len(first))
    return train.rows(torch.cat([first, rest]).sort().values)


def _spread(rows: Tensor, limit: int | None) -> Tensor:
    """At most ``limit`` of the rows, evenly spread."""
    if limit is None or len(rows) <= limit:
        return rows
    return rows[torch.arange(limit) * len(rows) // max(1, limit)]


def _classes(said: Tensor) -> Tensor:
    """Classes (B,) of classes or probabilities (B, K)."""
    return said.argmax(-1) if said.ndim == 2 else said


def install(student: Student, weight: Tensor, bias: Tensor) -> None:
    """Set the student's linear readout to a weight (K, d) and bias (K,), and make it available."""
    assign(student.backbone.classifier, weight, bias)
    student.linear = True
    if student.readout not in student.readouts:
        student.readout = "linear"


@dataclass(frozen=True)
class _Pass:
    """Passes of a finished student over sets of images."""

    student: Student
    teacher: Frozen | None
    device: torch.device
    workers: int | None
    framing: float
    bar: bool

    def over(
        self,
        images: ImageSet | Shards,
        part: str,
        targets: Sequence[Target],
        *,
        limit: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> Iterator[tuple[Tensor, dict[Target, Tensor]]]:
        """Yield features (B, d) and, by target, classes (B,) or probabilities (B, K), batch by batch."""
        layout = memory_format(self.student)
        loader = sample_loader(images, BATCH_SIZE, limit, self.workers, self.framing)
        for batch in followed(loader, len(loader), f"features of {part} images", bar=self.bar):
            batch = batch.to(self.device)
            batch = Batch(batch.images.contiguous(memory_format=layout), batch.labels)
            with (
                torch.no_grad(),
                torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None),
            ):
                own = self.student.features(batch.images).float()
                said: dict[Target, Tensor] = {name: self._said(name, own, batch) for name in targets}
            yield own, said

    def _said(self, target: Target, own: Tensor, batch: Batch) -> Tensor:
        if target == "labels":
            assert batch.labels is not None
            return batch.labels
        if target == "teacher":
            assert self.teacher is not None
            logits: Tensor = self.teacher(batch.images)[1]
        else:
            logits = self.student.logits(own, "mean")
        return logits.float().softmax(-1)
