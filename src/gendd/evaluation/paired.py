"""Paired comparison of two networks on the same images: difference in accuracy with a bootstrap interval."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor

_DRAWS = 10_000


class Gain(NamedTuple):
    """Difference in accuracy in points, with the 95 % bootstrap interval over images."""

    points: float
    low: float
    high: float


def gain(own: Tensor, other: Tensor, seed: int = 0) -> Gain:
    """Gain in accuracy of one network over another.

    Args:
        own: Whether each prediction is right, bool (N,).
        other: Likewise for the other network, on the same images.
        seed: Seed of the bootstrap.
    """
    count = len(own)
    better, worse = int((own & ~other).sum()), int((~own & other).sum())
    # images drawn with replacement: only the numbers that exactly one network gets right matter
    shares = [better / count, worse / count, (count - better - worse) / count]
    drawn = np.random.default_rng(seed).multinomial(count, shares, size=_DRAWS)
    low, high = np.quantile(100 * (drawn[:, 0] - drawn[:, 1]) / count, [0.025, 0.975])
    return Gain(round(100 * (better - worse) / count, 2), round(float(low), 2), round(float(high), 2))
