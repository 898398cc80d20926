"""How sure a student is of an image, from n features that its generator makes of it.

Shapes: n samples · B images · K classes · D teacher feature.

The samples f_1 … f_n are drawn from p(f | z), the teacher features that go with the student's feature z, and
the classifier makes class probabilities p_i of each. The entropy of their mean has two parts, as that of an
ensemble has (Houlsby et al. 2011; Depeweg et al. 2018):

    H[mean p_i]  =  mean H[p_i]  +  I(class; f | z)
    total           aleatoric       mutual information

No weights are drawn. The mutual information is what the choice of the sampled feature says about the class:
how much what the teacher would say varies, given what the student saw. It is not the uncertainty of the
weights, and a student can be sure, sample by sample, of an image unlike any it was trained on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from gendd.errors import UserError

# they are all in memory at once
MAX_SAMPLES = 10_000


class Decomposition(NamedTuple):
    """Mean and entropies of class probabilities, entropies in nats.

    Attributes:
        mixture: mean p_i (B, K).
        total: H[mean p_i] (B,), at most log K.
        aleatoric: mean H[p_i] (B,).
        mutual_information: Total less aleatoric (B,), at most log n; rounding below 0 is 0.
    """

    mixture: Tensor
    total: Tensor
    aleatoric: Tensor
    mutual_information: Tensor


@dataclass(frozen=True)
class PredictiveDistribution:
    """What a student says of B images, and how sure it is.

    Attributes:
        probabilities: Of the chosen readout (B, K).
        mixture: Mean class probabilities of the n samples (B, K); K is that of the classifier of generated
            features. This and the rest are None where no uncertainty was asked for.
        total: Entropy of ``mixture`` (B,), nats.
        aleatoric: Mean entropy of the samples' class probabilities (B,), nats.
        mutual_information: Their difference (B,), nats.
        spread: Of the samples (B,); see :func:`spread`.
    """

    probabilities: Tensor
    mixture: Tensor | None = None
    total: Tensor | None = None
    aleatoric: Tensor | None = None
    mutual_information: Tensor | None = None
    spread: Tensor | None = None


def entropy(probabilities: Tensor) -> Tensor:
    """H of class probabilities (…, K) in nats, (…)."""
    found: Tensor = torch.special.entr(probabilities).sum(-1)
    return found


def decompose(probabilities: Tensor) -> Decomposition:
    """Entropies of n samples' class probabilities (n, B, K).

    The mutual information of few samples is too small on average, as the entropy of their mean is.
    """
    mixture = probabilities.mean(0)
    total, aleatoric = entropy(mixture), entropy(probabilities).mean(0)
    return Decomposition(mixture, total, aleatoric, (total - aleatoric).clamp_min(0))


def spread(samples: Tensor) -> Tensor:
    """How far samples of standardised features (n, B, D) lie apart: (B,), the same on average for any n >= 2.

    The square root of the mean over D of their variance over n (with n - 1), so the root mean square distance
    to their mean, a dimension. 1 is the spread of the prior N(0, I), which is that of the teacher's features
    of all training images; where ``gendd.standardise`` is false the unit is that of the feature itself.
    """
    # var() warns of no images
    variance = (samples - samples.mean(0)).square().sum(0) / (len(samples) - 1)
    return variance.mean(-1).sqrt()


def check_samples(samples: int, generates: bool, reads: bool) -> None:
    """Raise :class:`UserError` where a student can't tell the uncertainty from this many samples.

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
