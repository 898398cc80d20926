"""Training on labels only, without a teacher."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from gendd.methods.base import Method, StepOutput


class Supervised(Method):
    """Cross-entropy on the labels."""

    name = "supervised"
    label = "student alone"
    colors = ("#b8578f", "#dd8fbd")
    marker = "v"
    needs_teacher = False

    def forward(
        self, images: Tensor, labels: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> StepOutput:
        """See :meth:`Method.forward`; raises :class:`UserError` without labels."""
        labels = self.labelled(labels)
        _, logits = self.backbone(images)
        loss = F.cross_entropy(logits.float(), labels)
        return StepOutput(loss, logits, {"cross_entropy": loss.detach()})
