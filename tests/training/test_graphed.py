"""Training steps recorded as CUDA graphs."""

from __future__ import annotations

import random
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Waits
from torch import Tensor, nn
from torch.nn import functional as F

import gendd
from gendd.config import DataConfig, RunConfig, TrainingConfig, from_dict
from gendd.data import load_data
from gendd.methods import Method, StepOutput, build_method
from gendd.models import Frozen, create_backbone
from gendd.models.view import View
from gendd.training import GraphedSteps, fit
from gendd.training.graphed import _drawn_on_cpu

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

METHODS: dict[str, dict[str, Any]] = {
    "supervised": {"method": "supervised"},
    "kd": {"method": "kd"},
    "simkd": {"method": "simkd"},
    # their losses multiply matrices in float32 whatever the precision
    "sp": {"method": "sp"},
    "pkt": {"method": "pkt"},
    "gendd": {"method": "gendd"},
    "published": {
        "method": "gendd",
        "gendd": {"map_weight": 0, "token_width": 16, "mixup": 0.4, "condition_dropout": 0.2},
    },
}


def _method(settings: dict[str, Any], net: nn.Module | None = None) -> Method:
    torch.manual_seed(0)
    student = create_backbone("cifar/resnet8", 10) if net is None else gendd.wrap(net, input_size=32)
    teacher = Frozen(create_backbone("cifar/resnet14", 10))
    return build_method(from_dict(settings, RunConfig), student, teacher, True)


def _trained(
    method: Method,
    device: str,
    graphs: bool,
    steps: int = 8,
    autocast: torch.dtype | None = None,
    on_step: Callable[[int], None] = lambda step: None,
) -> tuple[list[float], list[Tensor], GraphedSteps]:
    """Losses and final weights of some steps on random images; the fifth batch is smaller."""
    method.to(device, memory_format=torch.channels_last).train()
    draw = torch.Generator().manual_seed(1)
    batches = [
        (torch.rand(8 if step != 4 else 5, 3, 32, 32, generator=draw), torch.arange(8 if step != 4 else 5))
        for step in range(steps)
    ]
    batches = [
        (images.to(device, memory_format=torch.channels_last), labels.to(device))
        for images, labels in batches
    ]
    method.prepare(batches[:1])
    losses = GraphedSteps(method, graphs)
    optimiser = torch.optim.AdamW(method.parameters(), lr=1e-3)
    found = []
    for step, (images, labels) in enumerate(batches):
        on_step(step)
        torch.manual_seed(step)
        optimiser.zero_grad()
        with torch.autocast(device, autocast, enabled=autocast is not None):
            out = losses(images, labels, generator=torch.Generator(device).manual_seed(step))
        out.loss.backward()
        optimiser.step()
        found.append((out.loss.detach(), out.logits.detach(), out.parts))
        del out
    values = [float(value) for loss, _, parts in found for value in (loss, *parts.values())]
    return values, [each.detach().cpu() for each in method.state_dict().values()], losses


def test_on_a_cpu_steps_run_as_they_are() -> None:
    method = _method(METHODS["gendd"])
    with_graphs, weights, losses = _trained(method, "cpu", True)
    plain, expected, _ = _trained(_method(METHODS["gendd"]), "cpu", False)
    assert with_graphs == plain and all(map(torch.equal, weights, expected))
    assert losses.enabled and not losses._captured


def test_only_methods_that_say_so_are_replayed() -> None:
    class Mine(gendd.Method):
        name = "mine"

    class MineToo(type(_method(METHODS["kd"]))):  # type: ignore[misc]
        name = "mine_too"

    class Replayable(gendd.Method):
        name = "replayable"
        replayable = True

    assert not Mine.replayable and not MineToo.replayable and Replayable.replayable
    assert GraphedSteps(_method(METHODS["kd"])).enabled
    assert not GraphedSteps(_method(METHODS["kd"]), enabled=False).enabled
    assert TrainingConfig().cuda_graphs


@pytest.mark.parametrize("draw", [random.random, np.random.rand, lambda: torch.rand(1)])
def test_draws_on_the_cpu_are_noticed(draw: Callable[[], Any]) -> None:
    before = _drawn_on_cpu()
    torch.rand(2, generator=torch.Generator())
    assert _drawn_on_cpu() == before
    draw()
    assert _drawn_on_cpu() != before


class _Counting(Frozen):
    """A teacher that looks answers up on the CPU."""


def test_methods_with_another_form_of_teacher_are_not_replayed() -> None:
    method = _method(METHODS["kd"])
    assert method.teacher is not None
    method.ask(_Counting(method.teacher.backbone))
    assert not GraphedSteps(method).enabled


@needs_cuda
@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
@pytest.mark.parametrize("name", METHODS)
def test_replayed_steps_are_the_same(name: str, autocast: torch.dtype | None) -> None:
    replayed, weights, losses = _trained(_method(METHODS[name]), "cuda", True, autocast=autocast)
    plain, expected, _ = _trained(_method(METHODS[name]), "cuda", False, autocast=autocast)
    assert len(losses._captured) == 1
    assert replayed == pytest.approx(plain, rel=2e-2 if autocast else 2e-3)
    for one, other in zip(weights, expected, strict=True):
        assert one.dtype == other.dtype
        # Adam's first steps have the size of the rate whatever the gradient
        assert torch.allclose(one.float(), other.float(), atol=8e-3, rtol=1e-2)


