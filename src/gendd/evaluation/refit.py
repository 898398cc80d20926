"""Fit the linear readout of a finished student again, to its fixed features.

Shapes: B images of a batch · N training images · n held-out images · d student feature · K classes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, Literal

import numpy as np
import torch
from torch import Tensor

from gendd.data import Batch, Data, ImageSet, Shards, sample_loader
from gendd.errors import UserError
from gendd.evaluation.linear_fit import HELD_NUMBERS, accuracy, choose_classifier
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
        """The targets that were not better, as the end of a sentence; empty if there was one target."""
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
    targets: Sequence[Target] = [target] if isinstance(target, str) else target
    classifier = student.backbone.classifier
    judges = targets_of(student, teacher, labels)
    train, val = data.train, data.val
    if judges[0] == "labels" and val is not None and val.labels is None:
        # if anything else can judge
        judges = judges[1:] or judges
        val = None if judges[0] == "labels" else val
    judge = judges[0]
    # of images without labels, others can only be fitted to something else, and only validation images judge
    everywhere = any(name != "labels" for name in targets) and (val is not None or judge != "labels")
    if data.partly_labelled and not everywhere and isinstance(train, ImageSet):
        assert train.labels is not None
        train = train.rows((train.labels >= 0).nonzero()[:, 0])
    count = len(train) if limit is None else min(limit, len(train))
    if val is None and count < _LEAST:
        raise UserError(
            f"Linear readout: expected at least {_LEAST} training images, as there are no validation images "
            f"and every tenth is held out to judge by, got {count}; take more."
        )
    soft = sum(name != "labels" for name in targets)
    wide = classifier.in_features + soft * classifier.out_features
    rows, held = _Rows(on_disk=count * wide > HELD_NUMBERS), _Rows()
    run = _Pass(student, teacher, torch.device(device), workers, data.test.framing, progress)
    if val is not None:
        for columns in run.over(train, "training", targets, limit=limit, dtype=dtype):
            rows.add(*columns)
        for columns in run.over(val, "validation", [judge]):
            held.add(*_judged(columns))
    else:
        seen = 0
        for own, *wanted in run.over(train, "training", [*targets, judge], limit=limit):
            picked = (torch.arange(seen, seen + len(own)) % _HELD == 0).to(own.device)
            rows.add(*(column[~picked] for column in (own, *wanted[:-1])))
            held.add(*_judged([own[picked], wanted[-1][picked]]))
            seen += len(own)
    held_features, held_classes = held.column(0).to(device), held.column(1).to(device)
    found = {
        name: choose_classifier(
            *rows.known(number),
            held_features,
            held_classes,
            num_classes=classifier.out_features,
            device=device,
            watch=lambda penalties: followed(penalties, len(penalties), "fitting", unit="fits", bar=progress),
        )
        for number, name in enumerate(targets, 1)
    }
    number, best = max(enumerate(targets, 1), key=lambda entry: found[entry[1]].accuracy)
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
        len(rows.known(number)[1]),
        len(held_features),
        {name: round(100 * fit.accuracy, 2) for name, fit in found.items()},
    )


def _judged(columns: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Features (B, d), and the classes (B,) of what judges them."""
    own, said = columns
    return own, said.argmax(-1) if said.ndim == 2 else said


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
    ) -> Iterator[list[Tensor]]:
        """Yield features (B, d) and, of each target, classes (B,) or probabilities (B, K), batch by batch."""
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
                said = {name: self._said(name, own, batch) for name in set(targets)}
            yield [own, *(said[name] for name in targets)]

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


@dataclass
class _Rows:
    """Features (N, d) and, of each target, (N,) or (N, K), collected in batches.

    Attributes:
        on_disk: Whether to store them in temporary files; integer classes (N,) are always in memory.
    """

    on_disk: bool = False
    parts: dict[int, list[Tensor]] = field(default_factory=dict)
    files: dict[int, _File] = field(default_factory=dict)

    def add(self, *columns: Tensor) -> None:
        """Append a batch; raises :class:`UserError` if there is no disk space."""
        for number, column in enumerate(columns):
            rows = column.cpu()
            if not (self.on_disk and rows.is_floating_point()):
                self.parts.setdefault(number, []).append(rows)
                continue
            if number not in self.files:
                self.files[number] = _File()
            self.files[number].write(rows)

    def known(self, number: int) -> tuple[Tensor, Tensor]:
        """Features and targets, of the rows whose target is known."""
        features, targets = self.column(0), self.column(number)
        if targets.ndim == 2 or bool((targets >= 0).all()):
            return features, targets
        return features[targets >= 0], targets[targets >= 0]

    def column(self, number: int) -> Tensor:
        """All rows of a column."""
        if number in self.files:
            return self.files[number].mapped()
        if len(self.parts[number]) > 1:
            self.parts[number][:] = [torch.cat(self.parts[number])]
        return self.parts[number][0]


class _File:
    """Rows (N, width) of float32 in an anonymous temporary file, deleted once it is no longer used."""

    def __init__(self) -> None:
        self.file: IO[Any] = tempfile.TemporaryFile(prefix="gendd-")  # noqa: SIM115
        self.count = self.width = 0

    def __del__(self) -> None:
        # existing memory maps stay valid
        self.file.close()

    def write(self, rows: Tensor) -> None:
        try:
            rows.contiguous().numpy().tofile(self.file)
        except OSError as error:
            raise UserError(
                f"Features of the training images: expected room for them in {tempfile.gettempdir()!r}, got "
                f"none after {self.count:,} images ({error}); set TMPDIR to a folder with more, or take "
                "fewer images."
            ) from error
        self.count, self.width = self.count + len(rows), rows.shape[1]

    def mapped(self) -> Tensor:
        """The rows, memory-mapped."""
        self.file.flush()
        shape = (self.count, self.width)
        return torch.from_numpy(np.memmap(self.file, dtype=np.float32, mode="r+", shape=shape))
