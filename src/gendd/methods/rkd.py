"""Distillation of the relations between images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gendd.config import check
from gendd.methods._logits import Distilled, Outputs
from gendd.methods._torchdistill import TorchdistillLoss
from gendd.models import Frozen


@dataclass
class RKDConfig:
    """Relational distillation (Park et al. 2019).

    Args:
        distance: Weight of the distances between two images, at least 0.
        angle: Weight of the angles between three images, at least 0; needs memory for B³ numbers.
        label_weight: Weight of the cross-entropy on the labels, at least 0; with 0 the
            backbone learns only from the teacher.
    """

    distance: float = 25.0
    angle: float = 50.0
    label_weight: float = 1.0

    def __post_init__(self) -> None:
        for key in ("distance", "angle", "label_weight"):
            check(getattr(self, key) >= 0, f"rkd.{key}", "a number of at least 0", getattr(self, key))
        check(
            self.distance + self.angle > 0,
            "rkd.distance",
            "a positive number where angle is 0",
            self.distance,
        )


class RKD(Distilled):
    """Relational distillation (Park et al. 2019): CE + distances and angles between features of a batch.

    With h the Huber loss, averaged over all B² pairs and B³ triples: h(|f_i - f_j| / μ, |f'_i - f'_j| / μ'),
    where μ is the mean nonzero distance, and h(cos ∠f_i f_j f_k, cos ∠f'_i f'_j f'_k) (arXiv:1904.05068).
    """

    name = "rkd"
    label = "RKD"
    origin = "through the distances and angles between its features"
    colors = ("#00798c", "#4cc3d6")
    marker = "h"
    Settings = RKDConfig

    def build(self, teacher: Frozen) -> None:
        """See :meth:`Distilled.build`."""
        self.relations = TorchdistillLoss(
            self.name,
            "RKDLoss",
            dist_factor=self.settings.distance,
            angle_factor=self.settings.angle,
            reduction="mean",
        )

    def distance(
        self, student: Outputs, teacher: Outputs, labels: Tensor | None, generator: torch.Generator | None
    ) -> Tensor:
        """See :meth:`Distilled.distance`."""
        loss: Tensor = self.relations((student.feature, teacher.feature))
        return loss
