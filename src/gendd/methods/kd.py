"""Logit distillation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gendd.config import check
from gendd.errors import UserError
from gendd.methods._labels import label_loss
from gendd.methods.base import Method, StepOutput
from gendd.models import Backbone, Frozen


@dataclass
class KDConfig:
    """Logit distillation (Hinton et al. 2015): (1-w) CE + w τ² KL(teacher ‖ student) at temperature τ.

    Args:
        temperature: τ, positive.
        weight: w in [0, 1]; with 1 no labels are used.
    """

    temperature: float = 4.0
    weight: float = 0.9

    def __post_init__(self) -> None:
        check(self.temperature > 0, "kd.temperature", "a positive number", self.temperature)
        check(0 <= self.weight <= 1, "kd.weight", "a number in [0, 1]", self.weight)


def divergence(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """τ² KL(teacher ‖ student) of logits (B, K) at temperature τ, averaged over images, a scalar."""
    return temperature**2 * F.kl_div(
        F.log_softmax(logits.float() / temperature, dim=-1),
        F.log_softmax(teacher_logits.float() / temperature, dim=-1),
        reduction="batchmean",
        log_target=True,
    )


class KD(Method):
    """Logit distillation (Hinton et al. 2015): (1-w) CE + w τ² KL(teacher ‖ student) at temperature τ."""

    name = "kd"
    label = "KD"
    origin = "through its logits"
    colors = ("#008a64", "#2bb890")
    marker = "D"
    Settings = KDConfig
    needs_classes = True
    takes_unknown = True

    def __init__(
        self,
        backbone: Backbone,
        teacher: Backbone | Frozen,
        settings: Any = None,
        *,
        labels: bool | None = None,
    ) -> None:
        # set before the base class checks the teacher
        self.needs_labels = (settings or self.Settings()).weight < 1
        super().__init__(backbone, teacher, settings, labels=labels)

    def forward(
        self, images: Tensor, labels: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> StepOutput:
        """See :meth:`Method.forward`; raises :class:`UserError` if labels are needed but missing."""
        assert self.teacher is not None
        temperature, weight = self.settings.temperature, self.settings.weight
        if self.needs_labels and labels is None:
            raise UserError(
                f"KD with weight {weight}: expected labels, got none. Use kd.weight 1 or method kl."
            )
        _, teacher_logits = self.teacher(images)
        _, logits = self.backbone(images)
        distance = divergence(logits, teacher_logits, temperature)
        parts = {"kl": distance.detach()}
        loss = weight * distance
        if self.needs_labels:
            assert labels is not None
            cross_entropy = label_loss(logits, labels)
            loss = loss + (1 - weight) * cross_entropy
            parts["cross_entropy"] = cross_entropy.detach()
        return StepOutput(loss, logits, parts)
