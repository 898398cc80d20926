from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from helpers import READOUTS, make_student, rgb_images, seeded
from torch import nn

from gendd.config import ReadoutConfig, ReadoutName
from gendd.deploy import Deployed, deploy
from gendd.deploy.deployed import FixedSamples
from gendd.diffusion.head import _FREQUENCIES
from gendd.errors import UserError
from gendd.models import count_parameters, wrap
from gendd.student import Student

SAMPLERS: list[dict[str, Any]] = [
    {"sampler": "ddpm"},
    {"sampler": "ddim"},
    {"sampler": "ddim", "eta": 0.7},
    {"sampler": "dpm-solver"},
]


@pytest.mark.parametrize("readout", ["linear", "mean"])
def test_a_deployed_student_gives_the_student_s_logits(readout: ReadoutName) -> None:
    student = make_student()
    student.readout = readout
    deployed = deploy(student)
    assert isinstance(deployed, Deployed) and deployed.readout == readout
    torch.testing.assert_close(deployed(rgb_images()), student(rgb_images()))
    assert not any(module.training for module in deployed.modules())
    assert not any(parameter.requires_grad for parameter in deployed.parameters())


@pytest.mark.parametrize("settings", SAMPLERS)
def test_a_deployed_sampler_is_the_student_s_with_its_noise_fixed(settings: dict[str, Any]) -> None:
    config = ReadoutConfig("sample", steps=4, guidance=2.0, num_samples=3, **settings)
    student = make_student(readout=config)
    deployed = deploy(student, seed=5)
    reader = deployed.reader
    assert isinstance(reader, FixedSamples) and student.generator is not None
    assert reader.start.shape == (3, 1, 3, 4)
    noisy = settings["sampler"] == "ddpm" or "eta" in settings
    assert reader.step_noise.shape == ((3, 3, 1, 3, 4) if noisy else (0,))
    whole = rgb_images()
    logits = deployed(whole)
    assert logits.shape == (3, 5)
    # deterministic, and independent of the batch
    assert torch.equal(deployed(whole), logits)
    alone = torch.cat([deployed(whole[index : index + 1]) for index in range(3)])
    torch.testing.assert_close(alone, logits, rtol=0, atol=1e-4 * float(logits.abs().max()))
    assert torch.equal(deploy(student, seed=5)(whole), logits)
    assert (deploy(student, seed=6)(whole) - logits).abs().max() > 1e-3
    # of one image, the noise is what the student draws
    one = whole[:1]
    expected = student.logits(student.features(one), generator=seeded(5))
    torch.testing.assert_close(deployed(one), expected)


def test_a_copy_is_deployed() -> None:
    student = make_student()
    expected = student(rgb_images())
    for readout in READOUTS:
        for parameter in deploy(student, readout).parameters():
            parameter.zero_()
    torch.testing.assert_close(student(rgb_images()), expected)


def test_only_what_the_readout_needs_is_deployed() -> None:
    student = make_student()
    linear = deploy(student, "linear")
    # of a norm's scale and shift only a convolution's bias remains
    norms = [module for module in student.backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    scales = sum(norm.num_features for norm in norms)
    assert count_parameters(linear) == count_parameters(student.backbone) - scales
    assert linear.reader is linear.backbone.classifier


def test_a_readout_that_is_missing_is_told() -> None:
    with pytest.raises(UserError, match=r"this student has linear \(it has no generator\), got 'mean'"):
        deploy(make_student(generative=False), "mean")


def test_noise_is_given_or_drawn() -> None:
    student = make_student()
    assert student.generator is not None
    condition = torch.randn(2, student.backbone.feature_dim, generator=seeded())
    rows = 3 * 2 * 3
    random = seeded(1)
    start = torch.randn(rows, 4, generator=random)
    noise = [torch.randn(rows, 4, generator=random) for _ in range(4)]
    given = student.generator.sample(condition, steps=5, num_samples=3, start=start, step_noise=noise)
    drawn = student.generator.sample(condition, steps=5, num_samples=3, generator=seeded(1))
    assert torch.equal(given, drawn)


@pytest.mark.parametrize("settings", SAMPLERS[1:3])
def test_a_deployed_sampler_can_be_traced(settings: dict[str, Any]) -> None:
    config = ReadoutConfig("sample", steps=2, num_samples=2, **settings)
    student = make_student(readout=config)
    # tensors cached by eager code must not come from the trace
    _FREQUENCIES.clear()
    deployed = deploy(student)
    batch = torch.export.Dim("batch")
    program = torch.export.export(deployed, (rgb_images()[:2],), dynamic_shapes=({0: batch},))
    torch.testing.assert_close(program.module()(rgb_images()), deployed(rgb_images()))
    assert student(rgb_images()).isfinite().all()


class Forking(nn.Module):
    """A network whose feature has to be found."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(self.body(x))
        return logits


def test_a_network_whose_feature_was_found_can_be_traced_and_copied() -> None:
    student = Student(wrap(Forking(), in_channels=3, input_size=8)).eval()
    deployed = deploy(student)
    program = torch.export.export(deployed, (rgb_images(),))
    expected = student(rgb_images())
    torch.testing.assert_close(program.module()(rgb_images()), expected)
    copied = copy.deepcopy(deployed)
    for parameter in deployed.parameters():
        parameter.zero_()
    assert not torch.equal(deployed(rgb_images()), expected)
    torch.testing.assert_close(copied(rgb_images()), expected)
