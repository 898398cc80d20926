from __future__ import annotations

import math

import pytest
import torch
from helpers import seeded
from sklearn.metrics import log_loss, roc_auc_score, roc_curve
from torch import Tensor

from gendd.errors import UserError
from gendd.evaluation.calibration import auroc, calibration, fpr

# --- calibration ---


def test_calibration_by_hand() -> None:
    probabilities = torch.tensor([[0.8, 0.2], [0.8, 0.2], [0.4, 0.6], [0.5, 0.5]])
    found = calibration(probabilities, torch.tensor([0, 1, 1, 0]))
    # confidences 0.8 (half of them correct), 0.6 and 0.5 (both correct) fall into three bins
    assert found.ece == pytest.approx((2 * 0.3 + 0.4 + 0.5) / 4)
    assert found.nll == pytest.approx(-(math.log(0.8) + math.log(0.2) + math.log(0.6) + math.log(0.5)) / 4)
    assert found.brier == pytest.approx((0.08 + 1.28 + 0.32 + 0.5) / 4)


def test_sure_and_right_is_perfect_and_sure_and_wrong_is_the_worst() -> None:
    sure, labels = torch.eye(4), torch.arange(4)
    right = calibration(sure, labels)
    assert (right.ece, right.nll, right.brier) == (0, 0, 0)
    wrong = calibration(sure, labels.roll(1))
    assert wrong.ece == 1 and wrong.brier == 2
    assert wrong.nll == pytest.approx(-math.log(torch.finfo(torch.float32).tiny))


def test_calibration_against_scikit_learn_and_a_loop() -> None:
    probabilities = (2 * torch.randn(500, 7, generator=seeded()).double()).softmax(-1)
    labels = torch.randint(7, (500,), generator=seeded(1))
    found = calibration(probabilities, labels)
    assert found.nll == pytest.approx(log_loss(labels.numpy(), probabilities.numpy()), rel=1e-9)
    squares = [
        sum((p - (k == label)) ** 2 for k, p in enumerate(row))
        for row, label in zip(probabilities.tolist(), labels.tolist(), strict=True)
    ]
    assert found.brier == pytest.approx(sum(squares) / 500, rel=1e-9)
    confidence, said = probabilities.max(-1)
    ece = 0.0
    for i in range(15):
        inside = (confidence > i / 15) & (confidence <= (i + 1) / 15)
        if inside.any():
            gap = (said == labels)[inside].double().mean() - confidence[inside].double().mean()
            ece += float(inside.double().mean() * gap.abs())
    assert found.ece == pytest.approx(ece, abs=1e-6)


def test_rounding_above_one_is_no_logit() -> None:
    probabilities = torch.tensor([[1 + 1e-6, 0.0], [0.75, 0.25]])
    assert calibration(probabilities, torch.tensor([0, 0])).ece == pytest.approx(0.125, abs=1e-6)


@pytest.mark.parametrize("images, labels", [(0, 0), (3, 2)])
def test_calibration_wants_a_label_an_image(images: int, labels: int) -> None:
    with pytest.raises(UserError) as caught:
        calibration(torch.full((images, 2), 0.5), torch.zeros(labels, dtype=torch.int64))
    assert str(caught.value) == (
        f"Calibration: expected a label for each of at least one image, got {labels} labels for {images} "
        "images."
    )


# --- detection ---


def scores(ties: bool) -> tuple[Tensor, Tensor]:
    inside = torch.randn(137, generator=seeded()) + 0.7
    outside = torch.randn(90, generator=seeded(1))
    return (inside.round(), outside.round()) if ties else (inside, outside)


@pytest.mark.parametrize("ties", [False, True])
def test_auroc_is_scikit_learns_and_the_share_of_pairs(ties: bool) -> None:
    inside, outside = scores(ties)
    true = [1] * len(inside) + [0] * len(outside)
    expected = roc_auc_score(true, torch.cat([inside, outside]).numpy())
    assert auroc(inside, outside) == pytest.approx(expected, abs=1e-9)
    pairs = [(a > b) + 0.5 * (a == b) for a in inside.tolist() for b in outside.tolist()]
    assert auroc(inside, outside) == pytest.approx(sum(pairs) / len(pairs), abs=1e-9)
    assert auroc(-inside, -outside) == pytest.approx(1 - expected, abs=1e-9)


@pytest.mark.parametrize("recall", [0.95, 0.5, 1.0])
@pytest.mark.parametrize("ties", [False, True])
def test_fpr_is_scikit_learns_and_that_of_every_threshold(ties: bool, recall: float) -> None:
    inside, outside = scores(ties)
    true = [1] * len(inside) + [0] * len(outside)
    false_rate, true_rate, _ = roc_curve(true, torch.cat([inside, outside]).numpy(), drop_intermediate=False)
    assert fpr(inside, outside, recall) == pytest.approx(false_rate[true_rate >= recall].min(), abs=1e-9)
    rates = [
        float((outside >= threshold).double().mean())
        for threshold in inside
        if float((inside >= threshold).double().mean()) >= recall
    ]
    assert fpr(inside, outside, recall) == pytest.approx(min(rates), abs=1e-9)


def test_detection_of_sets_apart_and_of_one_score_for_all() -> None:
    low, high = torch.arange(20.0), torch.arange(20.0) + 20
    assert (auroc(high, low), fpr(high, low)) == (1, 0)
    assert (auroc(low, high), fpr(low, high)) == (0, 1)
    assert (auroc(torch.zeros(5), torch.zeros(4)), fpr(torch.zeros(5), torch.zeros(4))) == (0.5, 1)
    # 19 of 20 are 95 %: the lowest, below all out-of-distribution scores, is not counted
    inside = torch.cat([torch.tensor([-1.0]), high[1:]])
    assert fpr(inside, low) == 0 and fpr(inside[:10], low) == 1
    assert auroc(high, low.double()) == 1


def test_scores_are_finite_and_there() -> None:
    good = torch.ones(3)
    for judge in (auroc, fpr):
        with pytest.raises(
            UserError,
            match=r"^Detection: expected finite scores of images in distribution, got "
            r"none\.$",
        ):
            judge(torch.ones(0), good)
        with pytest.raises(UserError, match=r"images out of distribution, got some that are not finite\.$"):
            judge(good, torch.tensor([1.0, float("nan")]))
