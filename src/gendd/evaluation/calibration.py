"""Whether probabilities can be relied on: their calibration, and detection of images out of distribution.

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
    """How well class probabilities fit the labels; the lower, the better.

    Attributes:
        ece: Expected calibration error in [0, 1]: mean distance of confidence to accuracy, over 15 bins of
            equal width.
        nll: Mean negative log-likelihood of the label, nats.
        brier: Mean squared distance to the label's one-hot vector, summed over classes: in [0, 2].
    """

    ece: float
    nll: float
    brier: float


def calibration(probabilities: Tensor, labels: Tensor) -> Calibration:
    """Calibration of class probabilities (N, K) by labels (N,) int64.

    Raises:
        UserError: no images, or probabilities and labels of different numbers.
    """
    if len(labels) == 0 or len(labels) != len(probabilities):
        raise UserError(
            f"Calibration: expected a label for each of at least one image, got {len(labels)} labels for "
            f"{len(probabilities)} images."
        )
    # slow to import
    from torchmetrics.functional.classification import multiclass_calibration_error

    # torchmetrics takes what rounding puts above 1 for logits
    given = probabilities.detach().double().clamp(0, 1)
    of_label = given.gather(1, labels.unsqueeze(1)).squeeze(1)
    return Calibration(
        float(multiclass_calibration_error(given, labels, given.shape[1], BINS)),
        # what float32 can't tell from 0 is its smallest number
        float(-of_label.clamp_min(torch.finfo(torch.float32).tiny).log().mean()),
        float((given.square().sum(-1) - 2 * of_label + 1).mean()),
    )


def auroc(inside: Tensor, outside: Tensor) -> float:
    """Area under the ROC curve of a score that tells images in distribution from others.

    Those in distribution are the positives and should score higher: give uncertainties with a minus. It is
    the chance that one of them scores higher than one out of distribution, equal scores counting half.

    Args:
        inside: Scores (n,) in distribution.
        outside: Scores (m,) out of distribution.

    Returns:
        In [0, 1]; 0.5 is chance.

    Raises:
        UserError: no scores, or some that are not finite.
    """
    _check_scores(inside, outside)
    ordered, scores = outside.double().sort().values, inside.double()
    below = torch.searchsorted(ordered, scores)
    not_above = torch.searchsorted(ordered, scores, right=True)
    return float((below + not_above).double().mean() / (2 * len(ordered)))


def fpr(inside: Tensor, outside: Tensor, recall: float = 0.95) -> float:
    """False-positive rate at a recall of images in distribution: FPR95 by default.

    Args:
        inside: Scores (n,) in distribution, the positives, which should be higher.
        outside: Scores (m,) out of distribution.
        recall: Share of ``inside`` that is accepted at least, in (0, 1].

    Returns:
        Share of ``outside`` in [0, 1] that the highest threshold of that recall accepts; lower is better.

    Raises:
        UserError: no scores, or some that are not finite.
    """
    _check_scores(inside, outside)
    count = len(inside)
    # the fewest that are that share, without the rounding of recall · count
    accepted = int((torch.arange(1, count + 1).double() / count < recall).sum()) + 1
    threshold = inside.sort(descending=True).values[accepted - 1]
    return float((outside >= threshold).double().mean())


def _check_scores(inside: Tensor, outside: Tensor) -> None:
    for name, scores in (("in", inside), ("out of", outside)):
        if scores.numel() == 0 or not bool(scores.isfinite().all()):
            came = "none" if scores.numel() == 0 else "some that are not finite"
            raise UserError(f"Detection: expected finite scores of images {name} distribution, got {came}.")
