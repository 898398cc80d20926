"""Uncertainty estimates of a student for an image, from n features generated for it.

Shapes: n samples · B images · K classes · D teacher feature.

The samples f_1 … f_n are drawn from p(f | z), the distribution of teacher features given the student's
feature z, and the classifier gives class probabilities p_i for each. The entropy of their mean splits into
two parts, as for an ensemble (Houlsby et al. 2011; Depeweg et al. 2018):

    H[mean p_i]  =  mean H[p_i]  +  I(class; f | z)
    total           aleatoric       mutual information

No weights are sampled. The mutual information measures how much the sampled feature determines the class:
how much the teacher's prediction would vary, given what the student saw. It is not the uncertainty of the
weights, and a student can be certain, sample by sample, about an out-of-distribution image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from gendd.errors import UserError

# all samples are in memory at once
MAX_SAMPLES = 10_000


class Decomposition(NamedTuple):
    """Mean and entropies of class probabilities, entropies in nats.

    Attributes:
        mixture: mean p_i (B, K).
        total: H[mean p_i] (B,), at most log K.
        aleatoric: mean H[p_i] (B,).
        mutual_information: Total minus aleatoric (B,), at most log n; clamped to 0 against rounding.
    """

    mixture: Tensor
    total: Tensor
    aleatoric: Tensor
    mutual_information: Tensor


@dataclass(frozen=True)
class PredictiveDistribution:
    """A student's predictions for B images, with uncertainty estimates.

    Attributes:
        probabilities: Class probabilities of the chosen readout (B, K).
        mixture: Mean class probabilities of the n samples (B, K), for the classes of the classifier of
            generated features. This and the rest are None if no uncertainty was requested.
        total: Entropy of ``mixture`` (B,), nats.
        aleatoric: Mean entropy of the samples' class probabilities (B,), nats.
        mutual_information: Their difference (B,), nats.
        spread: Spread of the samples (B,); see :func:`spread`.
    """

    probabilities: Tensor
    mixture: Tensor | None = None
    total: Tensor | None = None
    aleatoric: Tensor | None = None
    mutual_information: Tensor | None = None
    spread: Tensor | None = None


def entropy(probabilities: Tensor) -> Tensor:
    """Entropy (…) of class probabilities (…, K), in nats."""
    found: Tensor = torch.special.entr(probabilities).sum(-1)
    return found


def decompose(probabilities: Tensor) -> Decomposition:
    """Decompose the entropy of n samples' class probabilities (n, B, K).

    With few samples the mutual information is biased low, as is the entropy of their mean.
    """
    mixture = probabilities.mean(0)
    total, aleatoric = entropy(mixture), entropy(probabilities).mean(0)
    return Decomposition(mixture, total, aleatoric, (total - aleatoric).clamp_min(0))


def spread(samples: Tensor) -> Tensor:
    """Spread (B,) of samples of standardised features (n, B, D); its mean does not depend on n >= 2.

    The square root of the mean over D of their variance over n (with n - 1): the root mean square distance
    to their mean, per dimension. 1 is the spread of the prior N(0, I), and of the teacher's features of all
    training images; if ``gendd.standardise`` is false, the unit is that of the feature itself.
    """
    # var() warns for an empty batch
    variance = (samples - samples.mean(0)).square().sum(0) / (len(samples) - 1)
    return variance.mean(-1).sqrt()


def check_samples(samples: int, generates: bool, reads: bool) -> None:
    """Raise :class:`UserError` if a student can't estimate uncertainty from this many samples.

    Args:
        samples: n.
        generates: Whether it has a generator.
        reads: Whether it has a classifier of generated features.
    """
    if not isinstance(samples, int) or not 2 <= samples <= MAX_SAMPLES:
        raise UserError(
            f"Uncertainty: expected 2 to {MAX_SAMPLES:,} generated features per image, got {samples!r}; "
            "ask for 8 or more, or for 0 to do without."
        )
    if not generates:
        raise UserError(
            "Uncertainty: expected a student with a generator, got one without; distil one with method gendd."
        )
    if not reads:
        raise UserError(
            "Uncertainty: expected a student with a classifier of generated features, got one without; "
            "distil with gendd.centres means."
        )
