"""Random draws that PyTorch does not support with an explicit generator."""

from __future__ import annotations

import torch
from torch import Tensor


def beta(concentration: float, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """One draw of Beta(β, β): x / (x + y) with x and y ~ Gamma(β) (Marsaglia & Tsang 2000)."""
    x, y = gamma(concentration, generator, device), gamma(concentration, generator, device)
    return x / (x + y)


def gamma(shape: float, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """One draw of Gamma(shape, 1) for any ``shape`` above 0, without synchronising with the device."""
    if shape < 1:
        u = torch.rand((), generator=generator, device=device)
        return gamma(shape + 1, generator, device) * u.clamp(min=1e-30).pow(1 / shape)
    d = shape - 1 / 3
    c = (9 * d) ** -0.5
    # a fixed number of proposals, each accepted with at least 95 %, avoids synchronising with the device
    x = torch.randn(16, generator=generator, device=device)
    u = torch.rand(16, generator=generator, device=device)
    v = (1 + c * x) ** 3
    accepted = (v > 0) & (u.log() < 0.5 * x**2 + d - d * v + d * v.clamp(min=1e-30).log())
    # index_select: plain indexing by a tensor on the device would synchronise
    first = accepted.to(torch.int64).argmax().reshape(1)
    drawn: Tensor = (d * v.clamp(min=1e-30)).index_select(0, first).squeeze(0)
    return drawn
