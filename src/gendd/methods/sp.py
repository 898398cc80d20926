"""Distillation of the similarities between images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from gendd.config import check
from gendd.methods._logits import Distilled, Outputs


@dataclass
class SPConfig:
    """Similarity-preserving distillation (Tung & Mori 2019).

    Args:
        weight: Weight of the distance between similarities, positive.
        label_weight: Weight of the cross-entropy on the labels, at least 0; with 0 the
            backbone learns only from the teacher.
    """

    weight: float = 3000.0
    label_weight: float = 1.0

    def __post_init__(self) -> None:
        check(self.weight > 0, "sp.weight", "a positive number", self.weight)
        check(self.label_weight >= 0, "sp.label_weight", "a number of at least 0", self.label_weight)


class SP(Distilled):
    """Similarity-preserving distillation (Tung & Mori 2019): CE + distance of the images' Gram matrices.

    With Q (B, E·h·w) the last map, or the feature of a network without one, and G the matrix QQᵀ with rows
    scaled to length 1, the distance is ‖G - G'‖² / B² (arXiv:1907.09682).
    """

    name = "sp"
    label = "SP"
    origin = "through the similarities between its maps"
    colors = ("#5a5fb0", "#9ca1ee")
    marker = ">"
    Settings = SPConfig
    reads_maps = True

    def distance(
        self, student: Outputs, teacher: Outputs, labels: Tensor | None, generator: torch.Generator | None
    ) -> Tensor:
        """See :meth:`Distilled.distance`."""
        gap = _similarities(student) - _similarities(teacher)
        loss: Tensor = self.settings.weight * gap.pow(2).mean()
        return loss


def _similarities(given: Outputs) -> Tensor:
    """G (B, B) of a network's outputs, in float32."""
    # not torchdistill's SPKDLoss, which scales rows to an absolute sum of 1 instead
    rows = (given.feature if given.map is None else given.map).float().flatten(1)
    with torch.autocast(rows.device.type, enabled=False):
        return F.normalize(rows @ rows.T, dim=1)
