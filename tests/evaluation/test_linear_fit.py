from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn import functional as F

from gendd.errors import UserError
from gendd.evaluation import linear_fit
from gendd.evaluation.linear_fit import agreement, choose_classifier, fit_classifier


def digits(count: int = 400) -> tuple[Tensor, Tensor]:
    pixels, labels = load_digits(return_X_y=True)
    return torch.tensor(pixels[:count]), torch.tensor(labels[:count])


def standard(features: Tensor) -> Tensor:
    scale = features.std(0, correction=0)
    return (features - features.mean(0)) / torch.where(scale > 0, scale, torch.ones_like(scale))


# --- fitting ---


@pytest.mark.parametrize("soft", [False, True])
def test_it_is_scikit_learns_logistic_regression(soft: bool) -> None:
    features, labels = digits()
    l2 = 1e-3
    reference = LogisticRegression(C=1 / (l2 * len(labels)), tol=1e-10, max_iter=5000)
    reference.fit(standard(features).numpy(), labels.numpy())
    targets = F.one_hot(labels, 10).double() if soft else labels
    weight, bias = fit_classifier(features, targets, l2=l2, max_iterations=2000)
    logits = F.linear(features, weight, bias)
    came = logits - logits.mean(1, keepdim=True)
    wanted = reference.decision_function(standard(features).numpy())
    np.testing.assert_allclose(came.numpy(), wanted - wanted.mean(1, keepdims=True), atol=2e-4)


def test_at_the_minimum_the_gradient_is_zero_for_soft_targets_too() -> None:
    features, _ = digits(200)
    random = torch.Generator().manual_seed(0)
    targets = torch.randn(200, 4, generator=random, dtype=torch.float64).softmax(-1)
    weight, bias = (part.requires_grad_() for part in fit_classifier(features, targets, l2=0.1))
    scale = features.std(0, correction=0)
    penalty = (weight * torch.where(scale > 0, scale, torch.ones_like(scale))).square().sum()
    loss = F.cross_entropy(F.linear(features, weight, bias), targets) + 0.05 * penalty
    # the weight of standardised features is the weight times the scale
    gradients = torch.autograd.grad(loss, [weight, bias])
    for gradient in gradients:
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=2e-6, rtol=0)


def test_two_separable_points_have_a_closed_form() -> None:
    """x = ±1, classes 1 and 0: V = (-v, v), with l2 · v = σ(-2v), whatever the scale and place of x."""
    features = torch.tensor([[3.0 - 5.0], [3.0 + 5.0]], dtype=torch.float64)
    for l2 in (1.0, 1e-2, 1e-4):
        weight, bias = fit_classifier(features, torch.tensor([0, 1]), l2=l2)
        v = float(weight[1, 0]) * 5.0
        assert l2 * v == pytest.approx(1 / (1 + math.exp(2 * v)), rel=1e-4)
        torch.testing.assert_close(weight[0], -weight[1])
        torch.testing.assert_close(bias, -3.0 * weight[:, 0])


def test_soft_targets_of_a_classifier_give_it_back() -> None:
    random = torch.Generator().manual_seed(1)
    features = torch.randn(2000, 6, generator=random, dtype=torch.float64)
    weight = torch.randn(5, 6, generator=random, dtype=torch.float64)
    bias = torch.randn(5, generator=random, dtype=torch.float64)
    weight, bias = weight - weight.mean(0), bias - bias.mean()
    targets = F.linear(features, weight, bias).softmax(-1)
    came = fit_classifier(features, targets, l2=0.0, max_iterations=500)
    torch.testing.assert_close(came[0], weight, atol=1e-5, rtol=0)
    torch.testing.assert_close(came[1], bias, atol=1e-5, rtol=0)
    # starting from the solution changes nothing
    again = fit_classifier(features, targets, l2=0.0, max_iterations=1, start=came)
    torch.testing.assert_close(again[0], came[0], atol=1e-6, rtol=0)


def test_a_dimension_that_never_varies_has_no_weight() -> None:
    features, labels = digits(100)  # the first pixel is always 0
    weight, bias = fit_classifier(features + 7.0, labels)
    assert not weight[:, 0].any()
    assert bool(weight.isfinite().all()) and bool(bias.isfinite().all())


def test_float32_gives_the_same_predictions_and_its_own_type() -> None:
    features, labels = digits()
    wide, narrow = fit_classifier(features, labels), fit_classifier(features.float(), labels)
    assert narrow[0].dtype == narrow[1].dtype == torch.float32
    same = F.linear(features, *wide).argmax(-1) == F.linear(features.float(), *narrow).argmax(-1)
    assert float(same.double().mean()) > 0.995


