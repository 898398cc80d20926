"""Regression of the teacher's feature."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gendd.config import check
from gendd.methods._logits import Distilled, Outputs
from gendd.models import Frozen


@dataclass
class FeatureMSEConfig:
    """Regression of the teacher's feature.

    Args:
        weight: Weight of the squared error, averaged over the feature; positive.
        label_weight: Weight of the cross-entropy on the labels, at least 0; with 0 the
            backbone learns only from the teacher.
    """

    weight: float = 1.0
    label_weight: float = 1.0

    def __post_init__(self) -> None:
        check(self.weight > 0, "feature_mse.weight", "a positive number", self.weight)
        check(self.label_weight >= 0, "feature_mse.label_weight", "a number of at least 0", self.label_weight)


class FeatureMSE(Distilled):
    """Regression of the teacher's feature (Romero et al. 2015): CE + squared error of a projection.

    With f the student's pooled feature (d), f' the teacher's (D) and P a linear projector, the distance is
    ‖P f - f'‖² / D, averaged over images; the hint of FitNets (arXiv:1412.6550) at the last layer.
    """

    name = "feature_mse"
    label = "feature regression"
    origin = "through its feature, by its squared error"
    colors = ("#6b4f3a", "#c2a184")
    marker = "H"
    Settings = FeatureMSEConfig

    def build(self, teacher: Frozen) -> None:
        """See :meth:`Distilled.build`."""
        self.projector = nn.Linear(self.backbone.feature_dim, teacher.feature_dim)

    def distance(
        self, student: Outputs, teacher: Outputs, labels: Tensor | None, generator: torch.Generator | None
    ) -> Tensor:
        """See :meth:`Distilled.distance`."""
        error = F.mse_loss(self.projector(student.feature).float(), teacher.feature.float())
        loss: Tensor = self.settings.weight * error
        return loss
