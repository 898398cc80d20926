"""A custom method, attention transfer, in one file.

gendd distill --method examples/own_method.py:AttentionTransfer --attention_transfer.weight 500
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

import gendd
from gendd.config import check


@dataclass
class Settings:
    """Attention transfer.

    Args:
        weight: Weight of the distance between attention maps, positive.
    """

    weight: float = 1000.0

    def __post_init__(self) -> None:
        check(self.weight > 0, "attention_transfer.weight", "a positive number", self.weight)


class AttentionTransfer(gendd.Method):
    """Attention transfer (Zagoruyko & Komodakis 2017): CE + squared distance of attention maps."""

    name = "attention_transfer"
    label = "AT"
    origin = "through where its map is large"
    Settings = Settings
    needs_maps = True

    def forward(
        self, images: Tensor, labels: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> gendd.StepOutput:
        feature, student_map = self.backbone.with_map(images)
        logits = self.backbone.classifier(feature)
        _, _, teacher_map = self.teacher.with_map(images)
        grid = [min(sides) for sides in zip(student_map.shape[2:], teacher_map.shape[2:], strict=True)]
        distance = (attention(student_map, grid) - attention(teacher_map, grid)).pow(2).mean()
        cross_entropy = F.cross_entropy(logits.float(), self.labelled(labels))
        parts = {"attention": distance.detach(), "cross_entropy": cross_entropy.detach()}
        return gendd.StepOutput(cross_entropy + self.settings.weight * distance, logits, parts)


def attention(found: Tensor, grid: list[int]) -> Tensor:
    """Attention map: mean square over E, pooled to the grid; (B, E, h, w) -> unit vectors (B, positions)."""
    energy = F.adaptive_avg_pool2d(found.float().pow(2).mean(1, keepdim=True), grid)
    return F.normalize(energy.flatten(1), dim=1)
