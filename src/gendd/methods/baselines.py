"""Training on labels alone, logit distillation, and a linear probe."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from gendd.config import KDConfig
from gendd.errors import UserError
from gendd.methods.base import Method, StepOutput
from gendd.models import Backbone, Frozen
from gendd.student import Student


class Supervised(Method):
    """Cross-entropy on the labels."""

    def forward(
        self, images: Tensor, labels: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> StepOutput:
        """See :meth:`Method.forward`; raises :class:`UserError` without labels."""
        if labels is None:
            raise UserError("Supervised training: expected labels, got none. Use a labelled set.")
        _, logits = self.backbone(images)
        loss = F.cross_entropy(logits.float(), labels)
        return StepOutput(loss, logits, {"cross_entropy": loss.detach()})

    def student(self) -> Student:
        """See :meth:`Method.student`."""
        return Student(self.backbone)


class KD(Method):
    """Logit distillation (Hinton et al. 2015): (1-w) CE + w τ² KL(teacher ‖ student) at temperature τ.

    With w = 1 (the KL baseline at τ = 1) no label is read.

    Raises:
        UserError: teacher and student differ in their number of classes.
    """

    def __init__(
        self, backbone: Backbone, teacher: Backbone | Frozen, config: KDConfig | None = None
    ) -> None:
        super().__init__(backbone, teacher)
        self.config = config or KDConfig()
        self.needs_labels = self.config.weight < 1
        if not teacher.has_classifier:
            raise UserError(
                "Logit distillation: expected a teacher with a classifier, got one of features alone. "
                "Use method gendd, and no baseline kl or kd."
            )
        if teacher.num_classes != backbone.num_classes:
            way = ", or data.labels false" if not self.needs_labels else ""
            raise UserError(
                f"Logit distillation: expected a teacher with the student's {backbone.num_classes} classes, "
                f"got one with {teacher.num_classes}. Use a teacher trained on these classes{way}."
            )

    def forward(
        self, images: Tensor, labels: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> StepOutput:
        """See :meth:`Method.forward`; raises :class:`UserError` where labels are needed and absent."""
        assert self.teacher is not None
        if self.needs_labels and labels is None:
            raise UserError(
                f"KD with weight {self.config.weight}: expected labels, got none. "
                "Use kd.weight 1 or method kl."
            )
        _, teacher_logits = self.teacher(images)
        _, logits = self.backbone(images)
        temperature, weight = self.config.temperature, self.config.weight
        divergence = temperature**2 * F.kl_div(
            F.log_softmax(logits.float() / temperature, dim=-1),
            F.log_softmax(teacher_logits.float() / temperature, dim=-1),
            reduction="batchmean",
            log_target=True,
        )
        parts = {"kl": divergence.detach()}
        loss = weight * divergence
        if self.needs_labels:
            assert labels is not None
            cross_entropy = F.cross_entropy(logits.float(), labels)
            loss = loss + (1 - weight) * cross_entropy
            parts["cross_entropy"] = cross_entropy.detach()
        return StepOutput(loss, logits, parts)

    def student(self) -> Student:
        """See :meth:`Method.student`."""
        return Student(self.backbone)


class Pretraining(Method):
    """Stage 1: the frozen teacher classifier reads the student's feature, mapped to the teacher's width.

    Cross-entropy on the labels; afterwards the backbone starts the distillation and the map is dropped.

    Raises:
        UserError: the teacher has no classifier, or one of other classes than the student.
    """

    def __init__(self, backbone: Backbone, teacher: Backbone | Frozen) -> None:
        super().__init__(backbone, teacher)
        if teacher.num_classes != backbone.num_classes:
            came = f"one with {teacher.num_classes}" if teacher.has_classifier else "one without a classifier"
            raise UserError(
                f"Pretraining (stage 1): expected a teacher with the data's {backbone.num_classes} classes, "
                f"got {came}. Set training.stage1_epochs 0."
            )
        self.projection = torch.nn.Linear(backbone.feature_dim, teacher.feature_dim)

    def forward(
        self, images: Tensor, labels: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> StepOutput:
        """See :meth:`Method.forward`; raises :class:`UserError` without labels."""
        if labels is None:
            raise UserError("Pretraining (stage 1): expected labels, got none. Set training.stage1_epochs 0.")
        logits = self.predict(images)["linear"]
        loss = F.cross_entropy(logits.float(), labels)
        return StepOutput(loss, logits, {"cross_entropy": loss.detach()})

    def predict(self, images: Tensor) -> dict[str, Tensor]:
        """See :meth:`Method.predict`: what the teacher's classifier says of the mapped feature."""
        assert self.teacher is not None
        classifier = self.teacher.classifier
        feature = self.projection(self.backbone.features(images))
        return {"linear": F.linear(feature, classifier.weight, classifier.bias)}

    def student(self) -> Student:
        """See :meth:`Method.student`."""
        return Student(self.backbone)


class LinearProbe(Method):
    """A new linear classifier on the frozen backbone, which stays in eval mode: cross-entropy on the labels.

    The backbone's classifier is drawn anew, and is all that trains.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone)
        backbone.requires_grad_(False)
        backbone.classifier.reset_parameters()
        backbone.classifier.requires_grad_(True)
        self.train()

    def train(self, mode: bool = True) -> LinearProbe:
        """Keeps the backbone in eval mode, so that no BatchNorm statistic moves."""
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(
        self, images: Tensor, labels: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> StepOutput:
        """See :meth:`Method.forward`; raises :class:`UserError` without labels."""
        if labels is None:
            raise UserError("Linear probe: expected labels, got none. Use a labelled set.")
        with torch.no_grad():
            feature = self.backbone.features(images)
        logits = self.backbone.classifier(feature)
        loss = F.cross_entropy(logits.float(), labels)
        return StepOutput(loss, logits, {"cross_entropy": loss.detach()})

    def student(self) -> Student:
        """See :meth:`Method.student`."""
        return Student(self.backbone)
