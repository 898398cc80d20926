"""Base of distillation losses, and training of the student's classifier: on labels, or without them.

Shapes: B images · d student feature · D teacher feature · K classes · E channels of a map.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from gendd.errors import UserError
from gendd.methods._labels import label_loss
from gendd.methods.base import Method, StepOutput
from gendd.methods.kd import divergence
from gendd.models import Asked, Backbone, Frozen


class Outputs(NamedTuple):
    """Outputs of a network: feature (B, d) or (B, D), logits (B, K), and a map (B, E, h, w) or None."""

    feature: Tensor
    logits: Tensor
    map: Tensor | None = None


def readout_loss(
    classifier: nn.Linear, feature: Tensor, teacher_logits: Tensor | None, labels: Tensor | None
) -> Tensor:
    """Loss that trains a classifier on the detached feature (B, d), a scalar.

    KL(teacher ‖ student) of the class probabilities at temperature 1 if teacher logits (B, K) are given,
    else cross-entropy on the labels.
    """
    logits = classifier(feature.detach())
    if teacher_logits is not None:
        return divergence(logits, teacher_logits, 1.0)
    assert labels is not None
    return label_loss(logits, labels)


class Distilled(Method):
    """A distance to the teacher + label_weight · cross-entropy on the labels.

    The settings have a ``label_weight``; with 0 the backbone never learns from labels. If the distance then
    does not train the student's classifier, it is trained by :func:`readout_loss`: on the teacher's
    probabilities, or on labels if the teacher has other classes or none.

    Attributes:
        of_logits: Whether the distance trains the student's classifier.
        of_labels: Whether the distance needs labels.
        reads_maps: Whether :meth:`distance` is given the networks' feature maps, if they have any.
    """

    of_logits: ClassVar[bool] = False
    of_labels: ClassVar[bool] = False
    reads_maps: ClassVar[bool] = False

    def __init__(
        self,
        backbone: Backbone,
        teacher: Backbone | Frozen,
        settings: Any = None,
        *,
        labels: bool | None = None,
    ) -> None:
        weight = (settings or self.Settings()).label_weight
        same_classes = teacher.num_classes == backbone.num_classes
        self._free = not self.of_labels and (self.of_logits or same_classes)
        # set before the base class checks the teacher
        self.needs_labels = weight > 0 or not self._free
        self.takes_unknown = not self.of_labels
        super().__init__(backbone, teacher, settings, labels=labels)
        assert self.teacher is not None
        self.build(self.teacher)

    @property
    def asks(self) -> Asked:
        """See :attr:`Method.asks`."""
        return "map" if self.reads_maps else "feature"

    def build(self, teacher: Frozen) -> None:
        """Build the modules used only in training; none by default."""

    @abstractmethod
    def distance(
        self, student: Outputs, teacher: Outputs, labels: Tensor | None, generator: torch.Generator | None
    ) -> Tensor:
        """Weighted loss between the student's outputs and the teacher's detached ones, a scalar."""

    def forward(
        self, images: Tensor, labels: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> StepOutput:
        """See :meth:`Method.forward`; raises :class:`UserError` if labels are needed but missing."""
        if self.needs_labels and labels is None:
            way = f"{self.name}.label_weight 0, or " if self._free else ""
            raise UserError(f"{self.label}: expected labels, got none. Use {way}a labelled set.")
        student, teacher = self._outputs(images)
        loss = self.distance(student, teacher, labels, generator)
        parts = {self.name: loss.detach()}
        if self.settings.label_weight > 0:
            assert labels is not None
            cross_entropy = label_loss(student.logits, labels)
            loss = loss + self.settings.label_weight * cross_entropy
            parts["cross_entropy"] = cross_entropy.detach()
        elif not self.of_logits:
            known = teacher.logits if self._free else None
            readout = readout_loss(self.backbone.classifier, student.feature, known, labels)
            loss = loss + readout
            parts["readout"] = readout.detach()
        return StepOutput(loss, student.logits, parts)

    def _outputs(self, images: Tensor) -> tuple[Outputs, Outputs]:
        assert self.teacher is not None
        if not self.reads_maps:
            return Outputs(*self.backbone(images)), Outputs(*self.teacher(images))
        feature, found = self.backbone.with_map(images)
        return Outputs(*self.backbone.with_logits(feature), found), Outputs(*self.teacher.with_map(images))
