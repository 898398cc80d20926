"""Reuse of the teacher's classifier on a projection of the student's map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gendd.config import check
from gendd.errors import UserError
from gendd.methods.base import Method, StepOutput
from gendd.models import Backbone, Frozen
from gendd.models.projector import one_grid, pools_its_map, project


@dataclass
class SimKDConfig:
    """SimKD (Chen et al. 2022).

    Args:
        factor: The projector's hidden channels are the teacher's channels divided by this; positive.
    """

    factor: int = 2

    def __post_init__(self) -> None:
        check(self.factor >= 1, "simkd.factor", "a positive integer", self.factor)


class SimKD(Method):
    """SimKD (Chen et al. 2022): squared error between the projected student map and the teacher's; no labels.

    The projector and the teacher's frozen classifier become parts of the student. Maps of different sizes
    are pooled to the smaller grid (arXiv:2203.14001).
    """

    name = "simkd"
    label = "SimKD"
    origin = "through its last map, with its classifier"
    colors = ("#8a5a00", "#d9a441")
    marker = "X"
    Settings = SimKDConfig
    needs_labels = False
    needs_classes = True
    takes_unknown = True
    needs_maps = True

    def __init__(
        self,
        backbone: Backbone,
        teacher: Backbone | Frozen,
        settings: Any = None,
        *,
        labels: bool | None = None,
    ) -> None:
        super().__init__(backbone, teacher, settings, labels=labels)
        assert self.teacher is not None
        if not pools_its_map(self.teacher.backbone):
            raise UserError(
                "SimKD: expected a teacher whose feature is the mean of its map, got "
                f"{self.teacher.backbone.name}, whose feature is another; use method gendd."
            )
        width = self.teacher.feature_dim
        hidden = max(1, width // self.settings.factor)
        self.backbone = project(backbone, width, hidden, self.teacher.num_classes)
        self.backbone.take_classifier(self.teacher.classifier)

    def forward(
        self, images: Tensor, labels: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> StepOutput:
        """See :meth:`Method.forward`."""
        assert self.teacher is not None
        _, _, target = self.teacher.with_map(images)
        feature, projected = self.backbone.with_map(images)
        assert target is not None and projected is not None
        loss = F.mse_loss(*one_grid(projected.float(), target.float()))
        return StepOutput(loss, self.backbone.classifier(feature), {"map": loss.detach()})
