"""Regression of the direction of the teacher's feature."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gendd.config import check
from gendd.methods._logits import Distilled, Outputs
from gendd.models import Frozen


@dataclass
class FeatureCosineConfig:
    """Regression of the direction of the teacher's feature.

    Args:
        weight: Weight of the cosine distance, positive.
        label_weight: Weight of the cross-entropy on the labels, at least 0; with 0 the
            backbone learns only from the teacher.
    """

    weight: float = 1.0
    label_weight: float = 1.0

    def __post_init__(self) -> None:
        check(self.weight > 0, "feature_cosine.weight", "a positive number", self.weight)
        check(
            self.label_weight >= 0, "feature_cosine.label_weight", "a number of at least 0", self.label_weight
        )


class FeatureCosine(Distilled):
    """Regression of the direction of the teacher's feature: CE + cosine distance of a projection.

    With f the student's pooled feature (d), f' the teacher's (D) and P a linear projector, the distance is
    1 - cos(P f, f'), averaged over images.
    """

    name = "feature_cosine"
    label = "feature direction"
    origin = "through the direction of its feature"
    colors = ("#8c3f8c", "#d58ad5")
    marker = "8"
    Settings = FeatureCosineConfig

    def build(self, teacher: Frozen) -> None:
        """See :meth:`Distilled.build`."""
        self.projector = nn.Linear(self.backbone.feature_dim, teacher.feature_dim)

    def distance(
        self, student: Outputs, teacher: Outputs, labels: Tensor | None, generator: torch.Generator | None
    ) -> Tensor:
        """See :meth:`Distilled.distance`."""
        projected = self.projector(student.feature).float()
        cosine = F.cosine_similarity(projected, teacher.feature.float(), dim=-1)
        loss: Tensor = self.settings.weight * (1 - cosine).mean()
        return loss
