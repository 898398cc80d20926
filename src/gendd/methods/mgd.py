"""Masked generative distillation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gendd.config import check
from gendd.methods._logits import Distilled, Outputs
from gendd.models import Frozen


@dataclass
class MGDConfig:
    """Masked generative distillation (Yang et al. 2022).

    Args:
        weight: Weight of the squared error, summed over the map; positive.
        mask_ratio: Probability in [0, 1) that a position or channel of the student's map is masked. The
            authors mask 0.15 of the channels for classification, 0.65 of the positions for dense tasks.
        masked: Whether to mask ``positions`` or ``channels``.
        label_weight: Weight of the cross-entropy on the labels, at least 0; with 0 the
            backbone learns only from the teacher.
    """

    weight: float = 7e-5
    mask_ratio: float = 0.65
    masked: Literal["positions", "channels"] = "positions"
    label_weight: float = 1.0

    def __post_init__(self) -> None:
        check(self.weight > 0, "mgd.weight", "a positive number", self.weight)
        check(0 <= self.mask_ratio < 1, "mgd.mask_ratio", "a number in [0, 1)", self.mask_ratio)
        check(self.label_weight >= 0, "mgd.label_weight", "a number of at least 0", self.label_weight)


class MGD(Distilled):
    """MGD (Yang et al. 2022): CE + squared error of the teacher's map, generated from the masked student map.

    With S the student's map, aligned by a 1x1 convolution if the widths differ, M a random mask and G two
    3x3 convolutions with a ReLU between them, the distance is ‖T - G(M ⊙ S)‖², averaged over images
    (arXiv:2205.01529). The finer map is pooled to the grid of the other.
    """

    name = "mgd"
    label = "MGD"
    origin = "through its map, generated from the student's masked one"
    colors = ("#2f7d5d", "#6fc9a3")
    marker = "*"
    Settings = MGDConfig
    needs_maps = True
    reads_maps = True

    def build(self, teacher: Frozen) -> None:
        """See :meth:`Distilled.build`."""
        narrow, wide = self.backbone.map_dim, teacher.map_dim
        self.align = nn.Identity() if narrow == wide else nn.Conv2d(narrow, wide, 1)
        self.generation = nn.Sequential(
            nn.Conv2d(wide, wide, 3, padding=1), nn.ReLU(), nn.Conv2d(wide, wide, 3, padding=1)
        )

    def distance(
        self, student: Outputs, teacher: Outputs, labels: Tensor | None, generator: torch.Generator | None
    ) -> Tensor:
        """See :meth:`Distilled.distance`."""
        assert student.map is not None and teacher.map is not None
        (high, wide), (teacher_high, teacher_wide) = student.map.shape[2:], teacher.map.shape[2:]
        grid = min(high, teacher_high), min(wide, teacher_wide)
        source = F.adaptive_avg_pool2d(self.align(student.map), grid)
        target = F.adaptive_avg_pool2d(teacher.map, grid)
        count, channels = source.shape[:2]
        shape = (count, 1, *grid) if self.settings.masked == "positions" else (count, channels, 1, 1)
        kept = self.draw(torch.rand, shape, generator, source.device) >= self.settings.mask_ratio
        generated = self.generation(source * kept)
        error = F.mse_loss(generated.float(), target.float(), reduction="sum") / count
        loss: Tensor = self.settings.weight * error
        return loss