def test_the_passes_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = digits(100)
    whole = fit_classifier(features, labels, l2=0.01)
    monkeypatch.setattr(linear_fit, "_CHUNK_NUMBERS", 7 * 64)  # seven rows
    # also where they are standardised as they are read
    for held in (linear_fit.HELD_NUMBERS, 1000):
        monkeypatch.setattr(linear_fit, "HELD_NUMBERS", held)
        for came, wanted in zip(fit_classifier(features, labels, l2=0.01), whole, strict=True):
            torch.testing.assert_close(came, wanted, atol=1e-7, rtol=1e-6)
        assert linear_fit.accuracy(*whole, features, labels) == agreement(F.linear(features, *whole), labels)


def test_a_class_without_rows_is_kept() -> None:
    features, labels = digits(50)
    weight, bias = fit_classifier(features, labels, num_classes=12)
    assert weight.shape == (12, 64) and bias.shape == (12,)
    assert int(F.linear(features, weight, bias).argmax(-1).max()) <= 9


@pytest.mark.parametrize(
    "features, targets, message",
    [
        (torch.zeros(3, 2), torch.zeros(2, dtype=torch.int64), r"got features of shape \(3, 2\) and targets"),
        (torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), r"got features of shape \(0, 2\)"),
        (torch.ones(2, 2), torch.tensor([0, 4]), "expected classes below 3, got 4"),
        (torch.full((2, 2), float("nan")), torch.tensor([0, 1]), "expected finite features"),
    ],
)
def test_what_cannot_be_fitted(features: Tensor, targets: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        fit_classifier(features, targets, num_classes=3)
    assert "\n" not in str(error.value)


# --- choosing ---


def test_the_penalty_is_chosen_on_the_held_out_rows() -> None:
    features, labels = digits(600)
    train, held = slice(0, 300), slice(300, 600)
    choice = choose_classifier(features[train], labels[train], features[held], labels[held])
    alone = {
        l2: agreement(
            F.linear(
                features[held], *fit_classifier(features[train], labels[train], l2=l2, max_iterations=100)
            ),
            labels[held],
        )
        for l2 in linear_fit.STRENGTHS
    }
    assert choice.accuracy == pytest.approx(max(alone.values()), abs=0.01)
    assert choice.accuracy > 0.8
    assert choice.accuracy == agreement(F.linear(features[held], choice.weight, choice.bias), labels[held])


def test_of_equals_the_stronger_penalty() -> None:
    features = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    labels = torch.tensor([0, 1])
    assert choose_classifier(features, labels, features, labels, strengths=[1e-4, 1e-1]).l2 == 1e-1


@pytest.mark.parametrize("soft, part", [(False, 134), (True, 100)])
def test_rows_too_many_to_hold_all_count(soft: bool, part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fit starts on a subset of the rows, and ends as the fit of all of them."""
    features, labels = digits(600)
    train, held = slice(0, 400), slice(400, 600)
    targets = F.one_hot(labels, 10).double() if soft else labels
    given = features[train], targets[train], features[held], labels[held]
    wanted = choose_classifier(*given, strengths=[1e-2], max_iterations=500)
    # 64 numbers a row, and 10 of probabilities
    monkeypatch.setattr(linear_fit, "HELD_NUMBERS", 9_000)
    monkeypatch.setattr(linear_fit, "_FURTHER_ITERATIONS", 200)
    rounds: list[list[float]] = []
    counts: list[int] = []

    def watch(penalties: Sequence[float]) -> Sequence[float]:
        rounds.append(list(penalties))
        return penalties

    def fitted(features: Tensor, *others: Any, **options: Any) -> tuple[Tensor, Tensor]:
        counts.append(len(features))
        return fit_classifier(features, *others, **options)

    monkeypatch.setattr(linear_fit, "fit_classifier", fitted)
    came = choose_classifier(*given, strengths=[1e-2], max_iterations=500, watch=watch)
    assert counts == [part, 400] and rounds == [[1e-2], [1e-2]]
    some = fit_classifier(features[train][:: 400 // part + 1], targets[train][:: 400 // part + 1], l2=1e-2)
    assert (came.weight - wanted.weight).norm() < 0.01 * (some[0] - wanted.weight).norm()
    assert came.accuracy == wanted.accuracy


def test_of_rows_too_many_to_hold_the_best_penalties_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = digits(300)
    monkeypatch.setattr(linear_fit, "HELD_NUMBERS", 9_000)
    rounds: list[list[float]] = []

    def watch(penalties: Sequence[float]) -> Sequence[float]:
        rounds.append(list(penalties))
        return penalties

    choice = choose_classifier(features[:200], labels[:200], features[200:], labels[200:], watch=watch)
    assert rounds[0] == sorted(linear_fit.STRENGTHS, reverse=True)
    first = rounds[0].index(rounds[1][0])
    assert rounds[1] == rounds[0][first : first + 2] and choice.l2 in rounds[1]


def test_agreement_takes_classes_and_probabilities() -> None:
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 1.0], [0.0, 5.0]])
    assert agreement(logits, torch.tensor([0, 1, 1, 1])) == 0.75
    assert agreement(logits, torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.4, 0.6], [0.6, 0.4]])) == 0.5
