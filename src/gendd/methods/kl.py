"""Distillation of only the teacher's predictions."""

from __future__ import annotations

import torch
from torch import Tensor

from gendd.methods.base import Method, StepOutput
from gendd.methods.kd import divergence


class KL(Method):
    """KL(teacher ‖ student) of the class probabilities: no labels, no temperature."""

    name = "kl"
    label = "KL distillation"
    origin = "through its logits"
    colors = ("#d98200", "#f0a830")
    marker = "^"
    needs_labels = False
    needs_classes = True
    takes_unknown = True

    def forward(
        self, images: Tensor, labels: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> StepOutput:
        """See :meth:`Method.forward`."""
        assert self.teacher is not None
        _, teacher_logits = self.teacher(images)
        _, logits = self.backbone(images)
        loss = divergence(logits, teacher_logits, 1.0)
        return StepOutput(loss, logits, {"kl": loss.detach()})
