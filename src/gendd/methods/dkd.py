"""Decoupled logit distillation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gendd.config import check
from gendd.methods._logits import Distilled, Outputs
from gendd.methods.kd import divergence


@dataclass
class DKDConfig:
    """Decoupled logit distillation (Zhao et al. 2022).

    Args:
        temperature: τ, positive.
        alpha: Weight of the divergence between the target class and all others, at least 0.
        beta: Weight of the divergence among the other classes, at least 0.
        label_weight: Weight of the cross-entropy on the labels, at least 0. Labels are needed even with 0.
    """

    temperature: float = 4.0
    alpha: float = 1.0
    beta: float = 8.0
    label_weight: float = 1.0

    def __post_init__(self) -> None:
        check(self.temperature > 0, "dkd.temperature", "a positive number", self.temperature)
        for key in ("alpha", "beta", "label_weight"):
            check(getattr(self, key) >= 0, f"dkd.{key}", "a number of at least 0", getattr(self, key))


class DKD(Distilled):
    """DKD (Zhao et al. 2022): CE + separately weighted divergences of the target class and of the others.

    With p the probabilities at temperature τ and t the class of the label (for mixed labels, the largest),
    the distance is τ² (α KL((p'_t, 1 - p'_t) ‖ (p_t, 1 - p_t)) + β KL(q' ‖ q)), where q are the probabilities
    of the classes other than t, renormalised (arXiv:2203.08679). β is not warmed up.
    """

    name = "dkd"
    label = "DKD"
    origin = "through its logits, the labelled class apart from the others"
    colors = ("#a8324a", "#ee7f95")
    marker = "X"
    Settings = DKDConfig
    needs_classes = True
    of_logits = True
    of_labels = True

    def distance(
        self, student: Outputs, teacher: Outputs, labels: Tensor | None, generator: torch.Generator | None
    ) -> Tensor:
        """See :meth:`Distilled.distance`."""
        assert labels is not None
        target = labels if labels.dim() == 1 else labels.argmax(-1)
        tau, alpha, beta = self.settings.temperature, self.settings.alpha, self.settings.beta
        two, others = _decoupled(student.logits.float() / tau, target)
        teacher_two, teacher_others = _decoupled(teacher.logits.float() / tau, target)
        apart, among = divergence(two, teacher_two, 1.0), divergence(others, teacher_others, 1.0)
        loss: Tensor = tau**2 * (alpha * apart + beta * among)
        return loss


def _decoupled(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (B, K), classes (B,) -> logits of the class and of all others as one (B, 2), others (B, K-1)."""
    target = target[:, None]
    order = torch.arange(logits.shape[1] - 1, device=logits.device)
    others = logits.gather(1, order + (order >= target))
    return torch.cat([logits.gather(1, target), others.logsumexp(-1, keepdim=True)], dim=-1), others
