"""Networks and students of linear maps, which cost nothing to run."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import gendd
from gendd.config import GenDDConfig
from gendd.models import Backbone
from gendd.student.generator import FeatureGenerator

CLASSES = 10


class Flat(nn.Module):
    """A network whose feature is a linear map of the image."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.map = nn.Linear(64, width)
        self.fc = nn.Linear(width, classes)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.map(x.flatten(1))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return x if pre_logits else self.fc(x)

    def get_classifier(self) -> nn.Module:
        return self.fc


def flat(width: int, seed: int, classes: int = CLASSES, classifier: bool = True) -> Backbone:
    torch.manual_seed(seed)
    net = Flat(width, classes)
    return Backbone(
        net,
        name="flat",
        in_channels=1,
        mean=[0.0],
        std=[1.0],
        image_size=(8, 8),
        classifier=classifier,
        feature_dim=None if classifier else width,
    )


def student(classifier: bool = False, linear: bool = True) -> gendd.Student:
    backbone = flat(24, 0)
    config = GenDDConfig(token_width=8, head_width=16, head_depth=1, timesteps=20)
    generator = FeatureGenerator(24, 16, config)
    reader = nn.Linear(16, CLASSES).requires_grad_(False) if classifier else None
    return gendd.Student(backbone, generator, reader, linear=linear).eval()
