"""The noise schedule and its respacing.

Coefficients are tabulated in float64 and cast where they are used: reordering operations in float32 changes
single VLB terms at high t by 2e-4.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gendd.errors import UserError


class Schedule:
    """A Gaussian diffusion over T steps; t = 0 is nearly clean, t = T - 1 nearly pure noise.

    Tables are float64 tensors of shape (T,). ``timesteps[i]`` is the time passed to the network at step i;
    it differs from i if the schedule was respaced.

    Args:
        betas: (T,) float64, variance added at each step, in (0, 1).
        timesteps: (T,) int64; by default 0 .. T-1.
    """

    def __init__(self, betas: Tensor, timesteps: Tensor | None = None) -> None:
        betas = betas.to(torch.float64)
        alphas_cumprod = torch.cumprod(1 - betas, 0)
        previous = torch.cat([torch.ones(1, dtype=torch.float64), alphas_cumprod[:-1]])
        variance = betas * (1 - previous) / (1 - alphas_cumprod)
        self.timesteps = torch.arange(len(betas)) if timesteps is None else timesteps
        self.betas = betas
        self.alphas_cumprod = alphas_cumprod
        self.alphas_cumprod_prev = previous
        self.log_betas = betas.log()
        # x_t = sqrt_alphas_cumprod x_0 + sqrt_one_minus_alphas_cumprod ε
        self.sqrt_alphas_cumprod = alphas_cumprod.sqrt()
        self.sqrt_one_minus_alphas_cumprod = (1 - alphas_cumprod).sqrt()
        # x_0 = sqrt_recip_alphas_cumprod x_t - sqrt_recipm1_alphas_cumprod ε
        self.sqrt_recip_alphas_cumprod = (1 / alphas_cumprod).sqrt()
        self.sqrt_recipm1_alphas_cumprod = (1 / alphas_cumprod - 1).sqrt()
        # q(x_{t-1} | x_t, x_0), Ho et al. 2020, eq. 6 and 7; the variance at t = 0 is 0, its log is clipped
        self.posterior_variance = variance
        nonzero = variance[1:] if len(betas) > 1 else betas
        self.posterior_log_variance_clipped = torch.cat([nonzero[:1], variance[1:]]).log()
        self.posterior_mean_coef1 = betas * previous.sqrt() / (1 - alphas_cumprod)
        self.posterior_mean_coef2 = (1 - previous) * (1 - betas).sqrt() / (1 - alphas_cumprod)
        # λ = log(√ᾱ / √(1-ᾱ)), half the log-SNR
        self.half_log_snr = -self.sqrt_recipm1_alphas_cumprod.log()
        self._cast: dict[tuple[str, torch.device], Tensor] = {}
        self._values: dict[str, list[float]] = {}
        self._respaced: dict[int, Schedule] = {}

    def __len__(self) -> int:
        return len(self.betas)

    def at(self, table: str, t: Tensor) -> Tensor:
        """Look up a table at steps ``t`` (R,), as float32 (R, 1) on the device of ``t``."""
        key = (table, t.device)
        if key not in self._cast:
            values: Tensor = getattr(self, table)
            self._cast[key] = values.to(torch.float32).to(t.device)
        return self._cast[key][t].unsqueeze(-1)

    def value(self, table: str, step: int) -> float:
        """Look up one entry of a table as a Python number, which tracing records as a constant."""
        if table not in self._values:
            self._values[table] = getattr(self, table).tolist()
        return self._values[table][step]

    def nearest(self, signal: float) -> int:
        """Step whose ᾱ, the signal's share of the variance of x_t, is nearest to ``signal``."""
        return int((self.alphas_cumprod - signal).abs().argmin())

    def respace(self, steps: int) -> Schedule:
        """Schedule of ``steps`` evenly spaced steps with the same marginals (Nichol & Dhariwal 2021); cached.

        Raises:
            UserError: ``steps`` is not an integer in 1 .. T.
        """
        total = len(self)
        if not isinstance(steps, int) or not 1 <= steps <= total:
            raise UserError(f"Sampling steps: expected 1 to {total}, got {steps!r}.")
        if steps not in self._respaced:
            self._respaced[steps] = self._spaced(steps)
        return self._respaced[steps]

    def _spaced(self, steps: int) -> Schedule:
        total = len(self)
        stride = (total - 1) / (steps - 1) if steps > 1 else 0.0
        kept = torch.tensor([round(i * stride) for i in range(steps)] if steps > 1 else [total - 1])
        alphas_cumprod = self.alphas_cumprod[kept]
        previous = torch.cat([torch.ones(1, dtype=torch.float64), alphas_cumprod[:-1]])
        return Schedule(1 - alphas_cumprod / previous, self.timesteps[kept])


def cosine_schedule(timesteps: int = 1000, max_beta: float = 0.999) -> Schedule:
    """β_i = min(1 - ᾱ((i+1)/T) / ᾱ(i/T), max_beta), ᾱ(u) = cos²((u + 0.008) / 1.008 · π/2).

    Source: Nichol & Dhariwal 2021, eq. 17.
    """

    def alpha_bar(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [
        min(1 - alpha_bar((i + 1) / timesteps) / alpha_bar(i / timesteps), max_beta) for i in range(timesteps)
    ]
    return Schedule(torch.tensor(betas, dtype=torch.float64))
