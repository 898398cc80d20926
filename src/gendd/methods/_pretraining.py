"""Stage 1: pretraining of the student before distillation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from gendd.errors import UserError
from gendd.methods.base import Method, StepOutput
from gendd.models import Backbone, Frozen


class Pretraining(Method):
    """Stage 1: train the student's feature, projected to the teacher's width, with its frozen classifier.

    Cross-entropy on the labels. Distillation then starts from the backbone; the projection is dropped.

    Raises:
        UserError: the teacher has no classifier, or one for other classes than the student's.
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
        """See :meth:`Method.predict`: the teacher's classifier on the projected feature."""
        assert self.teacher is not None
        classifier = self.teacher.classifier
        feature = self.projection(self.backbone.features(images))
        return {"linear": F.linear(feature, classifier.weight, classifier.bias)}
