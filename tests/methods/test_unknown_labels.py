"""Methods with unknown labels, -1."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import images, seeded
from torch import Tensor
from torch.nn import functional as F

from gendd.config import registry
from gendd.diffusion import tokens
from gendd.methods import GenDD, Method
from gendd.methods._labels import known, label_loss
from gendd.methods.gendd_no_labels import GenDDNoLabels
from gendd.models import create_backbone

CLASSES = 4
LABELS = torch.tensor([0, -1, 2, -1, -1, 1, 3, -1])
SETTINGS: dict[str, Any] = {"token_width": 16, "repeats": 2, "head_width": 16, "head_depth": 1}


def build(kind: type[Method], **settings: Any) -> Method:
    torch.manual_seed(0)
    student = create_backbone("cifar/resnet8x0.25", CLASSES, in_channels=1)
    teacher = create_backbone("cifar/resnet8x0.5", CLASSES, in_channels=1)
    method = kind(student, teacher, kind.Settings(**settings))
    method.prepare([(images(16), None)])
    return method.train()


def gradient(method: Method, labels: Tensor | None) -> tuple[Tensor, Tensor]:
    """The loss, and its gradient to the student's first convolution."""
    method.zero_grad()
    loss = method(images(), labels, generator=seeded()).loss
    loss.backward()
    weight = next(method.backbone.net.parameters())
    assert weight.grad is not None
    return loss.detach(), weight.grad.clone()


def test_unknown_labels_add_nothing_to_the_mean() -> None:
    logits = torch.randn(8, CLASSES, generator=seeded())
    there = LABELS >= 0
    by_hand = F.cross_entropy(logits[there], LABELS[there], reduction="sum") / 8
    torch.testing.assert_close(label_loss(logits, LABELS), by_hand)
    soft = tokens.class_probabilities(LABELS, CLASSES)
    torch.testing.assert_close(label_loss(logits, soft), by_hand)
    assert known(LABELS).tolist() == known(soft).tolist() == there.float().tolist()
    every = LABELS.clamp(min=0)
    assert label_loss(logits, every) == F.cross_entropy(logits, every)


def test_only_known_labels_contract() -> None:
    features, centres = torch.randn(8, 6, generator=seeded()), torch.randn(CLASSES, 6, generator=seeded(1))
    moved = tokens.contract(features, tokens.class_probabilities(LABELS, CLASSES), centres, 0.3)
    there = LABELS >= 0
    torch.testing.assert_close(moved[~there], features[~there])
    torch.testing.assert_close(moved[there], 0.7 * features[there] + 0.3 * centres[LABELS[there]])


@pytest.mark.parametrize("alpha", [1.0, 0.4])
def test_without_any_known_label_gendd_learns_as_without_labels(alpha: float) -> None:
    method = build(GenDD, **SETTINGS, alpha=alpha, label_weight=2.0)
    nothing = torch.full((8,), -1)
    (loss, slope), (same, also) = gradient(method, None), gradient(method, nothing)
    torch.testing.assert_close(same, loss)
    torch.testing.assert_close(also, slope)
    assert not torch.allclose(gradient(method, LABELS)[1], slope)


def test_the_weight_of_labels_reaches_the_student_from_known_ones_alone() -> None:
    method = build(GenDD, **SETTINGS, label_weight=1.0)
    assert isinstance(method, GenDD)
    feature = torch.randn(8, 16, generator=seeded(), requires_grad=True)
    method._for_probe(feature, LABELS).sum().backward()
    assert feature.grad is not None
    assert feature.grad.sum(1).tolist() == [16.0 * (label >= 0) for label in LABELS.tolist()]


@pytest.mark.parametrize("name", [name for name in registry.names() if name not in ("srd", "dist", "rkd")])
def test_what_takes_unknown_labels_has_a_finite_loss_of_them(name: str) -> None:
    kind = registry.method_class(name)
    if not kind.needs_teacher:
        assert not kind.takes_unknown
        return
    method = build(kind, **(SETTINGS if issubclass(kind, GenDD) else {}))
    if not method.takes_unknown:
        assert name == "dkd"
        return
    loss, slope = gradient(method, LABELS)
    assert loss.isfinite() and slope.isfinite().all() and slope.abs().sum() > 0


def test_the_unlabelled_one_sees_no_label() -> None:
    method = build(GenDDNoLabels, **SETTINGS, label_weight=5.0)
    (loss, slope), (same, also) = gradient(method, None), gradient(method, LABELS.clamp(min=0))
    assert loss == same and torch.equal(slope, also)
