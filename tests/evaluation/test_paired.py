from __future__ import annotations

import pytest
import torch

from gendd.evaluation.paired import gain


def test_a_gain_is_that_of_the_images_that_differ() -> None:
    own, other = torch.zeros(400, dtype=torch.bool), torch.zeros(400, dtype=torch.bool)
    own[:300], other[:280] = True, True
    found = gain(own, other)
    assert found.points == 5.0
    # twenty of 400 differ: the standard error is that of a share of 0.05
    error = 100 * (0.05 * 0.95 / 400) ** 0.5
    assert found.low == pytest.approx(5 - 1.96 * error, abs=0.4)
    assert found.high == pytest.approx(5 + 1.96 * error, abs=0.4)
    assert gain(other, own).points == -5.0
    assert gain(own, own) == (0, 0, 0)