@needs_cuda
@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
@pytest.mark.parametrize("name", ["kd", "sp", "pkt", "gendd"])
def test_a_replayed_gradient_is_that_of_a_backward_pass(name: str, autocast: torch.dtype | None) -> None:
    method = _method(METHODS[name]).cuda().train()
    images, labels = torch.rand(16, 3, 32, 32, device="cuda"), torch.arange(16, device="cuda") % 10
    method.prepare([(images, labels)])
    losses = GraphedSteps(method)

    def gradients(step: Callable[..., StepOutput]) -> list[Tensor]:
        method.zero_grad()
        generator = torch.Generator("cuda").manual_seed(0)
        with torch.autocast("cuda", autocast, enabled=autocast is not None):
            out = step(images, labels, generator=generator)
        out.loss.backward()
        return [each.grad for each in method.parameters() if each.grad is not None]

    for _ in range(3):
        replayed = gradients(losses)
    assert losses._captured
    plain = gradients(method)
    assert len(replayed) == len(plain)
    for one, other in zip(replayed, plain, strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()) + 1e-8)


@needs_cuda
def test_a_network_with_a_reading_is_replayed() -> None:
    torch.manual_seed(0)
    student = create_backbone("torchvision/resnet18", 10).expect((64, 64))
    method = gendd.GenDD(student, Frozen(create_backbone("cifar/resnet14", 10)))
    _, _, losses = _trained(method, "cuda", True)
    assert losses.enabled and losses._captured


def test_a_view_keeps_no_map() -> None:
    backbone = create_backbone("torchvision/resnet18", 10)
    assert backbone.reading is not None
    view = View(backbone.net, backbone.reading, with_map=True)
    view(torch.rand(2, 3, 64, 64))
    found = view.take_map()
    assert found is not None and found.requires_grad
    kept = weakref.ref(found)
    del found
    assert kept() is None and view.take_map() is None


def test_recorded_steps_end_with_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[GraphedSteps]] = []

    class Watched(GraphedSteps):
        def __init__(self, method: Method, enabled: bool = True) -> None:
            super().__init__(method, enabled)
            made.append(weakref.ref(self))

    monkeypatch.setattr("gendd.training.module.GraphedSteps", Watched)
    images = DataConfig(name="digits", train_images=64, validation_images=None)
    student = create_backbone("cifar/resnet8x0.25", 10, in_channels=1)
    method = build_method(from_dict({"method": "supervised"}, RunConfig), student, None, True)
    training = TrainingConfig(epochs=1, precision="fp32", loggers=[], progress=False)
    fit(method, load_data(images), training, images, seed=0, folder=tmp_path)
    assert len(made) == 1 and made[0]() is None


@needs_cuda
def test_gradients_add_up_and_are_scaled() -> None:
    method = _method(METHODS["kd"]).cuda().train()
    images, labels = torch.rand(8, 3, 32, 32, device="cuda"), torch.arange(8, device="cuda")
    losses, generator = GraphedSteps(method), torch.Generator("cuda")

    def gradients(factors: list[float]) -> list[Tensor]:
        method.zero_grad()
        for factor in factors:
            (factor * losses(images, labels, generator=generator).loss).backward()
        return [each.grad.clone() for each in method.parameters() if each.grad is not None]

    for _ in range(4):
        once = gradients([1.0])
    assert losses._captured
    for one, other in zip(gradients([1.0, 0.5]), once, strict=True):
        assert torch.allclose(one, 1.5 * other, rtol=1e-3, atol=1e-5)


class _DrawsOnCpu(nn.Module):
    """A network that skips a layer at random, decided on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 8, 3)
        self.fc = nn.Linear(8, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.body(images).mean((2, 3))
        return self.fc(F.relu(x) if self.training and random.random() < 0.5 else x)


class _WaitsAndDrops(Waits):
    """One with dropout, whose random numbers a failed capture must not stop."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(F.dropout(images, 0.1, self.training))


@needs_cuda
@pytest.mark.parametrize("network", [_DrawsOnCpu, Waits, _WaitsAndDrops])
def test_steps_that_cant_be_replayed_run_as_they_are(
    network: type[nn.Module], capsys: pytest.CaptureFixture[str]
) -> None:
    stream = torch.cuda.current_stream()

    def made() -> Method:
        random.seed(0)
        torch.manual_seed(0)
        return _method(METHODS["kd"], network())

    found, _, losses = _trained(made(), "cuda", True)
    plain, _, _ = _trained(made(), "cuda", False)
    assert not losses.enabled and not losses._captured
    assert "steps run without CUDA graphs: they" in "".join(capsys.readouterr())
    assert torch.cuda.current_stream() == stream
    assert found == pytest.approx(plain, rel=1e-3)


@needs_cuda
def test_graphs_of_moved_weights_are_dropped() -> None:
    method = _method(METHODS["kd"])

    def move(step: int) -> None:
        if step == 6:
            for each in method.parameters():
                each.data = each.data.clone()

    found, _, losses = _trained(method, "cuda", True, 12, on_step=move)
    plain, _, _ = _trained(_method(METHODS["kd"]), "cuda", False, 12)
    assert losses.enabled and losses._captured
    assert found == pytest.approx(plain, rel=2e-3)


class _Steps(Method):
    """A method whose loss depends on the number of the step."""

    needs_teacher = False
    steps = 0

    def forward(
        self, images: Tensor, labels: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> StepOutput:
        self.steps += 1
        logits = self.backbone(images)[1]
        return StepOutput(self.steps * F.cross_entropy(logits, self.labelled(labels)), logits)


@needs_cuda
def test_a_method_that_changes_from_step_to_step_is_not_replayed() -> None:
    def made() -> Method:
        torch.manual_seed(0)
        return _Steps(create_backbone("cifar/resnet8", 10))

    found, _, _ = _trained(made(), "cuda", True)
    plain, _, _ = _trained(made(), "cuda", False)
    assert found == pytest.approx(plain, rel=2e-3)
