"""The diffusion loss of some images at a time: the same loss and gradients as of all, in less memory."""

from __future__ import annotations

import copy
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

import gendd
from gendd.methods import _diffusion

SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "published": {
        "map_weight": 0,
        "prediction": "epsilon",
        "learned_variance": True,
        "condition_dropout": 0.2,
        "mixup": 1.0,
    },
    "tokens": {"map_weight": 0, "token_width": 16, "repeats": 3},
}
IMAGES = 11


def made(settings: dict[str, Any]) -> tuple[gendd.Method, Tensor, Tensor]:
    torch.manual_seed(0)
    student, teacher = (
        gendd.create_backbone(f"cifar/{name}", 10, in_channels=1) for name in ("resnet8x0.5", "resnet8")
    )
    method = gendd.GenDD(student, teacher, head_width=32, **settings).train()
    images, labels = torch.rand(IMAGES, 1, 8, 8), torch.arange(IMAGES) % 10
    method.prepare([(images, labels)])
    return method, images, labels


class Kept:
    """A tensor saved for the backward pass."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def step(method: gendd.Method, images: Tensor, labels: Tensor) -> tuple[gendd.StepOutput, int]:
    """Take a forward and a backward pass; return the output and the most bytes saved at a time."""
    alive: weakref.WeakSet[Kept] = weakref.WeakSet()
    most = 0

    def keep(tensor: Tensor) -> Kept:
        nonlocal most
        alive.add(kept := Kept(tensor))
        storages = [each.tensor.untyped_storage() for each in alive]
        most = max(most, sum({each.data_ptr(): each.nbytes() for each in storages}.values()))
        return kept

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept.tensor):
        out = method(images, labels, generator=torch.Generator().manual_seed(1))
    out.loss.backward()
    return out, most


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_parts_have_the_loss_and_gradients_of_the_whole(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, images, labels = made(settings)
    expected, memory = step(at_once := copy.deepcopy(whole), images, labels)
    gradients = {name: each.grad for name, each in at_once.named_parameters() if each.grad is not None}
    for rows in (30, 1):  # a few images at a time, and one
        monkeypatch.setattr(_diffusion, "_AT_A_TIME", 32 * rows)
        parts = copy.deepcopy(whole)
        out, less = step(parts, images, labels)
        torch.testing.assert_close(out.loss, expected.loss, rtol=1e-6, atol=0)
        assert out.parts.keys() == expected.parts.keys()
        for name, value in expected.parts.items():
            torch.testing.assert_close(out.parts[name], value, rtol=1e-5, atol=1e-7)
        found = {name: each.grad for name, each in parts.named_parameters() if each.grad is not None}
        assert found.keys() == gradients.keys()
        for name, gradient in gradients.items():
            assert float((found[name] - gradient).norm() / gradient.norm()) < 1e-5, name
        assert less < memory


def test_memory_does_not_depend_on_the_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_diffusion, "_AT_A_TIME", 32 * 64)
    found = [step(*made({"map_weight": 0, "repeats": repeats}))[1] for repeats in (16, 64)]
    assert found[1] < 1.05 * found[0]
    monkeypatch.setattr(_diffusion, "_AT_A_TIME", 2**24)
    found = [step(*made({"map_weight": 0, "repeats": repeats}))[1] for repeats in (16, 64)]
    assert found[1] > 1.5 * found[0]


def test_a_frozen_head_gets_no_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, images, labels = made(SETTINGS["tokens"])
    whole.generator.head.requires_grad_(False)
    step(at_once := copy.deepcopy(whole), images, labels)
    monkeypatch.setattr(_diffusion, "_AT_A_TIME", 1)
    step(whole, images, labels)
    assert all(each.grad is None for each in whole.generator.head.parameters())
    for own, other in zip(whole.backbone.parameters(), at_once.backbone.parameters(), strict=True):
        assert (own.grad is None) == (other.grad is None)
        if own.grad is not None and other.grad is not None:
            torch.testing.assert_close(own.grad, other.grad, rtol=1e-4, atol=1e-6)


def test_without_gradients_the_loss_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    method, images, labels = made({})

    def loss() -> Tensor:
        return method.diffusion_loss(images, labels, torch.Generator().manual_seed(1))

    expected = loss()
    monkeypatch.setattr(_diffusion, "_AT_A_TIME", 32)
    monkeypatch.setattr(torch.autograd, "grad", lambda *_: pytest.fail("gradients were computed"))
    torch.testing.assert_close(loss(), expected, rtol=1e-6, atol=0)
    with torch.inference_mode():
        torch.testing.assert_close(loss(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_bf16_parts_are_as_exact_as_the_whole(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    method, images, labels = made(settings)

    def gradient(rows: int, bf16: bool) -> Tensor:
        monkeypatch.setattr(_diffusion, "_AT_A_TIME", 32 * rows)
        own = copy.deepcopy(method)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            step(own, images, labels)
        return torch.cat([each.grad.flatten() for each in own.parameters() if each.grad is not None])

    exact = gradient(2**20, False)
    errors = [float((gradient(rows, True) - exact).norm() / exact.norm()) for rows in (2**20, 30)]
    assert 0 < errors[1] < 1.5 * errors[0] < 0.5


def test_compiled_rows_are_computed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: compile(function, backend="eager", fullgraph=True))
    method, images, labels = made(SETTINGS["published"])
    expected, _ = step(copy.deepcopy(method), images, labels)
    monkeypatch.setattr(_diffusion, "_AT_A_TIME", 32 * 30)
    method.compile_losses()
    out, _ = step(method, images, labels)
    torch.testing.assert_close(out.loss, expected.loss, rtol=1e-6, atol=0)
    torch.compiler.reset()


def test_fp16_computes_all_rows_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    method, images, labels = made(SETTINGS["tokens"])
    seen: list[int] = []
    rows = method.generator.loss_rows
    monkeypatch.setattr(_diffusion, "_AT_A_TIME", 1)
    monkeypatch.setattr(
        method.generator, "loss_rows", lambda *given: (seen.append(len(given[0])), rows(*given))[1]
    )
    with torch.autocast("cpu", torch.float16):
        method.diffusion_loss(images, labels, torch.Generator().manual_seed(1))
    assert seen == [IMAGES]
    method.diffusion_loss(images, labels, torch.Generator().manual_seed(1))
    assert seen == [IMAGES] + [1] * IMAGES
