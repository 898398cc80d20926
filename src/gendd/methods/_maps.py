"""Dense supervision: the teacher's maps, regressed at every position from the student's.

Shapes: B images · d student feature · D teacher feature · E, h, w channels and grid of a map.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gendd.models import Backbone, Frozen
from gendd.models.maps import thinned
from gendd.models.projector import (
    Projected,
    Projector,
    one_grid,
    pools_its_map,
    project,
    projector_width,
    unprojected,
)

# stages before the last map that are regressed too, thinned: more positions cost time and add little
_STAGES = 2


class MapLosses(NamedTuple):
    """Scalars, each an error relative to the variance of what is regressed.

    Attributes:
        map: Of the last map, and of the pooled feature where that is none of the map's mean.
        stages: Mean of those of the stages before; None without any.
    """

    map: Tensor
    stages: Tensor | None


class MapRegression(nn.Module):
    """What maps of a student to those of a teacher.

    Only training uses it, but for a projector that is part of the student: then the student's feature, the
    mean of the projected map, is an estimate of the teacher's feature.

    Args:
        backbone: The student, with a map.
        teacher: With a map.
        hidden: Channels between the projector's convolutions; None: :func:`projector_width`.
        deployed: Whether the projector is part of the student.

    Attributes:
        student: The student as it is trained and deployed.
        hidden: Channels between the convolutions of the projector that is part of it; 0 without one.
        asked: The stage maps that it takes of both networks, see :meth:`Backbone.with_stages`.
    """

    def __init__(self, backbone: Backbone, teacher: Frozen, hidden: int | None, deployed: bool) -> None:
        super().__init__()
        classes = backbone.num_classes
        backbone = unprojected(backbone) if deployed else backbone
        width = teacher.feature_dim if deployed else teacher.map_dim
        hidden = projector_width(backbone, width) if hidden is None else hidden
        self.pools = pools_its_map(teacher.backbone)
        found = teacher.backbone.on_noise()[1]
        assert found is not None
        rectified = self.pools and bool((found >= 0).all())
        shapes = zip(reversed(backbone.stage_shapes), reversed(teacher.backbone.stage_shapes), strict=False)
        pairs = list(shapes)[:_STAGES]
        self.stages = nn.ModuleList(nn.Conv2d(own[0], other[0], 1) for own, other in pairs)
        # maps of different grids are pooled to one before they are thinned
        self.asked = tuple(own[1:] == other[1:] for own, other in reversed(pairs))
        self.adapter: nn.Module | None = None
        student = backbone
        if not deployed:
            self.adapter = Projector(backbone.map_dim, width, hidden, rectified)
        else:
            student = project(backbone, width, hidden, classes, rectified)
            if not self.pools:
                self.adapter = nn.Conv2d(hidden, teacher.map_dim, 1)
        self.hidden = hidden if deployed else 0
        # in a tuple: it is a submodule of the method
        self._student = (student,)

    @property
    def student(self) -> Backbone:
        """The student as it is trained and deployed."""
        return self._student[0]

    def forward(
        self,
        feature: Tensor,
        found: Tensor,
        stages: list[Tensor],
        teacher_feature: Tensor,
        teacher_map: Tensor,
        teacher_stages: list[Tensor],
    ) -> MapLosses:
        """Losses of what :meth:`Backbone.with_stages` gives of student and teacher, finest stages first."""
        if self.adapter is not None:
            predicted = self.adapter(found)
        else:
            net = self.student.net
            assert isinstance(net, Projected)
            predicted = net.expanded(found)
        loss = _error(*one_grid(predicted.float(), teacher_map.float()))
        if isinstance(self.student.net, Projected) and not self.pools:
            loss = loss + _error(feature.float(), teacher_feature.float())
        errors = [
            _error(*_standard(*map(thinned, one_grid(own, other))), layer)
            for layer, own, other in zip(
                self.stages, reversed(stages), reversed(teacher_stages), strict=False
            )
        ]
        return MapLosses(loss, torch.stack(errors).mean() if errors else None)


def _error(predicted: Tensor, target: Tensor, layer: nn.Module | None = None) -> Tensor:
    """Squared error relative to the target's variance, a scalar; of what a layer makes of the prediction."""
    if layer is not None:
        predicted = layer(predicted).float()
    return F.mse_loss(predicted, target) / target.var().clamp(min=1e-12)


def _standard(own: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """A map as it is, and another with each channel standardised over the batch."""
    return own, F.batch_norm(other.float(), None, None, training=True)
