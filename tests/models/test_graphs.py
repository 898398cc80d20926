"""Passes of frozen networks from CUDA graphs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import Waits
from torch import Tensor

import gendd
from gendd.models import Frozen, create_backbone
from gendd.models.graphs import GraphedPasses

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_on_a_cpu_a_function_runs_as_it_is() -> None:
    seen = []

    def function(images: Tensor) -> tuple[Tensor, None]:
        seen.append(images)
        return images * 2, None

    passes, images = GraphedPasses(), torch.rand(2, 3)
    for _ in range(5):
        doubled, nothing = passes("double", function, images)
        assert torch.equal(doubled, images * 2) and nothing is None
    assert all(each is images for each in seen) and len(seen) == 5


def _teacher() -> tuple[Frozen, Frozen]:
    torch.manual_seed(0)
    graphed = Frozen(create_backbone("cifar/resnet20", 10)).cuda()
    torch.manual_seed(0)
    plain = Frozen(create_backbone("cifar/resnet20", 10)).cuda()
    plain._passes._refused = True
    return graphed, plain


def _tensors(found: Any) -> list[Tensor]:
    if isinstance(found, Tensor):
        return [found]
    return [] if found is None else [tensor for each in found for tensor in _tensors(each)]


@needs_cuda
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("kind", ["forward", "with_map", "with_stages"])
def test_a_graphed_teacher_says_what_it_says_without(kind: str, autocast: bool) -> None:
    graphed, plain = _teacher()
    kept = []
    with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
        for step in range(6):
            size = 8 if step != 4 else 5
            images = torch.rand(size, 3, 32, 32, device="cuda").to(memory_format=torch.channels_last)
            found, expected = getattr(graphed, kind)(images), getattr(plain, kind)(images)
            kept.append((_tensors(found), _tensors(expected)))
    assert len(graphed._passes._captured) == 1
    # returned outputs are not overwritten by later passes
    for found, expected in kept:
        assert len(found) == len(expected) > 1
        for one, other in zip(found, expected, strict=True):
            assert one.dtype == other.dtype and torch.allclose(one, other, atol=1e-5, rtol=1e-4)


@needs_cuda
def test_graphs_follow_weights_that_change_and_networks_that_move() -> None:
    graphed, plain = _teacher()
    images = torch.rand(4, 3, 32, 32, device="cuda")
    for _ in range(4):
        graphed(images)
    for teacher in (graphed, plain):
        with torch.no_grad():
            teacher.classifier.bias.add_(1.0)
    assert torch.allclose(graphed(images)[1], plain(images)[1], atol=1e-5)
    graphed.cpu()
    assert not graphed._passes._captured
    # convolutions on CUDA round to TF32
    assert torch.allclose(graphed(images.cpu())[1], plain(images)[1].cpu(), atol=2e-2)


@needs_cuda
def test_a_network_that_waits_for_the_device_is_not_graphed() -> None:
    torch.manual_seed(0)
    teacher = Frozen(gendd.wrap(Waits(), input_size=16)).cuda()
    images = torch.rand(4, 3, 16, 16, device="cuda")
    first = teacher(images)[1]
    for _ in range(4):
        assert torch.allclose(teacher(images)[1], first)
    assert not teacher._passes._captured
    assert torch.allclose(torch.ones(3, device="cuda").sum(), torch.tensor(3.0, device="cuda"))
