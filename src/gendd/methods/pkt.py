"""Distillation of the similarities between images, as probabilities."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gendd.config import check
from gendd.methods._logits import Distilled, Outputs
from gendd.methods._torchdistill import TorchdistillLoss
from gendd.models import Frozen


@dataclass
class PKTConfig:
    """Probabilistic knowledge transfer (Passalis & Tefas 2018), with the weight of Tian et al. (2020).

    Args:
        weight: Weight of the divergence, averaged over B² pairs of images; positive.
        label_weight: Weight of the cross-entropy on the labels, at least 0; with 0 no labels are used, as
            originally published.
    """

    weight: float = 30_000.0
    label_weight: float = 1.0

    def __post_init__(self) -> None:
        check(self.weight > 0, "pkt.weight", "a positive number", self.weight)
        check(self.label_weight >= 0, "pkt.label_weight", "a number of at least 0", self.label_weight)


class PKT(Distilled):
    """PKT (Passalis & Tefas 2018): CE + KL of the similarities between the features of a batch.

    With s_ij = (cos(f_i, f_j) + 1) / 2 and p_ij = s_ij / Σ_j s_ij, the distance is the mean over all pairs
    of p'_ij log(p'_ij / p_ij), where p' are the teacher's (arXiv:1803.10837).
    """

    name = "pkt"
    label = "PKT"
    origin = "through the similarities between its features"
    colors = ("#8a6d00", "#d4b43c")
    marker = "<"
    Settings = PKTConfig

    def build(self, teacher: Frozen) -> None:
        """See :meth:`Distilled.build`."""
        self.similarities = TorchdistillLoss(self.name, "PKTLoss")

    def distance(
        self, student: Outputs, teacher: Outputs, labels: Tensor | None, generator: torch.Generator | None
    ) -> Tensor:
        """See :meth:`Distilled.distance`."""
        loss: Tensor = self.settings.weight * self.similarities((student.feature, teacher.feature))
        return loss
