"""Training on smoothed labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from gendd.config import check
from gendd.methods.base import Method, StepOutput


@dataclass
class LabelSmoothingConfig:
    """Cross-entropy on smoothed labels (Szegedy et al. 2016).

    Args:
        smoothing: s in [0, 1), in addition to ``data.label_smoothing``.
    """

    smoothing: float = 0.1

    def __post_init__(self) -> None:
        check(0 <= self.smoothing < 1, "label_smoothing.smoothing", "a number in [0, 1)", self.smoothing)


class LabelSmoothing(Method):
    """Cross-entropy on smoothed labels (Szegedy et al. 2016): (1-s) label + s/K.

    Yuan et al. (2020) interpret it as distillation from an uninformed teacher (arXiv:1909.11723).
    """

    name = "label_smoothing"
    label = "label smoothing"
    colors = ("#4a6478", "#94b3c9")
    marker = "v"
    Settings = LabelSmoothingConfig
    needs_teacher = False

    def forward(
        self, images: Tensor, labels: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> StepOutput:
        """See :meth:`Method.forward`; raises :class:`UserError` without labels."""
        labels = self.labelled(labels)
        _, logits = self.backbone(images)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.settings.smoothing)
        return StepOutput(loss, logits, {"cross_entropy": loss.detach()})
