"""Distillation through a projector of the feature."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gendd.config import check
from gendd.methods._logits import Distilled, Outputs
from gendd.methods._torchdistill import TorchdistillLoss
from gendd.models import Frozen

EPSILON = 1e-4


@dataclass
class SRDConfig:
    """Simple recipe distillation (Miles & Mikolajczyk 2024).

    Args:
        exponent: α of the distance between features, positive.
        temperature: τ of the divergence of the logits, positive.
        weight: Weight of both terms, positive.
        label_weight: Weight of the cross-entropy on the labels, at least 0; with 0 no labels are used.
    """

    exponent: float = 4.0
    temperature: float = 1.0
    weight: float = 1.0
    label_weight: float = 1.0

    def __post_init__(self) -> None:
        for key in ("exponent", "temperature", "weight"):
            check(getattr(self, key) > 0, f"srd.{key}", "a positive number", getattr(self, key))
        check(self.label_weight >= 0, "srd.label_weight", "a number of at least 0", self.label_weight)


class SRD(Distilled):
    """SRD (Miles & Mikolajczyk 2024): CE + log-sum distance of projected, normalised features + KL.

    With f the student's feature, f' the teacher's, P a linear projector and N normalisation over the batch
    (no scale, no shift), the distance is 2 log Σ |N(P f) - N(f')|^α + KL at τ; the sum is over the batch
    and the feature, the divergence is averaged over images (arXiv:2303.11098).
    """

    name = "srd"
    label = "SRD"
    origin = "through its feature, with a linear projector"
    colors = ("#c0392b", "#f0867a")
    marker = "p"
    Settings = SRDConfig
    needs_classes = True
    of_logits = True

    def build(self, teacher: Frozen) -> None:
        """See :meth:`Distilled.build`."""
        # no bias, which the normalisation would remove
        self.projector = nn.Linear(self.backbone.feature_dim, teacher.feature_dim, bias=False)
        self.matching = TorchdistillLoss(
            self.name, "SRDLoss", exponent=self.settings.exponent, temperature=self.settings.temperature
        )

    def distance(
        self, student: Outputs, teacher: Outputs, labels: Tensor | None, generator: torch.Generator | None
    ) -> Tensor:
        """See :meth:`Distilled.distance`."""
        features = [
            F.batch_norm(feature.float(), None, None, training=True, eps=EPSILON)
            for feature in (self.projector(student.feature), teacher.feature)
        ]
        loss: Tensor = self.settings.weight * self.matching(
            (features[0], features[1]), (student.logits, teacher.logits)
        )
        return loss
