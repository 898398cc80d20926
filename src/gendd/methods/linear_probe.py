"""A linear classifier on a frozen student."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gendd.methods.base import Method, StepOutput
from gendd.models import Backbone


class LinearProbe(Method):
    """A new linear classifier on the frozen backbone of ``student.weights``: cross-entropy on the labels.

    The backbone stays in eval mode. Its classifier is reinitialised, and only it is trained.
    """

    name = "linear_probe"
    label = "linear probe"
    colors = ("#a34a16", "#e58a52")
    marker = "P"
    needs_teacher = False

    def __init__(
        self, backbone: Backbone, teacher: None = None, settings: Any = None, *, labels: bool | None = None
    ) -> None:
        super().__init__(backbone, teacher, settings, labels=labels)
        backbone.requires_grad_(False)
        backbone.classifier.reset_parameters()
        backbone.classifier.requires_grad_(True)
        self.train()

    def train(self, mode: bool = True) -> LinearProbe:
        """Keep the backbone in eval mode, so that no BatchNorm statistics change."""
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(
        self, images: Tensor, labels: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> StepOutput:
        """See :meth:`Method.forward`; raises :class:`UserError` without labels."""
        labels = self.labelled(labels)
        with torch.no_grad():
            feature = self.backbone.features(images)
        logits = self.backbone.classifier(feature)
        loss = F.cross_entropy(logits.float(), labels)
        return StepOutput(loss, logits, {"cross_entropy": loss.detach()})
