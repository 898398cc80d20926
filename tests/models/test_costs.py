from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gendd.models import count_parameters, create_backbone, multiply_adds, timings


def test_parameters_of_a_linear_and_a_shared_layer() -> None:
    layer = nn.Linear(3, 5)
    assert count_parameters(layer) == 20
    assert count_parameters(nn.Sequential(layer, nn.BatchNorm1d(5), layer)) == 30


def test_multiply_adds_of_a_convolution_and_a_linear_layer() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))
    assert multiply_adds(net, torch.rand(1, 3, 6, 6)) == 36 * 8 * 3 * 9 + 8 * 36 * 10
    assert multiply_adds(net, torch.rand(4, 3, 6, 6)) == 36 * 8 * 3 * 9 + 8 * 36 * 10


class Attention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x)


def test_multiply_adds_of_attention() -> None:
    # Two products of 6x4 with 4x6 size, on each of 3 heads.
    assert multiply_adds(Attention(), torch.rand(1, 3, 6, 4)) == 2 * 3 * 6 * 6 * 4


def test_multiply_adds_of_a_fused_transformer_layer() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, batch_first=True)
    tokens, width = 6, 8
    projections = tokens * width * (4 * width + 2 * 16)
    assert multiply_adds(layer, torch.rand(1, tokens, width)) == projections + 2 * tokens * tokens * width


def test_multiply_adds_of_resnet20_are_the_papers_41_million() -> None:
    assert multiply_adds(create_backbone("cifar/resnet20", 10), torch.rand(1, 3, 32, 32)) == pytest.approx(
        41e6, rel=0.02
    )


def test_multiply_adds_leave_the_module_as_it_was() -> None:
    norm, dropout = nn.BatchNorm2d(4), nn.Dropout().eval()
    net = nn.Sequential(nn.Conv2d(3, 4, 1), norm, dropout)
    multiply_adds(net, torch.rand(1, 3, 4, 4))
    assert [part.training for part in net.modules()] == [True, True, True, False]
    assert norm.running_mean is not None and not norm.running_mean.any()


def test_times_are_those_of_an_image_without_the_warmup(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[bool] = []
    clock = 0.0

    def fn(images: Tensor) -> None:
        nonlocal clock
        calls.append(torch.is_grad_enabled())
        clock += 8.0 if len(calls) in (1, 2, 5) else 2.0

    monkeypatch.setattr("gendd.models.costs.time.perf_counter", lambda: clock)
    seconds = timings(fn, torch.rand(4, 1, 2, 2), warmup=2, repeats=5)
    assert len(calls) == 7 and not any(calls)
    assert seconds == [2.0 / 4, 2.0 / 4, 8.0 / 4, 2.0 / 4, 2.0 / 4]
