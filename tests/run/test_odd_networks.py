from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import TINY
from torch import nn

from gendd.cli import main
from gendd.models import create_backbone, multiply_adds
from gendd.training.callbacks import WarmAverage

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--teacher=timm/test_convnext"],
            "teacher.input_size: expected a size that timm/test_convnext takes",
        ),
        (
            ["--student=timm/test_convnext"],
            "student.input_size: expected a size that timm/test_convnext takes",
        ),
    ],
)
def test_images_too_small_for_a_network_are_said_at_once(
    options: list[str], message: str, tmp_path: Path, capsys: Capture
) -> None:
    words = [word for word in TINY if word.split("=")[0].removesuffix(".name") != options[0].split("=")[0]]
    assert main(["distill", "--out", str(tmp_path / "run"), *words, *options]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"gendd: {message}, as it can't take images of 8 pixels, but of 32 (")
    assert not (tmp_path / "run").exists()


def test_a_batch_of_one_image(tmp_path: Path, capsys: Capture) -> None:
    words = ["train", "--out", str(tmp_path / "run"), "--student", "timm/test_resnet", "--data.batch_size=1"]
    options = ["--data.train_images=20", "--training.epochs=1", "--training.progress=false"]
    assert main([*words, *options]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("gendd: data.batch_size: expected at least 2 images for a network with BatchNorm")


def test_costs_of_a_network_that_hands_parameters_to_its_parts() -> None:
    backbone = create_backbone("timm/test_vit3", 5)  # attention pooling: a learned query
    assert multiply_adds(backbone.net, torch.rand(1, 3, 160, 160)) > 10**7
    assert all(parameter.requires_grad for parameter in backbone.parameters())


def test_an_average_follows_the_weights_at_first() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    callback = WarmAverage(torch.device("cpu"), 0.999)
    average = torch.optim.swa_utils.AveragedModel(model, use_buffers=True, **callback._kwargs)
    expected = model[0].weight.detach().clone()
    average.update_parameters(model)  # the first is a copy
    for updates in range(1, 40):
        with torch.no_grad():
            model[0].weight.add_(1)
            model[1].num_batches_tracked.add_(1)
        average.update_parameters(model)
        decay = min(0.999, (1 + updates) / (10 + updates))
        expected = decay * expected + (1 - decay) * model[0].weight.detach()
    torch.testing.assert_close(average.module[0].weight.detach(), expected)
    assert int(average.module[1].num_batches_tracked) == 39
    # a constant decay of 0.999 would have moved it by less than one
    assert float((model[0].weight - average.module[0].weight).detach().mean()) < 12
