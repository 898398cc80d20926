"""Logit distillation with standardised logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gendd.config import check
from gendd.methods._logits import Distilled, Outputs
from gendd.methods._torchdistill import TorchdistillLoss
from gendd.models import Frozen


@dataclass
class KDStdConfig:
    """Logit distillation with standardised logits (Sun et al. 2024).

    Args:
        temperature: τ, positive.
        weight: Weight of τ² KL, positive.
        label_weight: Weight of the cross-entropy on the labels, at least 0; with 0 no labels are used.
    """

    temperature: float = 2.0
    weight: float = 9.0
    label_weight: float = 0.1

    def __post_init__(self) -> None:
        check(self.temperature > 0, "kd_std.temperature", "a positive number", self.temperature)
        check(self.weight > 0, "kd_std.weight", "a positive number", self.weight)
        check(self.label_weight >= 0, "kd_std.label_weight", "a number of at least 0", self.label_weight)


class KDStd(Distilled):
    """Distillation of standardised logits (Sun et al. 2024): weighted sum of CE and τ² KL of Z(z)/τ.

    Z(z) = (z - mean(z)) / std(z) over the K logits of an image, with K - 1 in the standard deviation as in
    the authors' code (arXiv:2403.01427).
    """

    name = "kd_std"
    label = "KD, standardised logits"
    origin = "through its standardised logits"
    colors = ("#3d6b1f", "#86c25a")
    marker = "d"
    Settings = KDStdConfig
    needs_classes = True
    of_logits = True

    def build(self, teacher: Frozen) -> None:
        """See :meth:`Distilled.build`."""
        # with alpha 0 this is only the divergence, without τ²; alpha would weight the cross-entropy
        self.divergence = TorchdistillLoss(
            self.name, "LogitStdKDLoss", temperature=self.settings.temperature, alpha=0.0
        )

    def distance(
        self, student: Outputs, teacher: Outputs, labels: Tensor | None, generator: torch.Generator | None
    ) -> Tensor:
        """See :meth:`Distilled.distance`: weight · τ² KL(teacher ‖ student), averaged over images."""
        weight = self.settings.weight * self.settings.temperature**2
        loss: Tensor = weight * self.divergence((student.logits, teacher.logits))
        return loss
