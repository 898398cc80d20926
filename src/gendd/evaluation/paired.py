"""Two networks on the same images: how much more often one is right, and by how much that is chance."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor

_DRAWS = 10_000


class Gain(NamedTuple):
    """Points of accuracy, and the 95 % interval of the bootstrap over images."""

    points: float
    low: float
    high: float


def gain(own: Tensor, other: Tensor, seed: int = 0) -> Gain:
    """What one network's answers are worth more than another's.

    Args:
        own: bool (N,): whether each answer is right.
        other: Likewise, of the same images.
        seed: Of the bootstrap.
    """
    count = len(own)
    better, worse = int((own & ~other).sum()), int((~own & other).sum())
    # images drawn with replacement: how many are right to one alone is all that matters
    shares = [better / count, worse / count, (count - better - worse) / count]
    drawn = np.random.default_rng(seed).multinomial(count, shares, size=_DRAWS)
    low, high = np.quantile(100 * (drawn[:, 0] - drawn[:, 1]) / count, [0.025, 0.975])
    return Gain(round(100 * (better - worse) / count, 2), round(float(low), 2), round(float(high), 2))
