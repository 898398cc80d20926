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
from gendd.data.drawing import spread_rows
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
        fitted = f"refitted to {SAID[self.target]} of {self.images:,} images {self.refitted:.2f} %"
        found = ", ".join([before, fitted, *self.others])
        return f"linear readout on held-out images: {found}; kept the {self.kept} one"

    @property
    def others(self) -> list[str]:
        """The targets that were not better, with ``refitted`` of each."""
        worse = {name: share for name, share in self.tried.items() if name != self.target}
        return [f"to {SAID[name]} {share:.2f} %" for name, share in worse.items()]


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
    return [*(name for name in there if name == "labels"), *_unlabelled(there)[:1]]


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
    classifier = student.backbone.classifier
    targets, judge, val = _judging(
        data,
        [target] if isinstance(target, str) else [*target],
        targets_of(student, teacher, labels),
        limit,
    )
    train = data.train
    # what the rows of the training images are needed for
    asked = targets if val is not None else [*targets, judge]
    if data.partly_labelled and isinstance(train, ImageSet) and "labels" in asked:
        train = _chosen(train, targets, limit)
    judging = data.known_labels if judge == "labels" and data.partly_labelled else len(train)
    judging = min(judging, limit or judging)
    if val is None and judging < _LEAST:
        raise UserError(
            f"Linear readout: expected at least {_LEAST} training images, as there are no validation images "
            f"and every tenth is held out to judge by, got {judging}; take more."
        )
    count = min(len(train), limit or len(train))
    wide = classifier.in_features + len(_unlabelled(targets)) * classifier.out_features
    on_disk = count * wide > HELD_NUMBERS
    # of a partly labelled set, the labels have rows of their own
    parts: list[list[Target]] = [targets]
    if _is_mixed(data, targets):
        parts = [["labels"], _unlabelled(targets)]
    rows = [Rows(names, on_disk) for names in parts]
    held = Rows([judge])
    run = _Pass(student, teacher, torch.device(device), workers, data.test.framing, progress)
    if val is not None:
        for own, said in run.over(train, "training", asked, limit=limit, dtype=dtype):
            for each in rows:
                each.add(own, said)
        for own, said in run.over(val, "validation", [judge]):
            held.add(own, {judge: _classes(said[judge])})
    else:
        seen = 0
        for own, said in run.over(train, "training", asked, limit=limit):
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


def _unlabelled(targets: Sequence[Target]) -> list[Target]:
    """Targets that need no labels."""
    return [name for name in targets if name != "labels"]


def _is_mixed(data: Data, targets: Sequence[Target]) -> bool:
    """Whether a partly labelled set is fitted to its labels and to something else."""
    return data.partly_labelled and "labels" in targets and len(targets) > 1


def _judging(
    data: Data, targets: list[Target], judges: list[Target], limit: int | None
) -> tuple[list[Target], Target, ImageSet | None]:
    """Return what is fitted to, what judges, and the validation images; None for every tenth training image.

    Args:
        data: Training and validation images.
        targets: The targets asked for.
        judges: What is there to judge by, the best first.
        limit: Maximum number of training images.
    """
    if judges[0] != "labels" or data.judged:
        return targets, judges[0], data.val
    others = judges[1:]
    if _is_mixed(data, targets) and min(data.known_labels, limit or data.known_labels) < _ENOUGH:
        # a tenth of so few would choose at random
        return _unlabelled(targets), others[0], data.val
    # judged by the teacher, a fit to the teacher would be better than one to the labels
    if data.val is not None and others and not (len(targets) > 1 and "labels" in targets):
        return targets, others[0], data.val
    return targets, "labels", None


def _chosen(train: ImageSet, targets: Sequence[Target], limit: int | None) -> ImageSet:
    """Images of a partly labelled set: the labelled ones first, and others if there is a target for them."""
    assert train.labels is not None
    labelled, others = (train.labels >= 0).nonzero()[:, 0], (train.labels < 0).nonzero()[:, 0]
    if not _unlabelled(targets):
        return train.rows(labelled)
    if limit is None:
        return train
    first = labelled[spread_rows(len(labelled), limit)]
    rest = others[spread_rows(len(others), limit - len(first))]
    return train.rows(torch.cat([first, rest]).sort().values)


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
                # what judges may be a target, too
                said = {name: self._said(name, own, batch) for name in dict.fromkeys(targets)}
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
