"""Shared test objects: random images, generators, small students, exact heads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from gendd.config import GenDDConfig, ReadoutConfig, ReadoutName
from gendd.errors import UserError
from gendd.models import create_backbone
from gendd.student import Student
from gendd.student.generator import FeatureGenerator

READOUTS: list[ReadoutName] = ["linear", "mean", "sample"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int = 8, seed: int = 0, *, channels: int = 1, side: int = 8) -> Tensor:
    return torch.rand(count, channels, side, side, generator=seeded(seed))


def rgb_images() -> Tensor:
    return images(3, 1, channels=3)


def make_student(generative: bool = True, readout: ReadoutConfig | None = None) -> Student:
    torch.manual_seed(0)
    backbone = create_backbone("cifar/resnet8x0.5", 5, mean=[0.1, 0.2, 0.3], std=[0.5, 0.6, 0.7])
    info = {"classes": ["a", "b", "c", "d", "é"], "image_size": 8}
    if not generative:
        return Student(backbone, readout=readout, info=info).eval()
    settings = GenDDConfig(
        token_width=4,
        head_width=16,
        head_depth=1,
        timesteps=20,
        learned_variance=True,
        condition_dropout=0.1,
    )
    generator = FeatureGenerator(backbone.feature_dim, 10, settings)
    generator.set_statistics(torch.arange(10.0), torch.arange(10.0) + 1)
    student = Student(backbone, generator, nn.Linear(10, 5), readout, info)
    return student.requires_grad_(False).eval()


def bare(linear: bool = False) -> Student:
    """A student of a teacher without a classifier."""
    whole = make_student()
    return Student(whole.backbone, whole.generator, linear=linear, info=whole.info).eval()


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    message = str(error.value)
    assert "\n" not in message and len(message) < 700
    return message


class Waits(nn.Module):
    """A network that synchronises with the device."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 8, 3)
        self.fc = nn.Linear(8, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.body(images).mean((2, 3))
        return self.fc(x * 2 if float(x.detach().mean()) > 1e6 else x)
