"""Calibration of predicted probabilities, and metrics for out-of-distribution detection.

Shapes: N images · K classes · n and m scores of images in and out of distribution.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gendd.errors import UserError

BINS = 15


@dataclass(frozen=True)
class Calibration:
    """Calibration errors of class probabilities; lower is better.

    Attributes:
        ece: Expected calibration error in [0, 1]: mean gap between confidence and accuracy, over 15 bins of
            equal width.
        nll: Mean negative log-likelihood of the label, in nats.
        brier: Mean squared distance to the label's one-hot vector, summed over classes, in [0, 2].
    """

    ece: float
    nll: float
    brier: float


def calibration(probabilities: Tensor, labels: Tensor) -> Calibration:
    """Compute the calibration of class probabilities (N, K) for labels (N,) int64.

    Raises:
        UserError: no images, or different numbers of probabilities and labels.
    """
    if len(labels) == 0 or len(labels) != len(probabilities):
        raise UserError(
            f"Calibration: expected a label for each of at least one image, got {len(labels)} labels for "
            f"{len(probabilities)} images."
        )
    # slow to import
    from torchmetrics.functional.classification import multiclass_calibration_error

    # torchmetrics would take values rounded to above 1 for logits
    given = probabilities.detach().double().clamp(0, 1)
    of_label = given.gather(1, labels.unsqueeze(1)).squeeze(1)
    return Calibration(
        float(multiclass_calibration_error(given, labels, given.shape[1], BINS)),
        # zeros are replaced by the smallest float32
        float(-of_label.clamp_min(torch.finfo(torch.float32).tiny).log().mean()),
        float((given.square().sum(-1) - 2 * of_label + 1).mean()),
    )


def auroc(inside: Tensor, outside: Tensor) -> float:
    """Area under the ROC curve of a score that separates in- from out-of-distribution images.

    In-distribution images are the positives and should score higher, so negate uncertainties. It is the
    probability that one of them scores higher than an out-of-distribution image, ties counting half.

    Args:
        inside: Scores (n,) in distribution.
        outside: Scores (m,) out of distribution.

    Returns:
        In [0, 1]; 0.5 is chance.

    Raises:
        UserError: no scores, or scores that are not finite.
    """
    _check_scores(inside, outside)
    ordered, scores = outside.double().sort().values, inside.double()
    below = torch.searchsorted(ordered, scores)
    not_above = torch.searchsorted(ordered, scores, right=True)
    return float((below + not_above).double().mean() / (2 * len(ordered)))


def fpr(inside: Tensor, outside: Tensor, recall: float = 0.95) -> float:
    """False-positive rate at a given recall of in-distribution images: FPR95 by default.

    Args:
        inside: Scores (n,) in distribution, the positives, which should be higher.
        outside: Scores (m,) out of distribution.
        recall: Minimum fraction of ``inside`` that is accepted, in (0, 1].

    Returns:
        Fraction of ``outside`` in [0, 1] accepted at the highest threshold with that recall; lower is better.

    Raises:
        UserError: no scores, or scores that are not finite.
    """
    _check_scores(inside, outside)
    count = len(inside)
    # smallest number that reaches the recall, avoiding rounding errors of recall · count
    accepted = int((torch.arange(1, count + 1).double() / count < recall).sum()) + 1
    threshold = inside.sort(descending=True).values[accepted - 1]
    return float((outside >= threshold).double().mean())


def _check_scores(inside: Tensor, outside: Tensor) -> None:
    for name, scores in (("in", inside), ("out of", outside)):
        if scores.numel() == 0 or not bool(scores.isfinite().all()):
            came = "none" if scores.numel() == 0 else "some that are not finite"
            raise UserError(f"Detection: expected finite scores of images {name} distribution, got {came}.")
