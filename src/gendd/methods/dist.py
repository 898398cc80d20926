"""Distillation of the relations between and within classes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gendd.config import check
from gendd.methods._logits import Distilled, Outputs
from gendd.methods._torchdistill import TorchdistillLoss
from gendd.models import Frozen


@dataclass
class DISTConfig:
    """DIST (Huang et al. 2022).

    Args:
        temperature: τ, positive.
        beta: Weight of the relations between classes, at least 0.
        gamma: Weight of the relations within classes, at least 0.
        label_weight: Weight of the cross-entropy on the labels, at least 0; with 0 no labels are used.
    """

    temperature: float = 4.0
    beta: float = 2.0
    gamma: float = 2.0
    label_weight: float = 1.0

    def __post_init__(self) -> None:
        check(self.temperature > 0, "dist.temperature", "a positive number", self.temperature)
        for key in ("beta", "gamma", "label_weight"):
            check(getattr(self, key) >= 0, f"dist.{key}", "a number of at least 0", getattr(self, key))


class DIST(Distilled):
    """DIST (Huang et al. 2022): CE + Pearson distances between class probabilities, by image and by class.

    With P the probabilities (B, K) at temperature τ and ρ Pearson's correlation coefficient, the distance is
    τ² (β mean_b[1 - ρ(P_b, P'_b)] + γ mean_k[1 - ρ(P_:k, P'_:k)]) (arXiv:2205.10536).
    """

    name = "dist"
    label = "DIST"
    origin = "through the correlations of its class probabilities"
    colors = ("#7a4fbf", "#b394ea")
    marker = "s"
    Settings = DISTConfig
    needs_classes = True
    of_logits = True

    def build(self, teacher: Frozen) -> None:
        """See :meth:`Distilled.build`."""
        settings = self.settings
        self.relations = TorchdistillLoss(
            self.name, "DISTLoss", beta=settings.beta, gamma=settings.gamma, tau=settings.temperature
        )

    def distance(
        self, student: Outputs, teacher: Outputs, labels: Tensor | None, generator: torch.Generator | None
    ) -> Tensor:
        """See :meth:`Distilled.distance`."""
        loss: Tensor = self.relations((student.logits, teacher.logits))
        return loss
